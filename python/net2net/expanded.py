"""expanded: which tensors hold the same numbers along some of their dimensions, since they were made so.

A mask of tokens that is expanded to all heads shows that by its strides, until it is compared with something, inverted
or flattened: then each head has its own copy in memory. Labels tell from there on which elements are copies of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from net2net.shadows import Shadows, compact

#: Of larger ones nothing is kept.
_ELEMENTS = 2**22


class Expanded:
    """Labels of the elements of such tensors: equal ones are copies of one number."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._labels = Shadows()

    def saw(
        self, elementwise: bool, given: Sequence[Tensor], made: Iterable[Tensor], written: Iterable[Tensor]
    ) -> None:
        """An operation made tensors that are no views, or wrote to some."""
        found = []
        if elementwise and any(0 in t.stride() or t in self._labels for t in given):
            found = [(out, few) for out in made if (few := self._combined(given, out)) is not None]
        self._labels.forget(written)
        for out, few in found:
            self._set(out, few)

    def repeated(self, given: Tensor, out: Tensor, repeats: Sequence[int]) -> None:
        """`given.repeat(repeats)` made `out`."""
        if out.numel() > _ELEMENTS:
            return
        front = len(repeats) - given.dim()
        labels = self._of(given)
        labels = labels.reshape([1] * front + list(labels.shape))
        for d, r in enumerate(repeats):
            if d >= front and r > 1 and given.shape[d - front] > 1:  # a sequence, several times
                labels = labels.expand([given.shape[d - front] if at == d else -1 for at in range(labels.dim())])
                labels = labels.repeat([r if at == d else 1 for at in range(labels.dim())])
        self._set(out, labels)

    def copies(self, t: Tensor, dim: int) -> np.ndarray | None:
        """int64 [n]: for each position along a dimension, which of several slices it holds, numbered as they come.
        None, if that is not known, or all of them may be different."""
        labels = self._labels.get(t)
        if labels is None:
            return None
        few = compact(labels)
        if few.shape[dim] == 1:
            return np.zeros(t.shape[dim], dtype=np.int64)
        rows = few.movedim(dim, 0).reshape(few.shape[dim], -1).numpy()
        _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        if len(first) == len(rows):
            return None
        return np.argsort(np.argsort(first))[which.reshape(-1)]

    def _of(self, t: Tensor) -> Tensor:
        """Labels of the elements of `t`, with size 1 along dimensions along which they are all the same."""
        if (labels := self._labels.get(t)) is not None:
            return compact(labels)
        few = [n if step else 1 for n, step in zip(t.shape, t.stride(), strict=True)]
        return torch.arange(math.prod(few)).reshape(few)

    def _combined(self, given: Sequence[Tensor], out: Tensor) -> Tensor | None:
        """Labels of what an element-wise operation makes; None if no two elements are known to be the same."""
        if math.prod(t.numel() for t in given) >= 2**62 or any(t.numel() > _ELEMENTS for t in given):
            return None
        labels = torch.zeros((1,) * out.dim(), dtype=torch.int64)
        for t in given:
            few = self._of(t)
            labels = labels * (int(few.max()) + 1) + few if few.numel() else labels
        alike = labels.numel() < out.numel()
        return labels if alike or any(t in self._labels for t in given) else None

    def _set(self, out: Tensor, few: Tensor) -> None:
        """`few`: labels that can be broadcast to `out`."""
        # A part of something larger would leave the rest without labels.
        whole = out.numel() * out.element_size() == out.untyped_storage().nbytes()
        if whole and 0 < out.numel() <= _ELEMENTS and 0 not in out.stride():
            self._labels.set(out, few.expand(out.shape))
