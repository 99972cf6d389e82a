"""Shadows: for every element of every tensor of a forward pass, a code that says which value it is.

Codes are kept per storage, so that views, aliases and in-place writes need no rules of their own. Most are the same
along most dimensions (a channel's code holds for the whole image), so they are kept as *expanded* tensors, in which
such dimensions have stride 0 and cost nothing; only a view of another geometry than the storage was labelled in makes
them dense.

A code is an int64: the value's id (units.py) in the lower half, and in the upper half which replica of its unit it is.
In a teacher that is always 0.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from net2net.units import FIXED
from net2net.views import Geometry, geometry_of, seen

_SHIFT = 32

_ENTRIES = 1024


def codes(ids: np.ndarray, replicas: np.ndarray | int = 0) -> np.ndarray:
    return np.asarray(ids | (np.asarray(replicas, dtype=np.int64) << _SHIFT))


def ids_of(codes: np.ndarray) -> np.ndarray:
    return np.asarray(codes & ((1 << _SHIFT) - 1))


def replicas_of(codes: np.ndarray) -> np.ndarray:
    return np.asarray(codes >> _SHIFT)


def compact(codes: Tensor) -> Tensor:
    """`codes` with the dimensions along which they were expanded cut to size 1."""
    shape, strides = codes.shape, codes.stride()
    if 0 not in strides or 0 in shape:
        return codes
    return codes.as_strided([n if s else 1 for n, s in zip(shape, strides, strict=True)], strides)


def spread(vector: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """Codes of a tensor of `shape` that are `vector` along `dim` and the same along all other dimensions."""
    return vector.reshape([-1 if d == dim % len(shape) else 1 for d in range(len(shape))]).expand(shape)


def compressed(codes: Tensor) -> Tensor:
    """`codes` again, but expanded along every dimension along which they are all the same."""
    shape = codes.shape
    codes = compact(codes)  # first of all: what is left is small
    for dim, size in enumerate(codes.shape):
        if size > 1:
            first = codes.narrow(dim, 0, 1)
            if _begins_alike(codes, dim) and bool((codes == first).all()):
                codes = first
    return codes.clone(memory_format=torch.contiguous_format).expand(shape)


def _begins_alike(codes: Tensor, dim: int) -> bool:
    """Whether the first line along a dimension has but one code: mostly, that tells what all of them have."""
    if not codes.numel():
        return True
    line = codes[tuple(slice(None) if d == dim else 0 for d in range(codes.dim()))]
    return bool((line == line[0]).all())


def _fills_its_range(t: Tensor) -> bool:
    """Whether `t` visits each element between its first and its last once, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    strides = [1]
    for n in reversed(shape[1:]):
        strides.insert(0, strides[0] * max(n, 1))
    return tuple(strides[: len(shape)])


