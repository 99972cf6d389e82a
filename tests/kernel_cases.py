"""What the kernels' contracts share: dtypes, layouts, tensors embedded in poison, maps, and comparison by bits."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
BITS = {torch.float32: torch.int32, torch.float64: torch.int64, torch.bfloat16: torch.int16, torch.float16: torch.int16}

#: Every byte of memory that nobody should touch, or that somebody should have overwritten.
POISON = 0xA5


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory: its dimensions from outermost to innermost, elements left out after each row of a
    dimension, the step between neighbours of the innermost one, and elements before the first."""

    order: Callable[[int], list[int]]
    gaps: dict[int, int]  # dimension (negative: from the end) -> elements of it left out
    step: int = 1
    offset: int = 0
    dims: tuple[int, ...] = (1, 2, 3, 4, 5)


LAYOUTS = {
    "contiguous": Layout(lambda n: [*range(n)], {}),
    "channels_last": Layout(lambda n: [0, 2, 3, 1], {}, dims=(4,)),
    "channels_last_3d": Layout(lambda n: [0, 2, 3, 4, 1], {}, dims=(5,)),
    "transposed": Layout(lambda n: [1, 0, *range(2, n)], {}, dims=(2, 3, 4, 5)),
    "kernel_outermost": Layout(lambda n: [*range(2, n), 0, 1], {}, dims=(3, 4, 5)),
    "offset": Layout(lambda n: [*range(n)], {}, offset=1),  # so an address that is no multiple of 16
    "slice": Layout(lambda n: [*range(n)], {1: 3}, offset=2, dims=(2, 3, 4, 5)),
    "stepped": Layout(lambda n: [*range(n)], {}, step=2),
    # The kernel's dimensions do not fold into one. Sources only: as a target it is refused.
    "unfoldable": Layout(lambda n: [*range(n)], {-1: 2}, dims=(4, 5)),
}
TARGET_LAYOUTS = [name for name in LAYOUTS if name != "unfoldable"]


@dataclass(frozen=True)
class Embedded:
    """A tensor inside a larger buffer, of which every byte that is not the tensor's is poison."""

    tensor: Tensor
    buffer: Tensor  # uint8

    def assert_only_inside_written(self) -> None:
        size = self.tensor.element_size()
        elements = self.buffer.cpu().view(-1, size)
        inside = torch.zeros(len(elements), dtype=torch.bool)
        inside.as_strided(self.tensor.shape, self.tensor.stride(), self.tensor.storage_offset()).fill_(True)
        written = elements[~inside].ne(POISON).any(1).nonzero()
        assert not len(written), f"{len(written)} elements outside the tensor were written"

    def assert_untouched(self) -> None:
        assert self.buffer.eq(POISON).all(), "the target was written"


def embed(shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: torch.device) -> Embedded:
    """A tensor full of poison, within poison."""
    how, n = LAYOUTS[layout], len(shape)
    gaps = {d % n: gap for d, gap in how.gaps.items()}
    strides, reach = [0] * n, how.step
    for d in reversed(how.order(n)):
        strides[d] = reach
        reach *= max(shape[d] + gaps.get(d, 0), 1)
    elements = how.offset + reach + 5
    buffer = torch.full((elements * dtype.itemsize,), POISON, dtype=torch.uint8, device=device)
    return Embedded(buffer.view(dtype).as_strided(shape, strides, how.offset), buffer)


def place(values: Tensor, layout: str, device: torch.device) -> Tensor:
    """A tensor of these values that lies in this layout."""
    target = embed(tuple(values.shape), values.dtype, layout, device).tensor
    # Copied as integers: a copy of floats may change a NaN's bits.
    target.view(BITS[values.dtype]).copy_(values.view(BITS[values.dtype]))
    return target


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_weights(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed)).to(dtype)


def widening_map(units: int, width: int, seed: int) -> Tensor:
    """Identity first, then replicas of random units: a map as the paper makes it."""
    more = torch.randint(units, (width - units,), generator=generator(seed))
    return torch.cat([torch.arange(units), more])


def shuffled_map(units: int, width: int, seed: int) -> Tensor:
    """The same in random order: a unit's first copy is anywhere."""
    return widening_map(units, width, seed)[torch.randperm(width, generator=generator(seed + 1))]


def uniform_split(g: Tensor) -> Tensor:
    """float64: each replica takes the same share."""
    return 1.0 / g.bincount().double()[g]


def dyadic_split(g: Tensor) -> Tensor:
    """float64 powers of two: r replicas take 1/2, 1/4, ..., and the last two the same."""
    shares, seen = [], {}
    for unit in g.tolist():
        at = seen[unit] = seen.get(unit, 0) + 1
        shares.append(0.5 ** min(at, int((g == unit).sum()) - 1))
    return torch.tensor(shares, dtype=torch.float64)


def assert_same_bits(got: Tensor, expected: Tensor, what: str = "") -> None:
    """Equal shape, dtype and bits, NaN included, wherever the two are."""
    assert got.dtype == expected.dtype, what
    assert got.shape == expected.shape, what
    a, b = (t.detach().cpu().contiguous().view(BITS[t.dtype]) for t in (got, expected))
    wrong = (a != b).nonzero()
    if len(wrong):
        at = tuple(wrong[0].tolist())
        width = 16 * got.element_size() // 8
        mask = (1 << 8 * got.element_size()) - 1
        raise AssertionError(
            f"{what}: {len(wrong)} of {math.prod(a.shape)} elements differ, first at {at}: got {got.cpu()[at].item()} "
            f"({a[at].item() & mask:#0{width + 2}x}), expected {expected.cpu()[at].item()} ({b[at].item() & mask:#x})"
        )


def from_bits(patterns: list[int], dtype: torch.dtype) -> Tensor:
    """A vector of these bit patterns (unsigned)."""
    width = 8 * dtype.itemsize
    signed = [p - (1 << width) if p >= 1 << (width - 1) else p for p in patterns]
    return torch.tensor(signed, dtype=BITS[dtype]).view(dtype)


def every_half(dtype: torch.dtype) -> Tensor:
    """All 65,536 values of a 16-bit type, as a matrix."""
    return from_bits(list(range(1 << 16)), dtype).view(256, 256)


@dataclass(frozen=True)
class Format:
    """Where the fields of a floating-point format lie."""

    mantissa: int  # bits
    exponent: int  # bits

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent) - 1) << self.mantissa

    @property
    def sign(self) -> int:
        return 1 << (self.mantissa + self.exponent)

    @property
    def quiet_nan(self) -> int:
        return self.infinity | 1 << (self.mantissa - 1)

    def nans(self) -> list[int]:
        """Quiet and signalling, of both signs, with payloads."""
        positive = [self.quiet_nan, self.quiet_nan | 5, self.infinity | 1, self.infinity | (1 << self.mantissa) - 1]
        return [*positive, *(p | self.sign for p in positive)]

    def awkward(self) -> list[int]:
        """Zeros, denormals, the smallest and largest numbers, infinities, NaNs."""
        one = ((1 << (self.exponent - 1)) - 1) << self.mantissa
        numbers = [0, 1, 3, (1 << self.mantissa) - 1, 1 << self.mantissa, one, one + 1, self.infinity - 1]
        numbers.append(self.infinity)
        return [*numbers, *(p | self.sign for p in numbers), *self.nans()]


FORMATS = {
    torch.float32: Format(23, 8),
    torch.float64: Format(52, 11),
    torch.bfloat16: Format(7, 8),
    torch.float16: Format(10, 5),
}
