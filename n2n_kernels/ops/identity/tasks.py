"""The task table of identity_, as `n2n::IdentityTask` of `csrc/identity.h` lays it out."""

from enum import IntEnum, auto

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import table
from n2n_kernels.layout import layout_of


class Column(IntEnum):
    """The fields of `n2n::IdentityTask`, in order."""

    DST = 0
    O = auto()  # noqa: E741
    I = auto()  # noqa: E741
    K = auto()
    STRIDE_O = auto()
    STRIDE_I = auto()
    STRIDE_K = auto()
    K_OUTER = auto()
    PER_GROUP = auto()
    CENTRE = auto()
    FIRST_TILE = auto()


def pack(tensors: list[Tensor], groups: list[int], device: torch.device) -> table.Table:
    """The table for tensors of one dtype, none of them empty; it must outlive the launch."""
    rows = np.zeros((len(tensors), len(Column)), dtype=np.int64)
    for row, t, g in zip(rows, tensors, groups, strict=True):
        layout = layout_of(t)
        assert layout is not None
        row[Column.DST] = t.data_ptr()
        row[Column.O : Column.STRIDE_K + 1] = layout
        row[Column.K_OUTER] = layout.K > 1 and layout.I > 1 and layout.stride_i < layout.stride_k
        row[Column.PER_GROUP] = layout.O // g
        row[Column.CENTRE] = np.ravel_multi_index([n // 2 for n in t.shape[2:]], t.shape[2:]) if t.dim() > 2 else 0
    elements = rows[:, Column.O] * rows[:, Column.I] * rows[:, Column.K]
    return table.Builder().build(rows, elements, [], Column.FIRST_TILE, device)