class _Entry:
    def __init__(self, t: Tensor, codes: Tensor) -> None:
        self.alive = StorageWeakRef(t.untyped_storage())
        self.first = geometry_of(t)
        self.geometry: Geometry | None = self.first
        self.codes = codes
        self.itemsize = t.element_size()
        self._views: dict[Geometry, Tensor] = {}  # codes of views that took work, until something is written

    def of(self, t: Tensor) -> Tensor:
        geometry = geometry_of(t)
        if self.geometry == geometry:
            return self.codes
        if (known := self._views.get(geometry)) is None:
            known = self._seen_as(t)
            self._views[geometry] = known
        return known

    def _seen_as(self, t: Tensor) -> Tensor:
        if self._uniform():
            return self.codes.reshape(-1)[:1].view((1,) * t.dim()).expand(t.shape)
        if (part := self._reshaped(t)) is not None or (part := self._part(t)) is not None:
            return part
        dense = self._dense(t)
        codes = compressed(dense.as_strided(*geometry_of(t)))
        if t.numel() == dense.numel() and _fills_its_range(t):
            # This view covers the storage: from now on it is the geometry in which codes are kept.
            self.geometry, self.codes = geometry_of(t), codes
        return codes

    def _reshaped(self, t: Tensor) -> Tensor | None:
        """The codes of a view that only splits or merges dimensions, if that needs no dense codes."""
        if self.geometry is None or not t.is_contiguous() or t.storage_offset() != self.geometry[2]:
            return None
        shape, strides, _ = self.geometry
        if math.prod(shape) != t.numel() or strides != _contiguous(shape):
            return None
        try:
            self.codes = self.codes.view(t.shape)
        except RuntimeError:
            return None
        self.geometry = geometry_of(t)
        return self.codes

    def _part(self, t: Tensor) -> Tensor | None:
        """The codes of a view that takes some of the dimensions, slices, splits and merges of them."""
        if self.geometry is None:
            return None
        part = seen(self.codes, self.geometry, geometry_of(t), cut=False)
        if part is None and (part := seen(self.codes, self.geometry, geometry_of(t), cut=True)) is not None:
            part = compressed(part)
        return part

    def _uniform(self) -> bool:
        """One code for the whole storage, however it is viewed."""
        return self.geometry is not None and self.whole and compact(self.codes).numel() == 1

    whole = False

    def _dense(self, t: Tensor) -> Tensor:
        if self.geometry is not None:
            dense = torch.full((t.untyped_storage().nbytes() // self.itemsize,), FIXED, dtype=torch.int64)
            # By their places, since those of a view of windows overlap.
            at = torch.arange(len(dense)).as_strided(*self.geometry)
            dense[at.reshape(-1)] = self.codes.reshape(-1)
            self.codes, self.geometry = dense, None
        return self.codes

    def write(self, t: Tensor, codes: Tensor) -> None:
        self._views = {}
        if self.geometry == geometry_of(t):
            self.codes = codes
        else:
            self._dense(t).as_strided(*geometry_of(t)).copy_(codes)


class Shadows:
    """The codes of all storages of a forward pass. A storage that dies takes its codes along."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._most = _ENTRIES  # with so many, those of dead storages are removed

    def get(self, t: Tensor) -> Tensor | None:
        """int64 codes of the shape of `t`, or None if its storage has none."""
        entry = self._entry(t)
        return None if entry is None else entry.of(t)

    def stored(self, t: Tensor) -> Tensor:
        """All codes of its storage, which has some."""
        return compact(self._entries[t.untyped_storage()._cdata].codes)

    def along_dims(self, t: Tensor) -> bool:
        """Whether its dimensions are some of those in which its storage got codes, whole or a run of them."""
        geometry = self._entries[t.untyped_storage()._cdata].first
        size_of = {step: n for n, step in zip(*geometry[:2], strict=True) if n > 1}
        mine = [(n, step) for n, step in zip(t.shape, t.stride(), strict=True) if n > 1]
        return len({step for _, step in mine}) == len(mine) and all(n <= size_of.get(step, 0) for n, step in mine)

    def __contains__(self, t: Tensor) -> bool:
        """Whether its storage has codes."""
        return self._entry(t) is not None

    def _entry(self, t: Tensor) -> _Entry | None:
        entry = self._entries.get(t.untyped_storage()._cdata)
        if entry is None or entry.alive.expired() or entry.itemsize != t.element_size():
            return None
        return entry

    def set(self, t: Tensor, codes: Tensor) -> None:
        entry = self._entry(t)
        if entry is None:
            # A storage is labelled whole the first time, even where this tensor is a view of a part of it.
            entry = self._entries[t.untyped_storage()._cdata] = _Entry(t, codes)
            entry.whole = t.numel() * t.element_size() == t.untyped_storage().nbytes()
            if len(self._entries) > self._most:
                self._entries = {k: e for k, e in self._entries.items() if not e.alive.expired()}
                self._most = max(_ENTRIES, 2 * len(self._entries))
        else:
            entry.write(t, codes)

    def living(self) -> Iterator[tuple[int, Tensor]]:
        """The storages (by the address of their C++ object) that are still in memory, and their codes."""
        for key, entry in list(self._entries.items()):
            if not entry.alive.expired():
                yield key, entry.codes

    def forget(self, tensors: Iterable[Tensor]) -> None:
        for t in tensors:
            self._entries.pop(t.untyped_storage()._cdata, None)
