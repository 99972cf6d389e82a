"""channel_moments: values, layouts, bits and bad input, on every backend."""

import math
from typing import Any

import pytest
import torch
from kernel_cases import DTYPES, FORMATS, LAYOUTS, assert_same_bits, every_half, from_bits, place, random_weights
from torch import Tensor

import n2n_kernels as nk
from n2n_kernels.ops.channel_moments.order import LANES, chunk_of

SMALL = [(3,), (5, 2), (4, 1, 5), (2, 2, 4, 5), (3, 2, 3, 2, 4)]

#: Around the 32 lanes, and chunks of 256 and of 1,024 elements; more than 256 chunks, which have lanes of their own;
#: rows that are whole 16-byte vectors and rows that are not; channels that are and that are not.
CHUNKS = [
    (31, 1),
    (33, 2),
    (16, 1, 4, 4),
    (1, 2, 16, 17),
    (3, 8, 16, 16),
    (2, 16, 4, 18),
    (40, 5, 7, 7),
    (1, 2, 65, 257),
    (5, 1, 256, 257),
]

#: NumPy, in which Triton's interpreter computes, warns of what one test does on purpose.
not_finite = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning:(triton|numpy)")


def two_pass(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The definition in float64, in two passes."""
    channels = x.cpu().double().movedim(dim, 0).reshape(x.shape[dim], -1)
    mean = channels.mean(1)
    return mean, (channels - mean[:, None]).square().mean(1)


def assert_moments(got: tuple[Tensor, Tensor], x: Tensor, dim: int) -> None:
    mean, var = (m.cpu() for m in got)
    expected_mean, expected_var = two_pass(x, dim)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    assert mean.dtype == var.dtype == dtype
    # The sums are in float64 and of n elements; then one rounding to the result's type.
    n = x.numel() // x.shape[dim]
    size = x.cpu().double().abs().max()
    bound = torch.finfo(dtype).eps + n * torch.finfo(torch.float64).eps
    torch.testing.assert_close(mean.double(), expected_mean, rtol=bound, atol=float(size) * bound)
    torch.testing.assert_close(var.double(), expected_var, rtol=bound, atol=float(size) ** 2 * n * 2**-52)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_bits_in_any_layout(backend: str, device: torch.device, dtype: torch.dtype, layout: str) -> None:
    for shape in SMALL:
        if len(shape) in LAYOUTS[layout].dims:
            check(random_weights(shape, dtype, len(shape)) + 3, layout, backend, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_bits_at_the_edges_of_chunks(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    for i, shape in enumerate(CHUNKS):
        # The longest, which is there for its many chunks, takes Triton's interpreter seconds.
        for layout in ("contiguous", "channels_last", "offset") if shape != CHUNKS[-1] else ("contiguous",):
            if len(shape) in LAYOUTS[layout].dims:
                check(random_weights(shape, dtype, i) - 2, layout, backend, device)


def test_the_size_of_a_chunk() -> None:
    """A power of two, so of whole lanes; few chunks for a short channel, and not too many for a long one."""
    for n in [1, 255, 256, 257, 10_000, 16_384, 16_385, 65_536, 65_537, 10**6, 2**24, 2**24 + 1, 2**32 + 1]:
        chunk = chunk_of(n)
        assert chunk.bit_count() == 1
        assert chunk % LANES == 0
        assert chunk >= 256
        assert -(-n // chunk) <= 16_384
        assert chunk <= 1024 or n > 2**24
        assert chunk == 256 or n / chunk > 32


def check(values: Tensor, layout: str, backend: str, device: torch.device) -> None:
    dim = min(1, values.dim() - 1)
    x = place(values, layout, device)
    got = nk.channel_moments(x, dim=dim, backend=backend)
    assert_moments(got, values, dim)
    for a, b in zip(got, nk.channel_moments(values, dim=dim, backend="reference"), strict=True):
        assert_same_bits(a, b, f"{tuple(values.shape)}")
    assert_same_bits(x, values, "the source")


@pytest.mark.parametrize("dim", [-4, -3, -2, -1, 0, 1, 2, 3])
def test_any_dimension(backend: str, device: torch.device, dim: int) -> None:
    values = random_weights((3, 4, 5, 6), torch.float32, 0)
    for layout in ("contiguous", "channels_last"):
        got = nk.channel_moments(place(values, layout, device), dim=dim, backend=backend)
        assert got[0].shape == (values.shape[dim],)
        assert_moments(got, values, dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_large_mean_does_not_swallow_the_variance(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """The textbook's failure of E[x^2] - E[x]^2, which would leave noise, or a negative number."""
    small = random_weights((8, 3, 10, 10), torch.float64, 1)
    x = (small + torch.tensor([1e6, -1e6, 0.0]).view(1, 3, 1, 1)).to(dtype)
    _, var = nk.channel_moments(x.to(device), backend=backend)
    torch.testing.assert_close(var.cpu().double(), two_pass(x, 1)[1], rtol=1e-6, atol=0)


def test_a_constant_channel_has_no_variance(backend: str, device: torch.device) -> None:
    x = torch.tensor([0.1, 1e30, -7.0], device=device).view(1, 3, 1, 1).expand(5, 3, 30, 30)
    mean, var = nk.channel_moments(x, backend=backend)
    assert mean.cpu().tolist() == x[0, :, 0, 0].cpu().tolist()
    assert var.tolist() == [0.0, 0.0, 0.0]


def test_it_is_what_batch_normalisation_uses(backend: str, device: torch.device) -> None:
    x = random_weights((4, 3, 6, 6), torch.float64, 2).to(device)
    norm = torch.nn.BatchNorm2d(3, momentum=1.0, dtype=torch.float64, device=device)
    normalised = norm(x)
    mean, var = nk.channel_moments(x, backend=backend)
    by_hand = (x - mean.view(1, 3, 1, 1)) / (var.view(1, 3, 1, 1) + norm.eps).sqrt()
    torch.testing.assert_close(by_hand, normalised.detach(), rtol=1e-12, atol=1e-12)
    assert norm.running_mean is not None
    torch.testing.assert_close(mean, norm.running_mean, rtol=1e-14, atol=1e-14)


@not_finite
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_stays_in_its_channel(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    f = FORMATS[dtype]
    nan, inf, negative_nan = f.quiet_nan | 5, f.infinity, f.quiet_nan | f.sign
    one = ((1 << (f.exponent - 1)) - 1) << f.mantissa
    rows = [[one, one, one], [nan, one, one], [one, negative_nan, nan], [one, inf, one], [inf, one, one],
            [inf, one, inf | f.sign], [one, one, one]]  # fmt: skip
    x = torch.stack([from_bits(row, dtype) for row in rows], 1)
    mean, var = (m.cpu() for m in nk.channel_moments(x.to(device), backend=backend))
    quiet = from_bits([FORMATS[mean.dtype].quiet_nan], mean.dtype)
    expected_mean = torch.tensor([1.0, 0, 0, math.inf, math.inf, 0, 1.0], dtype=mean.dtype)
    expected_mean[[1, 2, 5]] = quiet
    expected_var = torch.zeros_like(mean)
    expected_var[1:6] = quiet
    assert_same_bits(mean, expected_mean)
    assert_same_bits(var, expected_var)


@not_finite
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_numbers(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """The largest numbers do not overflow on the way where the result exists; the smallest do not vanish."""
    info = torch.finfo(dtype)
    if dtype != torch.float64:  # whose squares overflow: there is nothing wider to compute in
        x = torch.tensor([[info.max], [-info.max]], dtype=dtype)
        mean, var = nk.channel_moments(x.to(device), backend=backend)
        assert mean.item() == 0.0
        assert var.item() == float(torch.tensor(float(info.max) ** 2).float())
    tiny = from_bits([1, 3], dtype).view(2, 1)
    mean, _ = nk.channel_moments(tiny.to(device), backend=backend)
    assert_same_bits(mean, tiny.double().mean(0).to(mean.dtype))


@not_finite
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_sixteen_bits(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Each in a channel of its own, whose mean it is, along the channels and along the elements."""
    if backend == "triton" and device.type == "cpu":
        pytest.skip("takes too long under Triton's interpreter")
    x = every_half(dtype).view(1, -1).to(device)
    finite = x[0].isfinite().cpu()
    for layout in (x, x.repeat(2, 1).t().contiguous().t()):
        mean, var = (m.cpu() for m in nk.channel_moments(layout, backend=backend))
        assert_same_bits(mean[finite] + 0.0, x[0].cpu().float()[finite] + 0.0)  # the sign of zero is not kept
        assert var[finite].eq(0).all()
        assert mean[x[0].cpu().isnan()].isnan().all()
        assert mean[x[0].cpu().isinf()].isinf().all()


def test_the_result_does_not_depend_on_threads(backend: str, device: torch.device) -> None:
    if backend != "cpu":
        pytest.skip("threads are the cpu backend's")
    x = random_weights((8, 20, 40, 40), torch.float32, 3)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(nk.channel_moments(x, backend=backend))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


def test_a_source_at_an_odd_address(backend: str, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("torch makes such a view of host memory only")
    x = random_weights((6, 2), torch.float32, 0)
    raw = bytearray(b"\0") + bytearray(x.view(torch.uint8).numpy().tobytes())
    odd = torch.frombuffer(raw, dtype=torch.float32, offset=1).view(6, 2)
    for a, b in zip(nk.channel_moments(odd, backend=backend), nk.channel_moments(x, backend=backend), strict=True):
        assert_same_bits(a, b)


def test_results_are_not_attached_to_autograd(backend: str, device: torch.device) -> None:
    x = torch.ones(2, 2, device=device, requires_grad=True)
    assert not any(m.requires_grad for m in nk.channel_moments(x, backend=backend))


@pytest.mark.big
def test_more_elements_than_32_bits_count(backend: str, device: torch.device) -> None:
    if backend in {"triton", "reference"} and device.type == "cpu":
        pytest.skip("takes too long under Triton's interpreter, and too much memory in plain torch")
    if backend == "reference":
        pytest.skip("takes eight times the tensor's memory, in float64")
    n = 2**16 + 1
    x = torch.zeros(n, 2, 2**15 + 1, dtype=torch.bfloat16, device=device)
    assert x.numel() > 2**32
    x[-1, 1] = 1.0
    mean, var = nk.channel_moments(x, backend=backend)
    torch.testing.assert_close(mean.cpu(), torch.tensor([0.0, 1 / n]), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.cpu(), torch.tensor([0.0, 1 / n - 1 / n**2]), rtol=1e-6, atol=0)


class Subclass(Tensor):
    pass


BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no tensor": ([1.0, 2.0], {}, TypeError, r"x \(=list\) must be a torch\.Tensor"),
    "None": (None, {}, TypeError, r"x \(=NoneType\)"),
    "integers": (torch.ones(2, 2).int(), {}, TypeError, r"x\.dtype \(=torch\.int32\) must be one of"),
    "integers on meta": (torch.ones(2, 2, device="meta").int(), {}, TypeError, r"x\.dtype \(=torch\.int32\)"),
    "sparse": (torch.ones(2, 2).to_sparse(), {}, TypeError, r"x\.layout"),
    "no dimensions": (torch.tensor(1.0), {"dim": 0}, ValueError, r"x has 0 dimensions"),
    "six dimensions": (torch.ones([1] * 6), {}, ValueError, r"x has 6 dimensions"),
    "a subclass": (torch.ones(2, 2).as_subclass(Subclass), {}, TypeError, r"x \(=Subclass\)"),
    "a dimension too far": (torch.ones(2, 2), {"dim": 2}, ValueError, r"dim \(=2\) is out of range"),
    "the default of a vector": (torch.ones(2), {}, ValueError, r"dim \(=1\) is out of range for x, which has 1"),
    "a dimension before the first": (torch.ones(2, 2), {"dim": -3}, ValueError, r"dim \(=-3\) is out of range"),
    "a dimension by name": (torch.ones(2, 2), {"dim": "C"}, TypeError, r"dim \(='C'\) must be an integer"),
    "no elements": (torch.ones(0, 3), {}, ValueError, r"x \(shape \(0, 3\)\) is empty"),
    "no channels": (torch.ones(3, 0), {}, ValueError, r"x \(shape \(3, 0\)\) is empty"),
    "an unknown backend": (torch.ones(2, 2), {"backend": "metal"}, ValueError, r"backend \(='metal'\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    x, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        nk.channel_moments(x, **options)
