"""Task tables: what one launch over many tensors reads, packed into a single buffer on the tensors' device.

The buffer holds the tasks (an int64 matrix, one row per tensor; the rows are the structs of `csrc/`), the maps and
scales that the tasks point to, and the task of each tile (int32). One buffer means one upload.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Output elements per tile; `n2n::kTile`.
TILE = 4096

_ALIGN = 16


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
