"""The tensors that a plan is given, held against what it was made for.

There may be a thousand of them, and to look at one takes as long as to grow it. So they are compared as a table, and
one by one only where something is wrong.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from n2n_kernels.described import STRIDES, WHAT, Field, described
from n2n_kernels.ops import checks
from n2n_kernels.ops.gather_scale.request import Kind


@dataclass(frozen=True, eq=False)
class Sources:
    """The tensors to read, and their memory as it is now: they may be given other memory later."""

    tensors: list[Tensor]
    storages: list[torch.UntypedStorage]
    table: np.ndarray  # of `described`
    odd: list[int]  # positions of those at addresses that are not multiples of their dtype

    @property
    def addresses(self) -> np.ndarray:
        """int64 [tensors]"""
        return self.table[:, Field.ADDRESS]

    @property
    def strides(self) -> np.ndarray:
        """int64 [tensors, dimensions], filled up with 0"""
        return self.table[:, STRIDES]


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

    def check(self, srcs: list[Tensor]) -> Sources:
        checks.check_length("srcs", srcs, len(self._kinds), "the plan")
        checks.check_types("srcs", srcs)
        try:
            table = described(srcs)
        except RuntimeError:  # one of them is not strided
            self._check_each(srcs)
            raise
        if not np.array_equal(table[:, WHAT], self._what):
            self._check_each(srcs)
        if any(map(Tensor.is_neg, srcs)):
            for i, src in enumerate(srcs):
                checks.check_memory(f"srcs[{i}]", src)
        odd = np.flatnonzero(table[:, Field.ADDRESS] % self._itemsizes).tolist()
        return Sources(srcs, list(map(Tensor.untyped_storage, srcs)), table, odd)

    def _check_each(self, srcs: list[Tensor]) -> None:
        for i, (src, kind) in enumerate(zip(srcs, self._kinds, strict=True)):
            if src.shape != kind.shape or src.dtype != kind.dtype or src.device != self._device:
                raise ValueError(
                    f"srcs[{i}] ({src.dtype}, shape {tuple(src.shape)}, on {src.device}) is not what the plan was "
                    f"made for ({kind.dtype}, shape {tuple(kind.shape)}, on {self._device})"
                )
            if src.layout != torch.strided:
                raise TypeError(f"srcs[{i}].layout (={src.layout}) must be torch.strided")

    def check_reach(self, sources: Sources, reaches: np.ndarray) -> None:
        """A storage may have been freed, or be shorter than it was when its tensor was made.

        Args:
            reaches: int64 [tensors]: the bytes from a tensor's first element to past its last.
        """
        n = len(sources.tensors)
        begins = np.fromiter(map(Tensor.storage_offset, sources.tensors), np.int64, n) * self._itemsizes
        there = np.fromiter(map(torch.UntypedStorage.nbytes, sources.storages), np.int64, n)
        for i in np.flatnonzero((begins + reaches > there) & (reaches > 0)).tolist():
            checks.check_memory(f"srcs[{i}]", sources.tensors[i])
