"""How gather_scale's tensors are cut into tiles for blocks of a GPU, at the shared memory of an H100 or H200."""

import numpy as np
import pytest
import torch

import n2n_kernels as nk
from n2n_kernels.ops.gather_scale import tasks
from n2n_kernels.ops.gather_scale.tasks import Column

#: A multiprocessor's 228 KB, of which each block takes 1 KB more.
TWO_BLOCKS = 113 * 1024

SIZES = [1, 40, 331, 1024, 4096, 8192, 9999, 14455, 14458, 25088, 60000]


def cut(
    monkeypatch: pytest.MonkeyPatch, units: int, kernel: int, dtype: torch.dtype, growth: float, noise: str
) -> tuple[dict[str, int], int]:
    """The task of a weight of four rows, and the shared memory of its launch."""
    found = []

    def spy(table: np.ndarray, *args: int) -> int:
        bytes_needed = original(table, *args)
        found.append((dict(zip((c.name for c in Column), table[0].tolist(), strict=True)), bytes_needed))
        return bytes_needed

    original = tasks._cut
    monkeypatch.setattr(tasks, "_cut", spy)
    wide = int(units * growth)
    in_map = torch.arange(wide) % units
    weight = torch.zeros(4, units, kernel, dtype=dtype)
    options = {"noise": "cancelling", "noise_std": 0.1} if noise == "cancelling" else {}
    nk.gather_scale([weight], out_maps=[None], in_maps=[in_map], **options)
    monkeypatch.undo()
    ((task, bytes_needed),) = found
    return task, bytes_needed


def whole_vectors(size: int) -> int:
    return -(-size // 16) * 16


@pytest.mark.parametrize(("units", "growth"), [(n, g) for n in SIZES for g in (1.5, 2) if int(n * g) > n])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kernel", [1, 9])
def test_rows_with_cancelling_noise(
    monkeypatch: pytest.MonkeyPatch, units: int, kernel: int, dtype: torch.dtype, growth: float
) -> None:
    """Everything fits, and words of noise take nothing's place: what fits shared memory without them is there."""
    task, needed = cut(monkeypatch, units, kernel, dtype, growth, "cancelling")
    row = task["I"] * kernel * dtype.itemsize
    teacher_row = whole_vectors(units * kernel * dtype.itemsize)
    odd = lambda size: (whole_vectors(size) // 16 | 1) * 16  # noqa: E731
    words = odd(4 * units + 12) if task["WORDS"] else 0
    assert task["WORDS"] in ({0, 1} if kernel == 1 else {0})
    assert needed <= TWO_BLOCKS
    assert task["ROW_ROOM"] >= 1
    if teacher_row <= tasks.STAGE_BYTES and teacher_row + odd(row) <= TWO_BLOCKS:
        assert task["STAGED"]
        assert task["TILE_COLUMNS"] == task["I"] * kernel
        assert task["TILE_ROWS"] * teacher_row + task["ROW_ROOM"] * (odd(row) + words) <= needed
    else:
        assert not task["STAGED"]
        assert task["TILE_ROWS"] == task["ROW_ROOM"] == 1
        window = task["TILE_COLUMNS"] * dtype.itemsize
        assert -(-row // window) == -(-row // TWO_BLOCKS)
        assert window + (odd(window) - window + words if words else 0) <= needed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_words_are_made_where_there_is_room(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    for units in (40, 1024, 4096):
        assert cut(monkeypatch, units, 1, dtype, 2, "cancelling")[0]["WORDS"]
    assert not cut(monkeypatch, 25088, 1, dtype, 2, "cancelling")[0]["WORDS"]


@pytest.mark.parametrize("units", SIZES)
@pytest.mark.parametrize("kernel", [1, 9])
def test_rows_without_noise(monkeypatch: pytest.MonkeyPatch, units: int, kernel: int) -> None:
    task, needed = cut(monkeypatch, units, kernel, torch.float32, 2, "none")
    assert needed <= tasks.STAGE_BYTES
    assert not task["WORDS"]
    assert bool(task["STAGED"]) == (whole_vectors(units * kernel * 4) <= tasks.STAGE_BYTES)


@pytest.mark.parametrize("stage", [0, 16, 48])
def test_hardly_any_shared_memory(monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    """Of no GPU, but tiles are cut then too, and none is empty."""
    monkeypatch.setattr(tasks, "_stages", lambda _: (stage, stage))
    weight, in_map = torch.randn(4, 40), torch.arange(64) % 40
    options = {"out_maps": [None], "in_maps": [in_map], "noise": "cancelling", "noise_std": 0.1}
    (got,) = nk.gather_scale([weight], **options)
    (expected,) = nk.gather_scale([weight], **options, backend="reference")
    assert torch.equal(got, expected)
