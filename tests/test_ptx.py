"""The CUDA kernels as a GPU is given them: the PTX of the build, run on the CPU (ptx.py).

What the emulation of blocks cannot see is here: inline assembly, copies that arrive later, barriers, races, and
accesses outside the tensors and the tables. Each element of the output must be written exactly once. What neither sees
is how the host launches a kernel (its grid, the shared memory that it asks for), which only a GPU runs.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_cases import assert_same_bits
from ptx import Kernel
from ptx_memory import PtxMemoryError
from ptx_module import PtxModule, built_ptx
from tools import check_counts

import n2n_kernels as nk
from n2n_kernels import native
from n2n_kernels.ops.gather_scale import tasks

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture
def ptx(monkeypatch: pytest.MonkeyPatch) -> PtxModule:
    """In the place of the native module."""
    if reason := built_ptx()[1]:
        pytest.skip(reason)
    module = PtxModule()
    monkeypatch.setattr(native, "module", lambda: module)
    return module


def assert_written_once(ptx: PtxModule, dense: bool = True) -> None:
    written = [region for memory in ptx.memories for region in memory.regions if region.writable]
    assert written
    for region in written:
        assert set(np.unique(region.writes)) <= ({1} if dense else {0, 1}), region.name
    ptx.memories.clear()


def width_map(units: int, wider: int, generator: torch.Generator) -> torch.Tensor:
    return torch.cat([torch.arange(units), torch.randint(0, units, (wider - units,), generator=generator)])


SHAPES = {
    # shape, student's units, channels_last
    "3x3, vectors of one or two units": ((3, 24, 3, 3), (5, 40), False),
    "3x3, rows that are not of whole vectors": ((2, 229, 3, 3), (3, 231), False),
    "1x1": ((3, 40), (5, 64), False),
    "1x1, odd": ((3, 13), (5, 29), False),
    "1x1, long rows": ((2, 130), (3, 300), False),
    "channels_last": ((2, 16, 3, 3), (4, 24), True),
    "channels_last, odd": ((2, 7, 3, 3), (3, 11), True),
    "channels_last, odd teacher": ((2, 7, 3, 3), (3, 16), True),
    "kernel of three": ((3, 24, 3), (5, 40), False),
    "kernel of five, by blocks of words": ((2, 20, 5), (3, 32), False),
    "not dense": ((4, 6, 2, 3), (6, 9), None),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("noise", ["none", "replicas", "cancelling"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gather_scale(ptx: PtxModule, shape: str, noise: str, dtype: torch.dtype) -> None:
    size, (wide_o, wide_i), channels_last = SHAPES[shape]
    generator = torch.Generator().manual_seed(len(shape))
    src = torch.randn(size, generator=generator).to(dtype)
    if channels_last:
        src = src.contiguous(memory_format=torch.channels_last)
    elif channels_last is None:
        src = src.transpose(2, 3)
    maps = {
        "out_maps": [width_map(size[0], wide_o, generator)],
        "in_maps": [width_map(size[1], wide_i, generator)],
    }
    in_scale = (1 / maps["in_maps"][0].bincount().double())[maps["in_maps"][0]]
    for out_scales in ([None], [torch.linspace(0.5, 2, wide_o, dtype=torch.float64)]):
        options = {
            "in_scales": [in_scale], "out_scales": out_scales, "noise": "cancelling" if noise == "none" else noise,
            "noise_std": 0.0 if noise == "none" else 0.1, "seed": 7,
        }  # fmt: skip
        check([src], maps, options, ptx)


def check(srcs: list[torch.Tensor], maps: dict, options: dict, ptx: PtxModule) -> None:
    expected = nk.gather_scale(srcs, **maps, **options, backend="reference")
    got = nk.gather_scale(srcs, **maps, **options, backend="cpu")
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(a, b, "the PTX")
    assert_written_once(ptx, dense=all(x.is_contiguous() for x in got))


@pytest.mark.parametrize("noise", ["replicas", "cancelling"])
def test_weights_that_are_not_finite(ptx: PtxModule, noise: str) -> None:
    generator = torch.Generator().manual_seed(3)
    src = torch.randn(2, 24, 3, 3, generator=generator).to(torch.bfloat16)
    src[0, 3, 1, 1], src[1, 5, 0, 0], src[1, 9, 2, 2] = float("nan"), float("inf"), -float("inf")
    maps = {"out_maps": [width_map(2, 4, generator)], "in_maps": [width_map(24, 48, generator)]}
    check([src], maps, {"noise": noise, "noise_std": 0.1, "seed": 1}, ptx)


def test_a_list_of_several(ptx: PtxModule) -> None:
    """Bits are copied where there is no scale; a bias has one row; a tensor may be without maps."""
    generator = torch.Generator().manual_seed(4)
    srcs = [torch.randn(n, generator=generator) for n in ((4, 8, 3, 3), (10,), (6, 4))]
    maps = {
        "out_maps": [width_map(4, 8, generator), width_map(10, 15, generator), None],
        "in_maps": [width_map(8, 12, generator), None, None],
    }
    check(srcs, maps, {}, ptx)


def test_rows_that_do_not_fit_shared_memory(ptx: PtxModule) -> None:
    """Read where they lie, in tiles of columns."""
    src = torch.randn(1, 2400, 3, 3)
    check([src], {"out_maps": [torch.tensor([0, 0])], "in_maps": [torch.arange(2404) % 2400]}, {}, ptx)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "not dense"])
def test_noise_in_rows_that_do_not_fit_shared_memory(
    ptx: PtxModule, monkeypatch: pytest.MonkeyPatch, shape: str, dtype: torch.dtype
) -> None:
    """Made in windows, of which each looks at all units."""
    monkeypatch.setattr(tasks, "_MULTIPROCESSOR_BYTES", 2 * (1024 + 512))
    test_gather_scale(ptx, shape, "cancelling", dtype)


def test_rows_that_lie_far_apart(ptx: PtxModule) -> None:
    """Of the teacher and of the student; pages that nobody touches take no memory."""
    stride = 2**29 + 4  # floats: more than 2 GiB, so that the third row begins beyond 32 bits
    try:
        memory = torch.empty(4 * stride)
    except RuntimeError as error:
        pytest.skip(f"no room for 8 GiB of addresses: {error}")
    for src, out in (
        (torch.randn(3, 4), memory.as_strided((4, 8), (stride, 1))),
        (memory.as_strided((3, 4), (stride, 1)).copy_(torch.randn(3, 4)), torch.empty(4, 8)),
    ):
        maps = {"out_maps": [torch.tensor([0, 1, 2, 0])], "in_maps": [torch.arange(8) % 4]}
        nk.gather_scale([src], **maps, out=[out], backend="cpu")
        assert_same_bits(out, src[maps["out_maps"][0]][:, maps["in_maps"][0]])


def test_large_results_go_past_the_caches(ptx: PtxModule, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ptx.gather_scale
    monkeypatch.setattr(ptx, "gather_scale", lambda *args: run(*args[:9], True, *args[10:]))
    maps = {"out_maps": [torch.tensor([0, 1, 0])], "in_maps": [torch.arange(24) % 16]}
    check([torch.randn(2, 16, 3, 3)], maps, {}, ptx)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_identity(ptx: PtxModule, dtype: torch.dtype) -> None:
    several = [
        torch.full((16, 8, 3, 3), 7.0, dtype=dtype),
        torch.full((5, 7, 1, 3), 7.0, dtype=dtype),
        torch.full((8, 16, 3, 3), 7.0, dtype=dtype).contiguous(memory_format=torch.channels_last),
        torch.full((3, 9, 5), 7.0, dtype=dtype)[:, 1:8],
        torch.full((90, 81, 3, 3), 7.0, dtype=dtype),  # several tiles
    ]
    for groups in (1, 2):
        mine = [t for t in several if t.shape[0] % groups == 0]
        expected = [torch.nn.init.dirac_(torch.empty(t.shape), groups).to(dtype) for t in mine]
        nk.identity_(mine, groups=[groups] * len(mine), backend="cpu")
        for a, b in zip(mine, expected, strict=True):
            assert torch.equal(a, b)
        assert_written_once(ptx, dense=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (3, 5, 3, 3), (2, 16, 40, 40)], ids=str)
def test_channel_moments(ptx: PtxModule, shape: tuple, channels_last: bool, dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).add(3).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    check_moments(ptx, x)


def check_moments(ptx: PtxModule, x: torch.Tensor) -> None:
    for a, b in zip(nk.channel_moments(x, backend="cpu"), nk.channel_moments(x, backend="reference"), strict=True):
        assert_same_bits(a, b, "the PTX")
    assert_written_once(ptx)


def test_moments_of_more_chunks_than_there_are_threads(ptx: PtxModule) -> None:
    """Which the last kernel folds: 293 of them."""
    check_moments(ptx, torch.randn(1, 1, 300_000, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16))


def test_tensor_moments(ptx: PtxModule) -> None:
    generator = torch.Generator().manual_seed(2)
    tensors = [torch.randn(n, generator=generator).to(dtype) for dtype in DTYPES for n in (1, 50, 5000)]
    tensors.append(torch.randn(77, generator=generator)[1:])  # not aligned
    for a, b in zip(
        nk.tensor_moments(tensors, backend="cpu"), nk.tensor_moments(tensors, backend="reference"), strict=True
    ):
        assert_same_bits(a, b, "the PTX")


COUNTED = {
    # shape, student's units: as much of a launch of very many as one or two of its tiles, and a tile's bytes
    "3x3, long rows": ((2, 2048, 3, 3), (4, 4096), 320 * 1024),
    "3x3, short rows": ((28, 64, 3, 3), (56, 128), 64 * 1024),
    "3x3, rows that are not of whole vectors": ((8, 331, 3, 3), (16, 663), 64 * 1024),
    "1x1": ((8, 1024, 1, 1), (16, 2048), 64 * 1024),
    "linear, long rows": ((4, 8192), (8, 16384), 320 * 1024),
}


def test_instructions_per_output(ptx: PtxModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """PTX that a warp executes for each of its threads' outputs, at growth 2 with the paper's random map.

    An H200 issues about 18 in the time that its memory takes for an output of 16 bits, and 35 for one of 32; but not
    all of PTX becomes an instruction.
    """
    counts = {}
    for name, (size, (wide_o, wide_i), tile_bytes) in COUNTED.items():
        monkeypatch.setattr(tasks, "_TILE_BYTES", (tile_bytes, tile_bytes))
        for dtype in (torch.bfloat16, torch.float32):
            generator = torch.Generator().manual_seed(5)
            src = torch.randn(size, generator=generator).to(dtype)
            maps = {
                "out_maps": [width_map(size[0], wide_o, generator)],
                "in_maps": [width_map(size[1], wide_i, generator)],
                "in_scales": [torch.full((wide_i,), 0.5, dtype=torch.float64)],
            }
            for noise, std in (("none", 0.0), ("replicas", 0.1), ("cancelling", 0.1)):
                before = ptx.executed
                (out,) = nk.gather_scale(
                    [src], **maps, noise="replicas" if noise == "none" else noise, noise_std=std, backend="cpu"
                )
                kind = str(dtype).removeprefix("torch.")
                counts[f"{name}, {kind}, {noise}"] = round((ptx.executed - before) * 32 / out.numel(), 1)
    info = nk.build_info()
    made_by = f"nvcc {info['cuda']} for {info['cuda_architectures']}"
    check_counts(Path(__file__).with_name("ptx_instructions.json"), counts, made_by)


# Whether the interpreter would tell.

BY_UNITS = "3x3, vectors of one or two units", "cancelling", torch.float32
BROKEN = {
    "no barriers": ("bar.sync", lambda ptx: test_gather_scale(ptx, *BY_UNITS)),
    "copies that nobody waits for": ("cp.async.wait_all", lambda ptx: test_gather_scale(ptx, *BY_UNITS)),
    "no barriers in identity_": ("bar.sync", lambda ptx: test_identity(ptx, torch.float32)),
    "no barriers between sums": ("bar.sync", lambda ptx: test_channel_moments(ptx, (2, 8, 4, 4), False, torch.float32)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_seen(ptx: PtxModule, what: str) -> None:
    name, test = BROKEN[what]

    def spoil(kernel: Kernel) -> None:
        for instruction in kernel.program:
            if instruction.name == name:
                instruction.name, instruction.operands = "mov.pred", ["%p1", "%p1"]

    ptx.spoil = spoil
    with pytest.raises((PtxMemoryError, AssertionError)):
        test(ptx)
