"""The arena of tables: what points where."""

import ctypes

import numpy as np
import torch

from n2n_kernels.table import Arena

CPU = torch.device("cpu")


def read(address: int, like: np.ndarray) -> np.ndarray:
    raw = ctypes.string_at(address, like.nbytes)
    return np.frombuffer(raw, dtype=like.dtype)


def test_addresses_lead_to_aligned_copies_of_the_arrays() -> None:
    """Arrays of odd lengths and different types lie side by side; a GPU faults on a misaligned one."""
    arrays = [np.arange(3, dtype=np.int32), np.linspace(0, 1, 5), np.arange(7, dtype=np.int32), np.float32([1.5])]
    arena = Arena(CPU)
    handles = [arena.add(i, lambda array=array: array) for i, array in enumerate(arrays)]
    addresses = arena.seal()
    assert addresses[0] == 0  # no table
    (buffer,) = arena.buffers()
    for handle, array in zip(handles, arrays, strict=True):
        address = int(addresses[handle])
        assert address % 16 == 0
        assert buffer.data_ptr() <= address <= buffer.data_ptr() + buffer.numel() - array.nbytes
        assert read(address, array).tolist() == array.tolist()


def test_arrays_of_one_key_are_stored_once() -> None:
    arena = Arena(CPU)
    first, again, other = (arena.add(key, lambda: np.arange(4)) for key in ("map", "map", "other"))
    assert first == again != other


def test_an_arena_uses_what_its_base_has() -> None:
    base = Arena(CPU)
    handle = base.add("map", lambda: np.arange(4))
    address = int(base.seal()[handle])
    for derived in (Arena(CPU, base), Arena(CPU, Arena(CPU, base))):
        mine, own = derived.add("map", lambda: 1 / 0), derived.add("scale", lambda: np.ones(3))  # type: ignore[arg-type, return-value]
        addresses = derived.seal()
        assert addresses[mine] == address
        assert read(int(addresses[own]), np.ones(3)).tolist() == [1, 1, 1]
        assert any(buffer is base.buffers()[0] for buffer in derived.buffers())
