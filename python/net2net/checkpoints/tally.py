"""What goes by on the way into a file: how much of it, and numbers that are none."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import torch
from torch import Tensor

from n2n_kernels import dtypes
from net2net.checkpoints.streams import PIECE_BYTES, Stream

#: Called with the name of a tensor of which a piece has been written, the bytes that have been so far, and all of them.
Progress = Callable[[str, int, int], None]


class Tally:
    """Counts what is written.

    Attributes:
        written: bytes.
        not_finite: tensors with NaN or infinities -> how many of them.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.written = 0
        self.not_finite: dict[str, int] = {}
        self._progress, self._total = progress, total

    def count(self, name: str, piece: Tensor) -> None:
        """A piece of the tensor `name` that is written now."""
        if (count := _not_finite(piece)) > 0:
            self.not_finite[name] = self.not_finite.get(name, 0) + count
        self.written += piece.nbytes
        if self._progress is not None:
            self._progress(name, self.written, self._total)

    def write(self, file: BinaryIO, name: str, stream: Stream) -> None:
        """The whole stream, where the file is. While a piece is written, the next one is made."""
        if stream.nbytes <= PIECE_BYTES:  # not worth a thread
            for piece in stream.pieces():
                file.write(_bytes(piece))
                self.count(name, piece)
            return
        with ThreadPoolExecutor(1) as writer:
            written: Future[int] | None = None
            for piece in stream.pieces():
                if written is not None:
                    written.result()
                written = writer.submit(file.write, _bytes(piece))
                self.count(name, piece)
            if written is not None:
                written.result()


def _bytes(piece: Tensor) -> memoryview:
    return piece.view(torch.uint8).numpy().data


def _not_finite(piece: Tensor) -> int:
    if piece.dtype not in dtypes.TABLE:
        return 0
    # The least and the largest tell, without an intermediate result of the piece's size.
    if all(bool(end.isfinite()) for end in torch.aminmax(piece)):
        return 0
    return int((~piece.isfinite()).sum())


def reserve(file: BinaryIO, size: int) -> None:
    """Takes the room for `size` bytes, so that a full disk is noticed before the work and not after it.

    Raises:
        OSError: there is not enough.
    """
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
