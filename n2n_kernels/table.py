"""Tables that a launch reads from the tensors' device: arrays of different types, packed for one upload."""

from collections.abc import Callable, Hashable

import numpy as np
import torch
from torch import Tensor

#: Output elements per tile of elements; `n2n::kTile`.
TILE = 4096

#: Bytes of the widest access that a GPU's thread makes; `n2n::kVectorBytes`.
VECTOR_BYTES = 16

_ALIGN = VECTOR_BYTES


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A contiguous array's bytes on `device`, complete when this returns: any stream may read them. On the CPU they
    stay where they are."""
    return torch.from_numpy(array.reshape(-1).view(np.uint8)).to(device)


class Arena:
    """Arrays on a device, each stored once. Collect with `add`, then `seal`, then ask for addresses.

    An arena may build on a sealed one of the same device: what that one has is not stored again.
    """

    def __init__(self, device: torch.device, base: "Arena | None" = None) -> None:
        self.device = device
        self._base = base
        self._handles: dict[Hashable, int] = {}
        self._places: list[int] = [0]  # by handle: the offset in the buffer, or in the base's case the address
        self._own: list[bool] = [False]
        self._arrays: list[tuple[int, np.ndarray]] = []
        self._size = 0
        self._buffer: Tensor | None = None
        self._addresses: np.ndarray | None = None

    def add(self, key: Hashable, make: Callable[[], np.ndarray]) -> int:
        """A handle, not 0, for the array that `make` returns. It is asked once per key."""
        if key not in self._handles:
            if self._addresses is not None:
                raise RuntimeError("the arena is sealed")
            self._handles[key] = len(self._places)
            address = self._base.address(key) if self._base is not None else None
            self._own.append(address is None)
            if address is None:
                array = np.ascontiguousarray(make())
                self._arrays.append((self._size, array))
                self._places.append(self._size)
                self._size += -(-array.nbytes // _ALIGN) * _ALIGN
            else:
                self._places.append(address)
        return self._handles[key]

    def seal(self) -> np.ndarray:
        """Uploads; int64 [handles]: the address of each handle's array, and 0 for handle 0."""
        if self._addresses is None:
            host = np.zeros(self._size, dtype=np.uint8)
            for offset, array in self._arrays:
                host[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
            self._arrays.clear()
            self._buffer = upload(host, self.device)
            self._addresses = np.array(self._places, dtype=np.int64) + self._buffer.data_ptr() * np.array(self._own)
        return self._addresses

    def address(self, key: Hashable) -> int | None:
        """Where the array of `key` is, if this arena or one that it builds on has it."""
        if key in self._handles:
            return int(self.seal()[self._handles[key]])
        return self._base.address(key) if self._base is not None else None

    def buffers(self) -> list[Tensor]:
        """The memory that addresses lead to; it must outlive every launch that reads them."""
        mine = [self._buffer] if self._buffer is not None else []
        return mine + (self._base.buffers() if self._base is not None else [])
