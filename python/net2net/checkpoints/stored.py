"""Tensors that lie in files, which are mapped into memory and read when they are looked at."""

from __future__ import annotations

import math
import mmap
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class MappedFile:
    """A file, for reading alone. Its pages are the system's, which takes them back when it needs them; those that a
    process has looked at count as its own until `release`.

    Raises:
        ValueError: the file cannot be read; names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole: mmap.mmap | None = None
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size:
                    self._whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error

    def bytes(self, begin: int, end: int) -> bytes:
        return b"" if self._whole is None else self._whole[begin:end]

    def flat(self, dtype: torch.dtype, offset: int, count: int) -> Tensor:
        """So many numbers from the byte `offset` on: the file's own memory, which must not be written to.

        A copy where they do not lie at a multiple of their size, which kernels want.
        """
        if count == 0 or self._whole is None:
            return torch.empty(0, dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            t = torch.frombuffer(self._whole, dtype=dtype, count=count, offset=offset)
        return t.clone() if t.data_ptr() % dtype.itemsize else t

    def release(self) -> None:
        """Let go of all pages; what is looked at again is read again, from the system's cache if it is still there."""
        if self._whole is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._whole.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in a file.

    Attributes:
        offset: of its first element, in bytes.
        stride: in elements; None: it is contiguous.
    """

    file: MappedFile
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    stride: tuple[int, ...] | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def place(self) -> tuple[Any, ...]:
        """The file and where in it; equal for tensors that are one in the file (tied weights)."""
        return self.file.path, self.offset, self.dtype, self.shape, self.stride

    def meta(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def tensor(self) -> Tensor:
        """It itself, in the file's memory: not to be written to."""
        if self.stride is None or 0 in self.shape:
            return self.file.flat(self.dtype, self.offset, self.numel).view(self.shape)
        reach = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return self.file.flat(self.dtype, self.offset, reach).as_strided(self.shape, self.stride)

    def release(self) -> None:
        self.file.release()
