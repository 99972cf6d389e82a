"""Parts of a student by themselves: the bits that they have in the whole."""

from typing import Any

import pytest
import torch
from gather_scale_cases import Case, Teacher, arguments, teacher
from kernel_cases import DTYPES, assert_same_bits

import n2n_kernels as nk
from n2n_kernels.ops.gather_scale.window import Whole

CASES = [
    Case((6, 5), 9, 8),
    Case((5, 4, 3, 3), 8, 7),
    Case((5, 4, 3, 3), None, 9),
    Case((3, 4, 5, 2), 5, None),
    Case((4, 1), 7),
    Case((2, 3, 1, 1), 4, 5),
    Case((7,), 11),
]


def whole_of(t: Teacher, backend: str) -> Whole:
    return Whole(t.out_map, t.in_map, t.out_scale, t.in_scale, tensor_id=3, backend=backend)


# Triton's interpreter takes its time for each row: it gets few of them.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_ranges_of_both_axes(backend: str, device: torch.device, dtype: torch.dtype, scaled: bool) -> None:
    for n, case in enumerate(CASES):
        t = teacher(case, dtype, n, scaled=scaled, shuffled=True)
        expected = nk.gather_scale(**arguments([t], device), backend=backend)[0]
        whole = whole_of(t, backend)
        for dim in range(min(2, expected.dim())):
            found = torch.full_like(expected, torch.nan)
            size = found.shape[dim]
            for begin, end in ((0, size // 3), (size // 3, size // 3), (size // 3, size)):
                held = t.values.index_select(dim, torch.from_numpy(whole.units(dim, begin, end))).to(device)
                whole.grow(held, found.narrow(dim, begin, end - begin), dim=dim, begin=begin)
            assert_same_bits(found, expected, f"{case} along {dim}")


# NumPy, in which Triton's interpreter computes, warns of infinities.
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("noise", ["replicas", "cancelling"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ranges_of_noisy_rows(backend: str, device: torch.device, dtype: torch.dtype, noise: str) -> None:
    options: dict[str, Any] = {"noise_std": 0.3, "noise": noise, "seed": 2**40 + 7}
    for n, case in enumerate(CASES[:1] if backend == "triton" and device.type == "cpu" else CASES[:-1]):
        t = teacher(case, dtype, n, shuffled=True)
        t.values.view(-1)[[0, -1]] = torch.tensor([torch.nan, torch.inf]).to(dtype)
        expected = nk.gather_scale(**arguments([t], device), **options, tensor_ids=[3], backend=backend)[0]
        whole, found = whole_of(t, backend), torch.full_like(expected, 7)
        rows = len(found)
        for begin, end in ((0, rows // 2), (rows // 2, rows // 2), (rows // 2, rows - 1), (rows - 1, rows)):
            held = t.values[torch.from_numpy(whole.units(0, begin, end))].to(device)
            whole.grow_noisy_rows(held, found[begin:end], begin=begin, **options)
        assert_same_bits(found, expected, str(case))


def test_rows_that_are_longer_than_a_tile(backend: str, device: torch.device) -> None:
    interpreted = backend == "triton" and device.type == "cpu"
    t = teacher(Case((2, 460, 3, 3), 3, 470) if interpreted else Case((20, 700, 3, 3), 31, 1000), torch.float32, 1)
    options: dict[str, Any] = {"noise_std": 0.3, "noise": "cancelling", "seed": 1}
    expected = nk.gather_scale(**arguments([t], device), **options, tensor_ids=[3], backend=backend)[0]
    whole, found = whole_of(t, backend), torch.empty_like(expected)
    middle = len(found) // 2 + 1
    for begin, end in ((0, middle), (middle, len(found))):
        held = t.values[torch.from_numpy(whole.units(0, begin, end))].to(device)
        whole.grow_noisy_rows(held, found[begin:end], begin=begin, **options)
    assert_same_bits(found, expected, "long rows")


@pytest.mark.parametrize("std", [float("nan"), float("inf"), -1.0, 1e300])
def test_what_is_no_deviation_gives_no_noise(std: float) -> None:
    t = teacher(CASES[1], torch.float32, 0)
    expected = nk.gather_scale(**arguments([t], torch.device("cpu")))[0]
    found = torch.empty_like(expected)
    whole = whole_of(t, "cpu" if nk.backends()["cpu"] is None else "reference")
    whole.grow_noisy_rows(t.values, found, begin=0, noise_std=std, noise="cancelling", seed=0)
    assert_same_bits(found, expected, "all rows")
