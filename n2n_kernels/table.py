"""Tables that a launch reads from the tensors' device: arrays of different types, packed for one upload."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Output elements per tile of elements; `n2n::kTile`.
TILE = 4096

_ALIGN = 16


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A contiguous array's bytes on `device`, complete when this returns: any stream may read them. On the CPU they
    stay where they are."""
    return torch.from_numpy(array.reshape(-1).view(np.uint8)).to(device)


class Arena:
    """Arrays on a device, each stored once. Collect with `add`, then `seal`, then ask for addresses.

    An arena may build on a sealed one of the same device: what that one has is not stored again.
    """

    def __init__(self, device: torch.device, base: "Arena | None" = None) -> None:
        self._device = device
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
            self._buffer = upload(host, self._device)
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


@dataclass
class Table:
    """A launch's table. `buffer` must outlive the launch; the others are views of it."""

    buffer: Tensor
    tasks: Tensor  # int64 [tasks, words]
    tile_task: Tensor  # int32 [tiles]

    @property
    def tiles(self) -> int:
        return self.tile_task.numel()


class Builder:
    """Collects arrays and tasks, then lays them out."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._offsets: dict[object, int] = {}
        self._size = 0

    def add(self, key: object, array: np.ndarray) -> int:
        """A handle for `array`, to be put into a pointer column. Arrays with equal keys are stored once."""
        if key not in self._offsets:
            # Handles start at 1, so that 0 can mean "no table".
            self._offsets[key] = self._size + 1
            self._arrays.append(array)
            self._size += -(-array.nbytes // _ALIGN) * _ALIGN
        return self._offsets[key]

    def build(
        self,
        tasks: np.ndarray,
        elements: np.ndarray,
        pointers: list[int],
        first_tile: int,
        device: torch.device,
    ) -> Table:
        """Lays out `tasks` (int64 [n, words]) whose columns `pointers` hold handles; `elements` [n] sizes the tiles,
        and each task's first tile is written into column `first_tile`."""
        tiles = -(-elements // TILE)
        tasks[:, first_tile] = np.cumsum(tiles) - tiles
        tile_task = np.repeat(np.arange(len(tasks), dtype=np.int32), tiles)
        arrays_at = -(-tasks.nbytes // _ALIGN) * _ALIGN
        tiles_at = arrays_at + self._size
        host = np.zeros(tiles_at + tile_task.nbytes, dtype=np.uint8)
        buffer = torch.empty(host.nbytes, dtype=torch.uint8, device=device)
        columns = tasks[:, pointers]
        tasks[:, pointers] = np.where(columns > 0, columns - 1 + buffer.data_ptr() + arrays_at, 0)
        host[: tasks.nbytes] = tasks.reshape(-1).view(np.uint8)
        host[tiles_at:] = tile_task.view(np.uint8)
        at = arrays_at
        for array in self._arrays:
            host[at : at + array.nbytes] = np.ascontiguousarray(array).view(np.uint8)
            at += -(-array.nbytes // _ALIGN) * _ALIGN
        buffer.copy_(torch.from_numpy(host))
        return Table(
            buffer,
            buffer[: tasks.nbytes].view(torch.int64).view(tasks.shape),
            buffer[tiles_at:].view(torch.int32),
        )
