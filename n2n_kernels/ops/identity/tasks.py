"""The task table of identity_, as `n2n::IdentityTask` of `csrc/identity.h` lays it out."""

import functools
import math
from collections.abc import Iterator
from enum import IntEnum, auto
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from n2n_kernels.described import Field
from n2n_kernels.layout import fold
from n2n_kernels.ops.memory import Memory
from n2n_kernels.table import VECTOR_BYTES

#: Bytes of output per tile; `n2n::kIdentityTileBytes`.
TILE_BYTES = 16384


class Column(IntEnum):
    """The fields of `n2n::IdentityTask`, in order."""

    DST = 0
    LEAD = auto()
    FIRST_TILE = auto()
    ELEMENTS = auto()
    DENSE = auto()
    EXTENT_1 = auto()
    EXTENT_2 = auto()
    STRIDE_0 = auto()
    STRIDE_1 = auto()
    STRIDE_2 = auto()
    FIRST = auto()
    OUTER_STEP = auto()
    INNER_STEP = auto()
    INNER = auto()
    ONES = auto()


class Call(NamedTuple):
    """The tensors to fill; the first one of each kind of them, and each one's kind (as of `Memory.kinds`)."""

    memory: Memory
    groups: list[int]
    first: list[int]
    number: list[int]


class Table(NamedTuple):
    """A launch's table, on the tensors' device: the tasks (int64 rows), then the task of each tile (int32). `buffer`
    must outlive the launch."""

    buffer: Tensor  # uint8
    tasks: int
    tiles: int

    @property
    def tasks_bytes(self) -> int:
        return self.tasks * len(Column) * 8


# A network has few shapes, each of them many times.
@functools.lru_cache(maxsize=4096)
def _walk(shape: tuple[int, ...], strides: tuple[int, ...], groups: int) -> tuple[int, ...]:
    """The columns that do not depend on the address, from ELEMENTS on."""
    kernel = fold(shape[2:], strides[2:])
    assert kernel is not None
    extents = (shape[0], shape[1], kernel[0])
    by_dim = (strides[0], strides[1], kernel[1])
    # In the order of the strides. A dimension of a single element may be anywhere.
    order = sorted(range(3), key=lambda d: -by_dim[d] if extents[d] > 1 else -math.inf)
    _, middle, inner = (extents[d] for d in order)
    # How many elements of the walk it is from one index of a dimension to the next.
    step = dict(zip(order, (middle * inner, inner, 1), strict=True))
    dense = all(extents[d] == 1 or by_dim[d] == step[d] for d in range(3))

    centre = 0  # in row-major order
    for n in shape[2:]:
        centre = centre * n + n // 2
    # The ones, as two progressions: over the groups, and over the channels of a group.
    per_group = shape[0] // groups
    outside, inside = (per_group * step[0], groups), (step[0] + step[1], min(per_group, shape[1]))
    if step[0] < step[1]:
        outside, inside = inside, outside
    if outside[1] == 1:  # a step beyond the end, so that there is no next one
        outside = (math.prod(extents) + VECTOR_BYTES, 1)
    return (
        math.prod(extents), dense, middle, inner, *(by_dim[d] for d in order),
        centre * step[2], outside[0], inside[0], inside[1], outside[1] * inside[1],
    )  # fmt: skip


def tables(call: Call) -> Iterator[tuple[torch.dtype, Table]]:
    """One for each dtype of which there are elements to write."""
    memory, groups, first, number = call
    walks = []
    for i in first:
        t = memory.tensors[i]
        walks.append((0,) * Column.ELEMENTS + _walk(t.shape, t.stride(), groups[i]))
    tasks = np.array(walks, dtype=np.int64)[number]
    tasks[:, Column.DST] = memory.addresses
    dtypes = memory.table[:, Field.DTYPE]
    for dtype in {int(dtypes[i]): None for i in first}:
        mine = np.flatnonzero((dtypes == dtype) & (tasks[:, Column.ELEMENTS] > 0))
        if mine.size:
            t = memory.tensors[mine[0]]
            yield t.dtype, _table(tasks[mine], t.itemsize, t.device)


def _table(tasks: np.ndarray, size: int, device: torch.device) -> Table:
    """Of tasks for elements of one size, to which only where they begin is added."""
    lead = np.where(tasks[:, Column.DENSE], tasks[:, Column.DST] % VECTOR_BYTES // size, 0)
    tasks[:, Column.LEAD] = lead
    tiles = -(-(tasks[:, Column.ELEMENTS] + lead) // (TILE_BYTES // size))
    tasks[:, Column.FIRST_TILE] = np.cumsum(tiles) - tiles
    tile_task = np.repeat(np.arange(len(tasks), dtype=np.int32), tiles)
    host = torch.from_numpy(np.concatenate([tasks.reshape(-1).view(np.uint8), tile_task.view(np.uint8)]))
    # From memory that is not pinned a copy has read its source when it returns, so there is nothing to wait for.
    return Table(host.to(device, non_blocking=True), len(tasks), len(tile_task))
