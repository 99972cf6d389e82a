"""The tensors that a plan is given, held against what it was made for."""

import numpy as np
import torch
from torch import Tensor

from n2n_kernels.described import WHAT, Field, described
from n2n_kernels.ops import checks
from n2n_kernels.ops.gather_scale.request import Kind
from n2n_kernels.ops.memory import Memory, check_types


class Expected:
    """What the sources must be: of these kinds, on this device."""

    def __init__(self, kinds: list[Kind], device: torch.device) -> None:
        self._kinds, self._device = kinds, device
        number = {kind: n for n, kind in enumerate(dict.fromkeys(kinds))}
        numbers = np.fromiter(map(number.__getitem__, kinds), np.int64, len(kinds))
        table = described([torch.empty(0, dtype=kind.dtype, device=device) for kind in number])
        for row, kind in zip(table, number, strict=True):
            row[Field.DIM] = len(kind.shape)
            row[Field.SHAPE : Field.SHAPE + len(kind.shape)] = kind.shape
        self._what = table[numbers, WHAT]
        self._itemsizes = np.array([kind.dtype.itemsize for kind in number], dtype=np.int64)[numbers]

    def check(self, srcs: list[Tensor]) -> Memory:
        checks.check_length("srcs", srcs, len(self._kinds), "the plan")
        check_types("srcs", srcs)
        try:
            memory = Memory(srcs, self._itemsizes)
        except RuntimeError:  # one of them is not strided
            self._check_each(srcs)
            raise
        if not np.array_equal(memory.table[:, WHAT], self._what):
            self._check_each(srcs)
        memory.check("srcs")
        return memory

    def _check_each(self, srcs: list[Tensor]) -> None:
        for i, (src, kind) in enumerate(zip(srcs, self._kinds, strict=True)):
            if src.shape != kind.shape or src.dtype != kind.dtype or src.device != self._device:
                raise ValueError(
                    f"srcs[{i}] ({src.dtype}, shape {tuple(src.shape)}, on {src.device}) is not what the plan was "
                    f"made for ({kind.dtype}, shape {tuple(kind.shape)}, on {self._device})"
                )
            if src.layout != torch.strided:
                raise TypeError(f"srcs[{i}].layout (={src.layout}) must be torch.strided")
