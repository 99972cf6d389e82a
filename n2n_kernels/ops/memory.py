"""The memory that tensors lie in: whether it is there, and whether two of them write to it.

There may be a thousand tensors, and to look at one takes as long as to grow it. So they are looked at as a table, and
one by one only where something is wrong.
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from n2n_kernels.described import DIMS, SHAPE, STRIDES, Field, described
from n2n_kernels.layout import layout_of, reach

#: What has memory of its own. (A torch.nn.Buffer is made as a Tensor.)
_PLAIN: frozenset[type] = frozenset({Tensor, torch.nn.Parameter})


class Memory:
    """The memory of strided tensors as it is now: they may be given other memory later.

    Attributes:
        tensors: those that it is of.
        table: what `described` says of them.
        storages: as long as these are there, so is the memory.
        itemsizes: int64 [tensors]
        bytes: int64 [tensors]: from the first element to past the last; 0 for a tensor without elements.
    """

    def __init__(self, tensors: list[Tensor], itemsizes: np.ndarray | None = None) -> None:
        self.tensors = tensors
        self.table = described(tensors)
        self.storages = list(map(Tensor.untyped_storage, tensors))
        if itemsizes is None:
            itemsizes = np.fromiter(map(attrgetter("itemsize"), tensors), np.int64, len(tensors))
        self.itemsizes = itemsizes
        shape, dims = self.table[:, SHAPE], self.table[:, Field.DIM]
        elements = 1 + ((shape - 1) * self.strides).sum(1)  # a dimension that is not there has stride 0
        elements[((shape == 0) & (np.arange(DIMS) < dims[:, None])).any(1)] = 0
        for i in np.flatnonzero(dims > DIMS).tolist():
            elements[i] = reach(tensors[i])
        self.bytes = elements * self.itemsizes

    @property
    def addresses(self) -> np.ndarray:
        """int64 [tensors]"""
        return self.table[:, Field.ADDRESS]

    @property
    def strides(self) -> np.ndarray:
        """int64 [tensors, DIMS], filled up with 0"""
        return self.table[:, STRIDES]

    @property
    def odd(self) -> list[int]:
        """The positions of tensors at addresses that are not multiples of their dtype, such as views of a file."""
        return np.flatnonzero(self.addresses % self.itemsizes).tolist()

    def kinds(self, more: Sequence[int]) -> tuple[list[int], list[int]]:
        """Which tensors are alike in all but their addresses, and in one more number each; they have no more than DIMS
        dimensions.

        Returns:
            The first tensor of each kind, in order, and each tensor's kind.
        """
        rows = self.table[:, Field.ADDRESS + 1 :].tobytes()
        step = len(rows) // len(more)
        known: dict[tuple[bytes, int], int] = {}
        keys = zip((rows[at : at + step] for at in range(0, len(rows), step)), more, strict=True)
        numbers = [known.setdefault(key, len(known)) for key in keys]
        first: dict[int, int] = {}
        for i, number in enumerate(numbers):
            first.setdefault(number, i)
        return list(first.values()), numbers

    def check(self, name: str) -> None:
        """`check_memory` of each tensor of `name`."""
        check_types(name, self.tensors)
        n = len(self.tensors)
        there = np.fromiter(map(torch.UntypedStorage.nbytes, self.storages), np.int64, n)
        begins = np.fromiter(map(Tensor.storage_offset, self.tensors), np.int64, n) * self.itemsizes
        wrong = ((begins + self.bytes > there) | (self.addresses == 0)) & (self.bytes > 0)
        if wrong.any() or any(map(Tensor.is_neg, self.tensors)):
            for i, t in enumerate(self.tensors):
                check_memory(f"{name}[{i}]", t)

    def check_writable(self, name: str) -> None:
        """Each tensor must have an aligned, canonical layout without overlaps in itself or with another one."""
        for i in self.odd:
            address = int(self.addresses[i])
            raise ValueError(f"{name}[{i}] lies at an address (={address:#x}) that is not a multiple of its dtype")
        if not all(map(Tensor.is_contiguous, self.tensors)):
            for i, t in enumerate(self.tensors):
                if not t.is_contiguous():
                    _check_gaps(f"{name}[{i}]", t)
        self.check_disjoint(name, name, self.tensors)

    def check_disjoint(self, name: str, other_name: str, others: Sequence[Tensor | None]) -> None:
        """No tensor of `name` may reach into the bytes between the first and the last of one of `others` (of another
        one, where the lists are the same)."""
        mine = np.flatnonzero(self.bytes)
        mine = mine[np.argsort(self.addresses[mine], kind="stable")]
        begins = self.addresses[mine]
        ends = begins + self.bytes[mine]
        if (overlaps := np.flatnonzero(ends[:-1] > begins[1:])).size:
            i = int(overlaps[0])
            raise ValueError(f"{name}[{mine[i]}] overlaps {name}[{mine[i + 1]}]")
        there = [j for j, t in enumerate(others) if t is not None]
        if others is self.tensors or not mine.size or not there:
            return
        other = Memory([others[j] for j in there])  # type: ignore[misc]
        # What does not overlap is ordered by its ends as by its beginnings.
        before = np.searchsorted(begins, other.addresses + other.bytes) - 1
        if (overlaps := np.flatnonzero((other.bytes > 0) & (before >= 0) & (ends[before] > other.addresses))).size:
            j = int(overlaps[0])
            raise ValueError(f"{name}[{mine[before[j]]}] overlaps {other_name}[{there[j]}]")


def check_types(name: str, tensors: Sequence[Tensor]) -> None:
    if not _PLAIN.issuperset(map(type, tensors)):
        for i, t in enumerate(tensors):
            check_type(f"{name}[{i}]", t)


def check_type(name: str, t: Tensor) -> None:
    """`t` must not be of a subclass, which stands for something else than what is in its memory."""
    if type(t) not in _PLAIN:
        raise TypeError(
            f"{name} (={type(t).__name__}) is a tensor subclass, which the kernels cannot read; pass its data"
        )


def check_memory(name: str, t: Tensor) -> None:
    """`t` must have memory of its own that a kernel can read, as far as its shape and strides reach."""
    check_type(name, t)
    if t.is_neg():
        raise ValueError(f"{name} is a view that stands for the negative of what is in memory; pass resolve_neg()")
    if t.is_meta or not (elements := reach(t)):
        return
    there, needed = t.untyped_storage().nbytes(), (t.storage_offset() + elements) * t.itemsize
    if there == 0:
        raise ValueError(f"{name} (shape {tuple(t.shape)}) has no memory: its storage was freed")
    if there < needed:
        raise ValueError(
            f"{name} (shape {tuple(t.shape)}) needs a storage of {needed} bytes, but its own was shortened to {there}"
        )
    if t.data_ptr() == 0:
        raise ValueError(f"{name} (shape {tuple(t.shape)}) has no memory: it stands for zeros, or torch.func wraps it")


def _check_gaps(name: str, t: Tensor) -> None:
    """`t`, which is not contiguous, must have a canonical layout without overlaps in itself."""
    if layout_of(t) is None:
        raise ValueError(f"{name} has kernel dimensions that are not dense (strides {t.stride()})")
    last = 0  # the last element that the dimensions of smaller strides reach
    for stride, n in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1):
        if t.numel() and stride <= last:
            raise ValueError(f"{name} overlaps itself (shape {tuple(t.shape)}, strides {t.stride()})")
        last += (n - 1) * stride


def mark_written(tensors: Iterable[Tensor]) -> None:
    """Tells autograd that `tensors` are about to change, so that a backward pass that saved one of them raises.

    In-place ops of torch do this in a kernel of the dispatcher that operators of a library do not get by themselves.
    """
    given = list(tensors)
    if any(map(Tensor.is_inference, given)):
        given = [t for t in given if not t.is_inference()]
    torch.autograd.graph.increment_version(given)
