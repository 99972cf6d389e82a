"""Tensors that are grown, and their moments taken, a part at a time: the bits of the whole."""

import itertools
import mmap
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from gather_scale_cases import LARGE, SMALL, Case, arguments, teachers
from kernel_cases import DTYPES, assert_same_bits, random_weights

import n2n_kernels as nk
from n2n_kernels.ops.gather_scale import forms

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(nk.backends()[name] is not None, reason=str(nk.backends()[name])))
    for name in ("cpu", "reference")
]
CPU = torch.device("cpu")


def one(case: Case, dtype: torch.dtype, noise: str, which: str) -> tuple[torch.Tensor, nk.GatherScalePlan]:
    torch.manual_seed(0)
    given: dict[str, Any] = arguments(teachers([case], dtype), CPU)
    return given["srcs"][0], nk.GatherScalePlan(**given, noise=noise, tensor_ids=[7], backend=which)


def cuts(rows: int) -> list[int]:
    """Parts of very different sizes, some of them empty, with borders inside a tile."""
    inside = [c for c in (1, 2, 3, rows // 3, rows // 2, 4095, 4097, rows - 1) if 0 < c < rows]
    return sorted([0, 0, *inside, rows])


@pytest.mark.parametrize("which", BACKENDS)
@pytest.mark.parametrize("noise", ["replicas", "cancelling"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_have_the_bits_of_the_whole(which: str, noise: str, dtype: torch.dtype) -> None:
    wide = Case((3, 20_000), 5, 30_000)  # a row that is cut into tiles
    for case in [*SMALL, *LARGE, wide]:
        src, plan = one(case, dtype, noise, which)
        for std in (0.0, 0.1):
            whole = plan([src], noise_std=std, seed=3)[0]
            at = cuts(len(whole))
            for given in (std, torch.tensor([std], dtype=torch.float64)):
                parts = [plan.rows(src, a, b, noise_std=given, seed=3) for a, b in itertools.pairwise(at)]
                assert_same_bits(torch.cat(parts), whole)


@pytest.mark.parametrize("which", BACKENDS)
def test_rows_that_do_not_exist_are_refused(which: str) -> None:
    src, plan = one(SMALL[1], torch.float32, "replicas", which)
    for begin, end in ((-1, 2), (3, 2), (0, 10)):
        with pytest.raises(ValueError, match=rf"begin \(={begin}\) and end \(={end}\)"):
            plan.rows(src, begin, end)
    with pytest.raises(ValueError, match="contiguous"):
        plan.rows(src.t().contiguous().t(), 0, 2)
    with pytest.raises(ValueError, match="is not what the plan was made for"):
        plan.rows(src.double(), 0, 2)
    two = nk.GatherScalePlan([src, src], None, None, backend=which)
    with pytest.raises(ValueError, match="for one tensor"):
        two.rows(src, 0, 2)


@pytest.mark.parametrize("which", BACKENDS)
def test_sources_of_rows_that_are_no_dense_tensors(which: str) -> None:
    src, plan = one(SMALL[1], torch.float32, "replicas", which)
    for wrong in (None, [src]):
        with pytest.raises(TypeError, match=rf"src \(={type(wrong).__name__}\) must be a torch.Tensor"):
            plan.rows(wrong, 0, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"src\.layout"):
        plan.rows(src.to_sparse(), 0, 2)


@pytest.mark.parametrize("which", BACKENDS)
def test_rows_ask_for_no_memory_of_the_whole(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dtype: torch.dtype, t: torch.Tensor, device: torch.device) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(forms, "_without_memory", refuse)
    src, plan = one(SMALL[1], torch.float32, "replicas", which)
    assert plan.rows(src, 0, 2).shape == (2, 8)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/self/smaps here")
def test_rows_leave_memory_beside_theirs_alone() -> None:
    """Large outputs are to have large pages, but of the whole student there is only a part."""
    w = torch.randn(1024, 4096)
    plan = nk.GatherScalePlan([w], [torch.arange(1024).repeat(8)], None, backend="cpu")
    beside = torch.frombuffer(mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)
    plan.rows(w, 0, 1024)  # 16 MiB of 128, most likely just before
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)[1:]
    for text in mappings:
        begin, end = (int(x, 16) for x in text.split(" ")[0].split("-"))
        if begin <= beside.data_ptr() + 2**25 < end:
            assert " hg" not in text.split("VmFlags:")[1]
            return
    raise AssertionError("not found")


@pytest.mark.parametrize("which", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_in_parts_have_the_bits_of_the_whole(which: str, dtype: torch.dtype) -> None:
    for i, shape in enumerate([(), (1,), (257,), (64, 3, 7, 7), (600, 450), (1100, 1000)]):
        t = random_weights(shape, dtype, i) + i
        if len(shape) == 4:
            t = t.to(memory_format=torch.channels_last)
        for part_bytes in (1, 100_000, 2**30):
            calls: list[int] = []
            got = nk.moments_in_parts(t, lambda calls=calls: calls.append(1), part_bytes=part_bytes, backend=which)
            for a, b in zip(got, nk.tensor_moments([t], backend=which), strict=True):
                assert_same_bits(a, b)
            assert calls


def test_moments_in_parts_refuse_bad_input() -> None:
    def nothing() -> None: ...

    with pytest.raises(ValueError, match="not empty"):
        nk.moments_in_parts(torch.empty(0), nothing)
    with pytest.raises(TypeError, match="dtype"):
        nk.moments_in_parts(torch.ones(4, dtype=torch.int32), nothing)
