"""The task table of tensor_moments, as `n2n::TensorTask` of `csrc/channel_moments.h` lays it out."""

from enum import IntEnum, auto
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from n2n_kernels.ops.channel_moments.order import LANES, chunk_of
from n2n_kernels.table import VECTOR_BYTES

#: Threads of a block; `n2n::kMomentsThreads`.
THREADS = 256


class Column(IntEnum):
    """The fields of `n2n::TensorTask`, in order."""

    SRC = 0
    ELEMENTS = auto()
    CHUNK = auto()
    CHUNKS = auto()
    FIRST_PARTIAL = auto()
    FIRST_BLOCK = auto()


class Table(NamedTuple):
    """A call's table, on the tensors' device. `buffer` must outlive the launches; the others are views of it."""

    buffer: Tensor
    tasks: Tensor  # int64 [tensors, words]
    block_tasks: dict[torch.dtype, Tensor]  # int32 [blocks]: the task of each block of a dtype's launch
    partials: int  # chunks of all tensors


def chunks_per_block(dtype: torch.dtype) -> int:
    """A chunk's lanes are shared out among threads that read one vector at a time."""
    return THREADS * (VECTOR_BYTES // dtype.itemsize) // LANES


def pack(tensors: list[Tensor], device: torch.device) -> Table:
    """The table for tensors without gaps."""
    tasks = np.zeros((len(tensors), len(Column)), dtype=np.int64)
    tasks[:, Column.SRC] = [t.data_ptr() for t in tensors]
    tasks[:, Column.ELEMENTS] = elements = [t.numel() for t in tensors]
    tasks[:, Column.CHUNK] = [chunk_of(n) for n in elements]
    tasks[:, Column.CHUNKS] = chunks = -(-tasks[:, Column.ELEMENTS] // tasks[:, Column.CHUNK])
    tasks[:, Column.FIRST_PARTIAL] = chunks.cumsum() - chunks
    block_tasks = {}
    for dtype in {t.dtype: None for t in tensors}:
        mine = np.array([t.dtype == dtype for t in tensors])
        blocks = mine * -(-chunks // chunks_per_block(dtype))
        tasks[mine, Column.FIRST_BLOCK] = (blocks.cumsum() - blocks)[mine]
        block_tasks[dtype] = np.repeat(np.arange(len(tensors), dtype=np.int32), blocks)
    host = np.concatenate([tasks.reshape(-1).view(np.uint8), *(b.view(np.uint8) for b in block_tasks.values())])
    # From memory that is not pinned a copy has read its source when it returns, so there is nothing to wait for.
    buffer = torch.from_numpy(host).to(device, non_blocking=True)
    parts = buffer[tasks.nbytes :].view(torch.int32).split([b.size for b in block_tasks.values()])
    return Table(
        buffer,
        buffer[: tasks.nbytes].view(torch.int64).view(tasks.shape),
        dict(zip(block_tasks, parts, strict=True)),
        int(chunks.sum()),
    )
