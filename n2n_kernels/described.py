"""What the tensors of a list are, read in one pass.

There may be a thousand of them, and to ask one for its dtype, shape, strides and address takes as long as to grow it.
The native module asks torch in C, through DLPack; where that cannot be, Python does, attribute by attribute.
"""

import itertools
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import native

#: Of shapes and strides, so many entries are told.
DIMS = 5


class Field(IntEnum):
    """The columns of a row. Device and dtype are numbers that stand for one, equal for equals."""

    ADDRESS = 0
    DEVICE = 1
    DTYPE = 2
    DIM = 3
    SHAPE = 4  # 0 beyond the dimensions
    STRIDES = SHAPE + DIMS
    WORDS = STRIDES + DIMS


#: The part of a row that says what a tensor is, its shape, and how it lies in memory.
WHAT = slice(Field.DEVICE, Field.STRIDES)
SHAPE = slice(Field.SHAPE, Field.STRIDES)
STRIDES = slice(Field.STRIDES, Field.WORDS)


def described(tensors: list[Tensor]) -> np.ndarray:
    """int64 `[tensors, Field.WORDS]`. They must be of no subclass of Tensor, and strided."""
    if _CAPSULE is not None:
        table = np.empty((len(tensors), Field.WORDS), np.int64)
        try:
            native.module().describe(_CAPSULE, tensors, table.ctypes.data)
            return table
        except (RuntimeError, BufferError):  # on a device without memory, say
            pass
    return in_python(tensors)


def in_python(tensors: list[Tensor]) -> np.ndarray:
    """The same (with other numbers for dtypes and devices) by asking for one attribute after the other."""
    table = np.zeros((len(tensors), Field.WORDS), np.int64)
    for row, t in zip(table, tensors, strict=True):
        told = min(t.dim(), DIMS)
        row[Field.ADDRESS] = t.data_ptr()
        row[Field.DEVICE] = _number(t.device)
        row[Field.DTYPE] = _number(t.dtype)
        row[Field.DIM] = t.dim()
        row[Field.SHAPE : Field.SHAPE + told] = t.shape[:told]
        row[Field.STRIDES : Field.STRIDES + told] = t.stride()[:told]
    return table


_NUMBERS: dict[torch.device | torch.dtype, int] = {}
_UNUSED = itertools.count(-1, -1)  # none of DLPack's numbers is negative


def _number(x: torch.device | torch.dtype) -> int:
    number = _NUMBERS.get(x)
    return _NUMBERS.setdefault(x, next(_UNUSED)) if number is None else number


def _capsule() -> object | None:
    """Torch's functions for DLPack, if they are there and tell of tensors what torch does, strides of dimensions of
    extent 1 included."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if native.missing is not None or type(capsule).__name__ != "PyCapsule":
        return None
    if not native.module().can_describe(capsule):
        return None
    tensors = [torch.zeros(8), torch.zeros(40)[1:].as_strided((2, 1, 3), (12, 7, 2)), torch.zeros(0, 2)]
    table = np.empty((len(tensors), Field.WORDS), np.int64)
    native.module().describe(capsule, tensors, table.ctypes.data)
    table[:, [Field.DEVICE, Field.DTYPE]] = (asked := in_python(tensors))[:, [Field.DEVICE, Field.DTYPE]]
    return capsule if np.array_equal(table, asked) else None


_CAPSULE = _capsule()
