"""channel_moments: the public function, its registration with torch.library, and the last, small step of the sum."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from n2n_kernels import dtypes
from n2n_kernels.backends import check_name, implementation
from n2n_kernels.layout import fold, is_aligned
from n2n_kernels.library import LIBRARY
from n2n_kernels.ops import checks

#: Elements of a channel per chunk, and partial sums per chunk; `n2n::kChunk` and `n2n::kLanes`.
CHUNK, LANES = 4096, 256


class Channels(NamedTuple):
    """A tensor seen as `[N, C, S]`: the tensor itself, its extents and its strides in elements."""

    x: Tensor
    sizes: tuple[int, int, int]
    strides: tuple[int, int, int]

    @property
    def chunks(self) -> int:
        return -(-self.sizes[0] * self.sizes[2] // CHUNK)


def channel_moments(x: Tensor, *, dim: int = 1, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, over all dimensions but `dim`, reading `x` once.

    These are the statistics that batch normalisation uses in train mode, and that an identity layer must undo (Chen et
    al., ICLR 2016, section 2.4).

    Args:
        x: 1-D to 5-D, float32, float64, bfloat16 or float16, in any layout; must not be empty.
        dim: the channel dimension.
        backend: one of `n2n_kernels.backends()`, or None for the best for the tensor's device.

    Returns:
        (mean, var), each `[C]`, float64 for float64 and float32 for everything else. Sums are kept in float64, of the
        differences to the channel's first element, in one fixed order: every backend gives the same bits.

    Raises:
        ValueError, TypeError: naming the argument and its value.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x (={type(x).__name__}) must be a torch.Tensor")
    checks.check_integer("dim", dim)
    check_name(backend)
    with torch.no_grad():
        mean, var = torch.ops.n2n.channel_moments(x, dim, backend)
    return mean, var


def _channels(x: Tensor, dim: int) -> Channels:
    """`x` as `[N, C, S]`: what is before the channel dimension, and what is after. Copied if it does not lie so."""
    if x.dim() == 1:
        return Channels(x, (1, x.shape[0], 1), (0, x.stride(0), 0))
    x = x.movedim(dim, 1)
    inner = fold(x.shape[2:], x.stride()[2:])
    if inner is None or not is_aligned(x):
        x = x.clone(memory_format=torch.contiguous_format)
        inner = fold(x.shape[2:], x.stride()[2:])
        assert inner is not None
    return Channels(x, (x.shape[0], x.shape[1], inner[0]), (x.stride(0), x.stride(1), inner[1]))


def pivots(c: Channels) -> Tensor:
    """float64 [C]: each channel's first element, or zero where that is not finite."""
    first = c.x.as_strided((c.sizes[1],), (c.strides[1],)).double()
    return torch.where(first.isfinite(), first, torch.zeros_like(first))


def fold_sums(sums: Tensor) -> Tensor:
    """Adds up dimension 1 of `[C, n, ...]` in halves: a fixed order that does not depend on the device."""
    n = 1 << max(sums.shape[1] - 1, 0).bit_length()
    sums = torch.cat([sums, sums.new_zeros(sums.shape[0], n - sums.shape[1], *sums.shape[2:])], 1)
    while n > 1:
        n //= 2
        sums = sums[:, :n] + sums[:, n:]
    return sums[:, 0]


LIBRARY.define("channel_moments(Tensor x, int dim, str? backend) -> (Tensor, Tensor)")


@torch.library.impl(LIBRARY, "channel_moments", "CompositeExplicitAutograd")
def _channel_moments(x: Tensor, dim: int, backend: str | None) -> tuple[Tensor, Tensor]:
    _check(x, dim)
    checks.check_memory("x", x)
    c = _channels(x, dim)
    partials = implementation("channel_moments", backend, x.device).run(c)
    d, dd = fold_sums(partials).unbind(-1)
    # A tensor: torch on CUDA divides by a plain number by multiplying with its reciprocal, which rounds twice.
    count = torch.full_like(d, c.sizes[0] * c.sizes[2])
    mean = pivots(c) + d / count
    var = (dd - d * d / count).clamp(min=0) / count
    dtype = dtypes.TABLE[x.dtype].compute
    return _one_nan(mean.to(dtype)), _one_nan(var.to(dtype))


def _one_nan(x: Tensor) -> Tensor:
    """NaN as one fixed pattern: processors differ in the sign and the payload of those that they make."""
    return x.masked_fill(x.isnan(), math.nan)


def _check(x: Tensor, dim: int) -> None:
    """Everything that can be told from numbers, dtypes, shapes and devices, so for fake tensors too."""
    checks.check_tensor("x", x, dims=range(1, 6))
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim (={dim}) is out of range for x, which has {x.dim()} dimensions")
    if x.numel() == 0:
        raise ValueError(f"x (shape {tuple(x.shape)}) is empty, so its moments do not exist")


@torch.library.register_fake("n2n::channel_moments", lib=LIBRARY)
def _(x: Tensor, dim: int, backend: str | None) -> tuple[Tensor, Tensor]:
    _check(x, dim)
    moments = x.new_empty(x.shape[dim], dtype=dtypes.TABLE[x.dtype].compute)
    return moments, torch.empty_like(moments)
