"""The task table of gather_scale, as `n2n::Task` of `csrc/gather_scale.h` lays it out."""

from enum import IntEnum, auto

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import dtypes, table
from n2n_kernels.layout import is_aligned, layout_of
from n2n_kernels.ops.gather_scale.request import Item


class Column(IntEnum):
    """The fields of `n2n::Task`, in order."""

    SRC = 0
    DST = auto()
    OUT_MAP = auto()
    IN_MAP = auto()
    OUT_SCALE = auto()
    IN_SCALE = auto()
    OUT_SEEN = auto()
    IN_NEXT = auto()
    IN_TOTAL = auto()
    O = auto()  # noqa: E741
    I = auto()  # noqa: E741
    K = auto()
    SRC_STRIDE_O = auto()
    SRC_STRIDE_I = auto()
    SRC_STRIDE_K = auto()
    DST_STRIDE_O = auto()
    DST_STRIDE_I = auto()
    DST_STRIDE_K = auto()
    K_OUTER = auto()
    TENSOR_ID = auto()
    SIGMA = auto()
    FIRST_TILE = auto()


_POINTERS = [Column(c) for c in range(Column.OUT_MAP, Column.IN_TOTAL + 1)]


def pack(items: list[Item], noise: str, device: torch.device) -> tuple[table.Table, list[Tensor]]:
    """The table for items of one dtype, none of them empty, and copies of sources that the kernels cannot read as they
    lie; both must outlive the launch."""
    builder = table.Builder()
    rows = np.zeros((len(items), len(Column)), dtype=np.int64)
    copies = []
    for row, item in zip(rows, items, strict=True):
        src = item.src
        # Kernel dimensions that do not fold, or a view of bytes at an odd address: not worth a case in the kernels.
        if layout_of(src) is None or not is_aligned(src):
            src = src.clone(memory_format=torch.contiguous_format)
            copies.append(src)
        _fill(row, src, item, noise, builder)
    elements = rows[:, Column.O] * rows[:, Column.I] * rows[:, Column.K]
    return builder.build(rows, elements, list(_POINTERS), Column.FIRST_TILE, device), copies


def _fill(row: np.ndarray, src: Tensor, item: Item, noise: str, builder: table.Builder) -> None:
    compute = dtypes.TABLE[src.dtype].compute_numpy
    source, target = layout_of(src), layout_of(item.out)
    assert source is not None
    assert target is not None
    row[Column.SRC], row[Column.DST] = src.data_ptr(), item.out.data_ptr()
    row[Column.O : Column.K + 1] = target[:3]
    row[Column.SRC_STRIDE_O : Column.SRC_STRIDE_K + 1] = source[3:]
    row[Column.DST_STRIDE_O : Column.DST_STRIDE_K + 1] = target[3:]
    # Walk the output in the order of its memory.
    row[Column.K_OUTER] = target.K > 1 and target.I > 1 and target.stride_i < target.stride_k
    row[Column.TENSOR_ID] = item.tensor_id
    row[Column.SIGMA : Column.SIGMA + 1].view(np.float64)[0] = item.sigma

    for column, axis in ((Column.OUT_MAP, item.out_map), (Column.IN_MAP, item.in_map)):
        if axis is not None:
            row[column] = builder.add((axis, "index"), axis.index.astype(np.int32))
    for column, scale in ((Column.OUT_SCALE, item.out_scale), (Column.IN_SCALE, item.in_scale)):
        if scale is not None:
            row[column] = builder.add(id(scale), scale.astype(compute))
    if noise == "replicas" and item.noisy_rows:
        assert item.out_map is not None
        row[Column.OUT_SEEN] = builder.add((item.out_map, "seen"), item.out_map.seen())
    if noise == "cancelling" and item.noisy_columns:
        assert item.in_map is not None
        row[Column.IN_NEXT] = builder.add((item.in_map, "next"), item.in_map.next())
        shares = np.ones(target.I) if item.in_scale is None else item.in_scale
        totals = item.in_map.replica_sums(shares).astype(compute)
        row[Column.IN_TOTAL] = builder.add((item.in_map, "total", id(item.in_scale)), totals)
