"""channel_moments and tensor_moments on the compiled backends, `cpu` and `cuda`."""

from collections.abc import Callable

import torch
from torch import Tensor

from n2n_kernels import dtypes, native
from n2n_kernels.ops.channel_moments.channels import Channels
from n2n_kernels.ops.channel_moments.tasks import Column, chunks_per_block, pack


def run(c: Channels) -> tuple[Tensor, Tensor]:
    """(mean, var), each `[C]` in the compute type."""
    device, channels, chunk = c.x.device, c.sizes[1], c.chunk
    chunks = -(-c.elements // chunk)
    # For each channel its pivot, and two sums per chunk.
    scratch = torch.empty(channels * (1 + 2 * chunks), dtype=torch.float64, device=device)
    dtype = dtypes.TABLE[c.x.dtype]
    mean = torch.empty(channels, dtype=dtype.compute, device=device)
    var = torch.empty_like(mean)
    with native.launching_on(device) as stream:
        native.module().channel_moments(
            device.type == "cuda",
            dtype.code,
            c.x.data_ptr(),
            c.sizes,
            c.strides,
            chunk,
            chunks,
            scratch.data_ptr(),
            mean.data_ptr(),
            var.data_ptr(),
            torch.get_num_threads(),
            stream,
        )
    return mean, var


def run_tensors(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, var) of tensors without gaps, each float64 `[tensors]`."""
    device, count = tensors[0].device, len(tensors)
    cuda = device.type == "cuda"
    table = pack(tensors, device)
    scratch = torch.empty(count + 2 * table.partials, dtype=torch.float64, device=device)
    mean = torch.empty(count, dtype=torch.float64, device=device)
    var = torch.empty_like(mean)
    tasks = table.tasks.data_ptr()
    with native.launching_on(device) as stream:
        for dtype, block_task in table.block_tasks.items():
            native.module().tensor_moments(
                cuda,
                dtypes.TABLE[dtype].code,
                tasks,
                count,
                block_task.data_ptr(),
                block_task.numel(),
                scratch.data_ptr(),
                torch.get_num_threads(),
                stream,
            )
        native.module().finish_tensor_moments(
            cuda, tasks, count, scratch.data_ptr(), mean.data_ptr(), var.data_ptr(), stream
        )
    return mean, var


def run_in_parts(t: Tensor, elements: int, after: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """`run_tensors` of one tensor on the CPU that is not empty, so many elements (whole blocks) at a time."""
    table = pack([t], t.device)
    tasks = table.tasks.clone()
    (block_task,) = table.block_tasks.values()
    scratch = torch.empty(1 + 2 * table.partials, dtype=torch.float64)
    mean = torch.empty(1, dtype=torch.float64)
    var = torch.empty_like(mean)
    step = elements // (int(tasks[0, Column.CHUNK]) * chunks_per_block(t.dtype))
    for begin in range(0, block_task.numel(), step):
        part = block_task[begin : begin + step]
        tasks[0, Column.FIRST_BLOCK] = -begin  # blocks are counted from the launch's first one
        native.module().tensor_moments(
            False,
            dtypes.TABLE[t.dtype].code,
            tasks.data_ptr(),
            1,
            part.data_ptr(),
            part.numel(),
            scratch.data_ptr(),
            torch.get_num_threads(),
            0,
        )
        after()
    native.module().finish_tensor_moments(
        False, tasks.data_ptr(), 1, scratch.data_ptr(), mean.data_ptr(), var.data_ptr(), 0
    )
    return mean, var
