"""Tensors that are made some rows at a time, because they do not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from net2net.checkpoints.stored import Stored

#: A piece has about so many bytes, or is one row that is larger. Memory of this size is used again and again; larger
#: pieces would be given back to the system and asked for anew each time, which takes longer than to fill them.
PIECE_BYTES = 2**22


def nothing() -> None:
    """For a stream that holds on to nothing."""


@dataclass(frozen=True, eq=False)
class Stream:
    """A tensor as a function of which of its rows are wanted.

    Attributes:
        dtype, shape: of the tensor.
        rows: in so many parts of equal size its memory can be cut.
        make: from the first row and the one behind the last to a tensor with their bytes, in the tensor's own dtype.
        release: called when a piece has been used, and nothing that it was made of is needed any more.
        drop: called when the last one has been.
        tied: where it comes from, file first, and what becomes of it; equal for streams of one and the same tensor.
            None: it is new.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    rows: int
    make: Callable[[int, int], Tensor]
    release: Callable[[], None] = nothing
    drop: Callable[[], None] = nothing
    tied: tuple[Any, ...] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[Tensor]:
        """The tensor's memory, `[elements]` each, from its first element to its last one."""
        if not self.nbytes:
            return
        step = max(1, PIECE_BYTES * self.rows // self.nbytes)
        for begin in range(0, self.rows, step):
            yield self.make(begin, min(begin + step, self.rows)).contiguous().view(-1)
            self.release()
        self.drop()

    def whole(self) -> Tensor:
        """The tensor itself: for those that are small."""
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.cat([piece.clone() for piece in self.pieces()]).view(self.shape)


def unchanged(stored: Stored) -> Stream:
    """The tensor as it is in its file."""

    def make(begin: int, end: int) -> Tensor:
        if stored.stride is not None:
            return stored.tensor()
        return stored.file.flat(stored.dtype, stored.offset + begin * stored.dtype.itemsize, end - begin)

    rows = 1 if stored.stride is not None else stored.numel
    return Stream(stored.dtype, stored.shape, rows, make, stored.release, tied=stored.place)


def zeros(stored: Stored) -> Stream:
    """Zeros of this dtype and shape."""

    def make(begin: int, end: int) -> Tensor:
        return torch.zeros(end - begin, dtype=stored.dtype)

    return Stream(stored.dtype, stored.shape, stored.numel, make)


def known(t: Tensor) -> Stream:
    """A tensor that is at hand."""
    flat = t.detach().cpu().contiguous().view(-1)
    return Stream(t.dtype, tuple(t.shape), flat.numel(), lambda begin, end: flat[begin:end])
