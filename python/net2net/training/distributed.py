"""Data parallel training under `torchrun`; without it, one process that is rank 0 of 1."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank_and_size() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if running() else (0, 1)


def running() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that `torchrun` has started, if it has; yields this process's own device.

    NCCL connects GPUs, of which each process takes its own, gloo CPUs.
    """
    if "WORLD_SIZE" not in os.environ or running():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def parallel(model: nn.Module) -> nn.Module:
    """`model`, with its gradients averaged over all processes.

    Every process keeps running statistics of its own (torch's default would give all of them the first one's, and
    forget the others' images); `average_buffers` joins them.
    """
    if not running():
        return model
    average_buffers(model)
    device = next(model.parameters()).device
    known = inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {"device_ids": [device] if device.type == "cuda" else None}
    options["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False
    return DistributedDataParallel(model, **options)


def average_buffers(*models: nn.Module | None) -> None:
    """Give every process the mean of all processes' running statistics.

    A running statistic is a mean over mini-batches already, so this is what one process would have that had seen all
    the mini-batches of this size.
    """
    if not running():
        return
    for model in models:
        for buffer in model.buffers() if model is not None else ():
            if buffer.is_floating_point():
                average(buffer)


def add(tensor: Tensor) -> Tensor:
    """`tensor`, in place the sum of all processes'."""
    if running():
        dist.all_reduce(tensor)
    return tensor


def average(tensor: Tensor) -> Tensor:
    """`tensor`, in place the mean of all processes'."""
    return add(tensor).div_(rank_and_size()[1])


def together(tensor: Tensor) -> Tensor:
    """The tensors of all processes, which have the same shape, one after the other along the first axis."""
    if not running():
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather(value: Any) -> list[Any]:
    """The values of all processes, in every one of them."""
    if not running():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Until every process is here."""
    if running():
        dist.barrier()
