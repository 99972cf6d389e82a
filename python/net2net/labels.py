"""Labels: for every element of every tensor of a forward pass, the unit that it belongs to.

Labels are kept per storage, so that views, aliases and in-place writes need no rules of their own. Most are the same
along most dimensions (a channel's label holds for the whole image), so they are kept as *expanded* tensors, in which
such dimensions have stride 0 and cost nothing; only a view of another geometry than the storage was labelled in makes
them dense.
"""

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from net2net.units import CONSTANT, FIXED

Geometry = tuple[torch.Size, tuple[int, ...], int | torch.SymInt]


def _geometry(t: Tensor) -> Geometry:
    return t.shape, t.stride(), t.storage_offset()


def compact(labels: Tensor) -> Tensor:
    """`labels` with the dimensions along which they were expanded cut to size 1."""
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if stride == 0 and size > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def along(labels: Tensor, dim: int) -> Tensor | None:
    """The labels along `dim`, if they are the same along all other dimensions (constants aside); else None."""
    size = labels.shape[dim]
    rows = compact(labels).movedim(dim, 0)
    if rows.numel() == 0:
        return torch.full((size,), CONSTANT, dtype=torch.int32)
    rows = rows.reshape(rows.shape[0], -1)
    first = rows.amax(1)
    if not ((rows == first.unsqueeze(1)) | (rows == CONSTANT)).all():
        return None
    return first.expand(size)


def spread(vector: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """Labels of a tensor of `shape` that are `vector` along `dim` and the same along all other dimensions."""
    return vector.view([-1 if d == dim % len(shape) else 1 for d in range(len(shape))]).expand(shape)


def _compressed(labels: Tensor) -> Tensor:
    """`labels` again, but expanded along every dimension along which they are all the same."""
    shape = labels.shape
    for dim, size in enumerate(shape):
        first = labels.narrow(dim, 0, min(size, 1))
        if size > 1 and (labels == first).all():
            labels = first
    return labels.clone().expand(shape)


def _fills_its_range(t: Tensor) -> bool:
    """Whether `t` visits each element between its first and its last once, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


class _Entry:
    def __init__(self, t: Tensor, labels: Tensor) -> None:
        self.alive = StorageWeakRef(t.untyped_storage())
        self.geometry: Geometry | None = _geometry(t)
        self.labels = labels
        self.itemsize = t.element_size()

    def of(self, t: Tensor) -> Tensor:
        if self.geometry == _geometry(t):
            return self.labels
        dense = self._dense(t)
        labels = _compressed(dense.as_strided(*_geometry(t)))
        if t.numel() == dense.numel() and _fills_its_range(t):
            # This view covers the storage: from now on it is the geometry in which labels are kept.
            self.geometry, self.labels = _geometry(t), labels
        return labels

    def _dense(self, t: Tensor) -> Tensor:
        if self.geometry is not None:
            dense = torch.full((t.untyped_storage().nbytes() // self.itemsize,), FIXED, dtype=torch.int32)
            dense.as_strided(*self.geometry).copy_(self.labels)
            self.labels, self.geometry = dense, None
        return self.labels

    def write(self, t: Tensor, labels: Tensor) -> None:
        if self.geometry == _geometry(t):
            self.labels = labels
        else:
            self._dense(t).as_strided(*_geometry(t)).copy_(labels)


class Labels:
    """The labels of all storages of a forward pass. A storage that dies takes its labels along."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def get(self, t: Tensor) -> Tensor | None:
        """int32 labels of the shape of `t`, or None if its storage was never labelled."""
        entry = self._entries.get(t.untyped_storage()._cdata)
        if entry is None or entry.alive.expired() or entry.itemsize != t.element_size():
            return None
        return entry.of(t)

    def set(self, t: Tensor, labels: Tensor) -> None:
        key = t.untyped_storage()._cdata
        entry = self._entries.get(key)
        if entry is None or entry.alive.expired() or entry.itemsize != t.element_size():
            # A storage is labelled whole the first time, even where this tensor is a view of a part of it.
            self._entries[key] = _Entry(t, labels)
            if len(self._entries) % 1024 == 0:
                self._entries = {k: e for k, e in self._entries.items() if not e.alive.expired()}
        else:
            entry.write(t, labels)
