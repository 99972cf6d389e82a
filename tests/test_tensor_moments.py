"""tensor_moments: values, layouts, bits and bad input, on every backend."""

import math
from typing import Any

import pytest
import torch
from kernel_cases import DTYPES, LAYOUTS, assert_same_bits, place, random_weights
from torch import Tensor

import n2n_kernels as nk

#: None, one and few elements; around a chunk, a block's share of chunks, and the 256 lanes that add up chunks.
SHAPES = [
    (), (1,), (3,), (0,), (2, 0, 3), (255,), (257,), (64, 3, 7, 7), (5, 4, 3, 3, 3), (130, 129), (3, 1, 2, 2, 2, 2),
    (600, 450),
]  # fmt: skip

not_finite = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning:(triton|numpy)")


def assert_moments(got: tuple[Tensor, Tensor], tensors: list[Tensor]) -> None:
    assert [m.dtype for m in got] == [torch.float64] * 2
    assert [tuple(m.shape) for m in got] == [(len(tensors),)] * 2
    for mean, var, t in zip(*(m.cpu() for m in got), tensors, strict=True):
        x = t.cpu().double()
        size = float(x.abs().max()) if x.numel() else 0.0
        bound = (1 + x.numel()) * torch.finfo(torch.float64).eps
        expected = x.var(correction=0) if x.numel() else torch.tensor(math.nan, dtype=torch.float64)
        torch.testing.assert_close(mean, x.mean(), rtol=bound, atol=size * bound, equal_nan=True)
        torch.testing.assert_close(var, expected, rtol=bound, atol=size**2 * bound, equal_nan=True)


def check(tensors: list[Tensor], backend: str) -> None:
    got = nk.tensor_moments(tensors, backend=backend)
    assert_moments(got, tensors)
    assert {m.device.type for m in got} == {tensors[0].device.type}
    for a, b in zip(got, nk.tensor_moments(tensors, backend="reference"), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_bits(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    check([random_weights(shape, dtype, i).to(device) + i for i, shape in enumerate(SHAPES)], backend)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(backend: str, device: torch.device, layout: str) -> None:
    shapes = [(70,), (9, 5), (4, 3, 5), (6, 5, 3, 4), (3, 4, 2, 3, 2)]
    check(
        [
            place(random_weights(shape, dtype, i) + 1, layout, device)
            for dtype in DTYPES
            for i, shape in enumerate(shapes)
            if len(shape) in LAYOUTS[layout].dims
        ],
        backend,
    )


def test_a_dense_tensor_has_the_moments_of_its_memory(backend: str, device: torch.device) -> None:
    w = random_weights((8, 6, 5, 3), torch.float32, 0).to(device).to(memory_format=torch.channels_last)
    runs = [w, w.permute(0, 2, 3, 1).contiguous().flatten(), w.permute(3, 1, 0, 2)]
    for m in nk.tensor_moments(runs, backend=backend):
        assert m[0] == m[1] == m[2]


def test_any_distance_from_a_multiple_of_sixteen_bytes(backend: str, device: torch.device) -> None:
    for dtype in DTYPES:
        pool = random_weights((600,), dtype, 1).to(device)
        offsets = range(16 // dtype.itemsize + 1)
        check([pool[begin : begin + n] for begin in offsets for n in (1, 2, 31, 500)], backend)


def test_odd_addresses_and_expanded_tensors(backend: str, device: torch.device) -> None:
    x = random_weights((6, 2), torch.float32, 0)
    tensors = [x.to(device)[:1].expand(5, 2)]
    if device.type == "cpu":  # torch makes such a view of host memory only
        raw = bytearray(b"\0") + bytearray(x.view(torch.uint8).numpy().tobytes())
        tensors.append(torch.frombuffer(raw, dtype=torch.float32, offset=1).view(6, 2))
    check(tensors, backend)


def test_many_tensors_of_every_dtype(backend: str, device: torch.device) -> None:
    """In an order that mixes the dtypes: one launch each, results in the order of the list."""
    check([random_weights((i % 7 + 1, 5), DTYPES[i * i % 4], i).to(device) for i in range(60)], backend)


@not_finite
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_stays_in_its_tensor(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    inf, nan = math.inf, math.nan
    rows = [[1.0, 1, 1], [1, nan, 1], [nan, 1, 1], [1, inf, 1], [inf, 1, 1], [inf, -inf, 1], [2, 2, 2]]
    mean, var = nk.tensor_moments([torch.tensor(r, dtype=dtype, device=device) for r in rows], backend=backend)
    quiet = torch.tensor([nan], dtype=torch.float64)
    expected_mean = torch.tensor([1.0, 0, 0, inf, inf, 0, 2.0], dtype=torch.float64)
    expected_var = torch.zeros(7, dtype=torch.float64)
    expected_mean[[1, 2, 5]] = quiet
    expected_var[1:6] = quiet
    assert_same_bits(mean, expected_mean)
    assert_same_bits(var, expected_var)


def test_a_large_mean_and_a_constant(backend: str, device: torch.device) -> None:
    small = random_weights((1000,), torch.float64, 1)
    mean, var = nk.tensor_moments([(small + 1e6).to(device), torch.full((999,), 0.1, device=device)], backend=backend)
    torch.testing.assert_close(var[0].cpu(), (small + 1e6).var(correction=0), rtol=1e-6, atol=0)
    assert mean[1].item() == float(torch.tensor(0.1))
    assert var[1].item() == 0.0


def test_channel_moments_of_a_single_channel_are_the_same(backend: str, device: torch.device) -> None:
    x = random_weights((2, 1, 40, 41), torch.float64, 3).to(device)
    for a, b in zip(nk.channel_moments(x, backend=backend), nk.tensor_moments([x], backend=backend), strict=True):
        assert_same_bits(a, b)


def test_no_tensors_at_all(backend: str) -> None:
    for m in nk.tensor_moments([], backend=backend):
        assert m.dtype == torch.float64
        assert m.shape == (0,)


def test_nothing_but_empty_tensors(backend: str, device: torch.device) -> None:
    for m in nk.tensor_moments([torch.empty(0, device=device), torch.empty(2, 0, device=device)], backend=backend):
        assert m.isnan().tolist() == [True, True]


def test_results_are_not_attached_to_autograd(backend: str, device: torch.device) -> None:
    x = torch.nn.Parameter(torch.ones(2, 2, device=device))
    assert not any(m.requires_grad for m in nk.tensor_moments([x], backend=backend))


class Subclass(Tensor):
    pass


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "a tensor for the list": (torch.ones(2), TypeError, r"tensors \(=Tensor\) must be a list"),
    "a number": ([1.0], TypeError, r"tensors\[0\] \(=float\) must be a torch\.Tensor"),
    "integers": ([torch.ones(2), torch.ones(2).int()], TypeError, r"tensors\[1\]\.dtype \(=torch\.int32\) must be"),
    "sparse": ([torch.ones(2, 2).to_sparse()], TypeError, r"tensors\[0\]\.layout"),
    "a subclass": ([torch.ones(2).as_subclass(Subclass)], TypeError, r"tensors\[0\] \(=Subclass\)"),
    "unlike devices": ([torch.ones(2), torch.ones(2, device="meta")], ValueError, r"tensors\[1\]\.device \(=meta\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    tensors, error, message = BAD[case]
    with pytest.raises(error, match=message):
        nk.tensor_moments(tensors)


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"backend \(='metal'\)"):
        nk.tensor_moments([torch.ones(2)], backend="metal")
