"""The task table's buffer: what points where, and which tile belongs to which task."""

import ctypes

import numpy as np
import torch

from n2n_kernels import table

CPU = torch.device("cpu")


def read(address: int, like: np.ndarray) -> np.ndarray:
    raw = ctypes.string_at(address, like.nbytes)
    return np.frombuffer(raw, dtype=like.dtype)


def test_pointers_lead_to_aligned_copies_of_the_arrays() -> None:
    """Arrays of odd lengths and different types lie side by side; a GPU faults on a misaligned one."""
    arrays = [np.arange(3, dtype=np.int32), np.linspace(0, 1, 5), np.arange(7, dtype=np.int32), np.float32([1.5])]
    builder = table.Builder()
    tasks = np.zeros((3, 4), dtype=np.int64)
    tasks[0, :2] = builder.add("a", arrays[0]), builder.add("b", arrays[1])
    tasks[1, :2] = builder.add("c", arrays[2]), builder.add("d", arrays[3])
    built = builder.build(tasks, np.array([1, 1, 1]), [0, 1], 3, CPU)
    pointers = built.tasks[:2, :2].flatten().tolist()
    begin, end = built.buffer.data_ptr(), built.buffer.data_ptr() + built.buffer.numel()
    for pointer, array in zip(pointers, arrays, strict=True):
        assert pointer % 16 == 0
        assert begin <= pointer <= end - array.nbytes
        assert read(pointer, array).tolist() == array.tolist()
    assert built.tasks[2, :2].tolist() == [0, 0]  # no table


def test_arrays_of_one_key_are_stored_once() -> None:
    builder = table.Builder()
    first, again = builder.add("map", np.arange(4)), builder.add("map", np.arange(4))
    other = builder.add("other", np.arange(4))
    assert first == again != other


def test_tiles_belong_to_their_tasks() -> None:
    tasks = np.zeros((4, 2), dtype=np.int64)
    elements = np.array([1, table.TILE, table.TILE + 1, 3 * table.TILE])
    built = table.Builder().build(tasks, elements, [], 1, CPU)
    assert built.tiles == 7
    assert built.tile_task.tolist() == [0, 1, 2, 2, 3, 3, 3]
    assert built.tasks[:, 1].tolist() == [0, 1, 2, 4]
