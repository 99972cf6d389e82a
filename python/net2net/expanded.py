"""expanded: which tensors hold the same numbers along some of their dimensions, since they were made so.

A mask of tokens that is expanded to all heads shows that by its strides, until it is compared with something, inverted
or flattened: then each head has its own copy in memory. Labels tell from there on which elements are copies of one: not
by their values, which may be equal for the lengths or the numbers of one example alone, but by the operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from net2net.shadows import Shadows, compact

#: Of larger ones nothing is kept.
_ELEMENTS = 2**22

#: Larger labels are numbered anew: of two that are not, a pair still makes a number of 64 bits.
_LABELS = 2**31

#: Operations that work along the dimensions that this argument names, and along others one by one.
_ALONG = {
    "cumsum": 1, "cumprod": 1, "logcumsumexp": 1, "_softmax": 1, "_log_softmax": 1, "_safe_softmax": 1, "flip": 1,
    "roll": 2, "sum": 1, "mean": 1, "amax": 1, "amin": 1,
}  # fmt: skip

#: Those that work along so many of the last dimensions.
_LAST = {
    "tril": 2, "triu": 2, "avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3, "max_pool2d_with_indices": 2,
    "max_pool3d_with_indices": 3, "_adaptive_avg_pool2d": 2, "_adaptive_avg_pool3d": 3,
}  # fmt: skip

#: The end of a slice that has none.
_END = 2**63 - 1


class Expanded:
    """Labels of the elements of such tensors: equal ones are copies of one number."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._labels = Shadows()
        #: Of storages that hold sequences several times: of how many dimensions. A view of others would split these, by
        #: a period that may be another one with another input.
        self._dims: dict[int, int] = {}

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """Something is written to these."""
        for t in tensors:
            self._labels.forget([t])
            self._dims.pop(t.untyped_storage()._cdata, None)

    def _known(self, t: Tensor) -> Tensor | None:
        labels = self._labels.get(t)
        return None if labels is None or self._dims.get(t.untyped_storage()._cdata, t.dim()) != t.dim() else labels

    def constant(self, out: Tensor) -> None:
        """`out` is filled with one number."""
        self._set(out, torch.zeros((), dtype=torch.int64))

    def elementwise(self, given: Sequence[Tensor], made: Iterable[Tensor], written: Sequence[Tensor]) -> None:
        """An element-wise operation made tensors in memory of their own, or wrote to some."""
        found = []
        if any(0 in t.stride() or t in self._labels for t in given):
            found = [(out, few) for out in made if (few := self._combined(given, out)) is not None]
        periodic = any(t.untyped_storage()._cdata in self._dims for t in given if t in self._labels)
        self.forget(written)
        for out, few in found:
            self._set(out, few, periodic)

    def filled(self, target: Tensor, value: Tensor | None) -> None:
        """All of `target`, perhaps a part of something, is filled with a number, or with what can be broadcast to
        it."""
        if self._known(target) is None or target.numel() > _ELEMENTS or not self._labels.along_dims(target):
            return self.forget([target])
        new = torch.zeros((), dtype=torch.int64) if value is None else self._of(value)
        most = int(self._labels.stored(target).max())
        return self._labels.set(target, (new + most + 1).expand(target.shape))

    def other(self, name: str, args: Any, kwargs: Any, out: Any, written: Sequence[Tensor]) -> None:
        """Any other operation."""
        self.forget(written)
        x = args[0] if args else None
        if not isinstance(x, Tensor) or x.dim() == 0:
            return
        if name == "slice":
            dim, end = args[1] if len(args) > 1 else 0, args[3] if len(args) > 3 else None
            # All of it, as long as the number does not say otherwise.
            clipped = end not in (None, _END) and out.shape[dim] == x.shape[dim] > 1
            if clipped and self._alike(x, dim % x.dim() - x.dim()):
                self.forget([x])
        elif (dims := worked_along(name, args, kwargs, x)) is not None and (0 in x.stride() or x in self._labels):
            first = out[0] if isinstance(out, tuple) else out
            alike = [d for d in range(x.dim()) if d not in dims and self._alike(x, d - x.dim())]
            if first.dim() == x.dim() and any(first.shape[d] == x.shape[d] > 1 for d in alike):
                few = [1 if d in alike else n for d, n in enumerate(first.shape)]
                self._set(first, torch.arange(math.prod(few)).reshape(few))

    def repeated(self, given: Tensor, out: Tensor, repeats: Sequence[int]) -> None:
        """`given.repeat(repeats)` made `out`."""
        if out.numel() > _ELEMENTS:
            return
        front, periodic = len(repeats) - given.dim(), False
        labels = self._of(given)
        labels = labels.reshape([1] * front + list(labels.shape))
        for d, r in enumerate(repeats):
            if d >= front and r > 1 and given.shape[d - front] > 1:  # a sequence, several times
                labels = labels.expand([given.shape[d - front] if at == d else -1 for at in range(labels.dim())])
                labels = labels.repeat([r if at == d else 1 for at in range(labels.dim())])
                periodic = True
        self._set(out, labels, periodic)

    def copies(self, t: Tensor, dim: int) -> np.ndarray | None:
        """int64 [n]: for each position along a dimension, which of several slices it holds, numbered as they come.
        None, if that is not known, or all of them may be different."""
        labels = self._known(t)
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

    def _alike(self, t: Tensor, d: int) -> bool:
        """Whether a tensor is the same along a dimension (counted from the last)."""
        if t.shape[d] == 1 or t.stride(d) == 0:
            return True
        labels = self._known(t)
        return labels is not None and compact(labels).shape[d] == 1

    def _of(self, t: Tensor) -> Tensor:
        """Labels of the elements of `t`, with size 1 along dimensions along which they are all the same."""
        if (labels := self._known(t)) is not None:
            return compact(labels)
        few = [n if step else 1 for n, step in zip(t.shape, t.stride(), strict=True)]
        return torch.arange(math.prod(few)).reshape(few)

    def _combined(self, given: Sequence[Tensor], out: Tensor) -> Tensor | None:
        """Labels of what an element-wise operation makes; None if no two elements are known to be the same."""
        if any(t.numel() > _ELEMENTS for t in given) or not out.numel():
            return None
        labels = torch.zeros((1,) * out.dim(), dtype=torch.int64)
        for t in given:
            few = _small(self._of(t))
            labels = _small(labels * (int(few.max()) + 1) + few)
        return labels if labels.numel() < out.numel() or any(t in self._labels for t in given) else None

    def _set(self, out: Tensor, few: Tensor, periodic: bool = False) -> None:
        """`few`: labels that can be broadcast to `out`."""
        # A part of something larger would leave the rest without labels.
        whole = out.numel() * out.element_size() == out.untyped_storage().nbytes()
        if whole and out.numel() > 0 and few.numel() <= _ELEMENTS and 0 not in out.stride():
            self.forget([out])
            self._labels.set(out, few.expand(out.shape))
            if periodic:
                self._dims[out.untyped_storage()._cdata] = out.dim()


def _small(labels: Tensor) -> Tensor:
    """Numbered anew, if they have become large."""
    return torch.unique(labels, return_inverse=True)[1] if int(labels.max()) > _LABELS else labels


def worked_along(name: str, args: Any, kwargs: Any, x: Tensor) -> set[int] | None:
    """The dimensions along which an operation does more than the same again and again; None, if that is not known."""
    if name in _LAST:
        return set(range(x.dim() - _LAST[name], x.dim()))
    if name == "constant_pad_nd":
        return {x.dim() - 1 - i // 2 for i, n in enumerate(args[1]) if n}
    if name not in _ALONG:
        return None
    dims = args[_ALONG[name]] if len(args) > _ALONG[name] else kwargs.get("dim", kwargs.get("dims"))
    if dims is None or dims == []:
        return None
    return {d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)}
