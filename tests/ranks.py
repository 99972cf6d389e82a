"""Running a function in several processes at once, as the ranks of a gloo group."""

import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest
import torch
import torch.distributed as dist


def run(processes: ForkServerContext, ranks: int, work: Callable[..., Any], *arguments: Any, seconds: int = 120) -> Any:
    """Calls `work(rank, *arguments)` in each of `ranks` processes that are a group. What it returns in each of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = processes.Queue()
    started = [processes.Process(target=_rank, args=(queue, r, ranks, port, work, arguments)) for r in range(ranks)]
    for process in started:
        process.start()
    try:
        results = dict(queue.get(timeout=seconds) for _ in started)
    finally:
        for process in started:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
    for rank, result in results.items():
        if isinstance(result, str):
            pytest.fail(f"rank {rank}: {result}")
    return [pickle.loads(results[rank]) for rank in range(ranks)]


def _rank(queue: Any, rank: int, ranks: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
        result = pickle.dumps(work(rank, *arguments))  # tensors by value: this process ends
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        queue.put((rank, traceback.format_exc()))
        raise SystemExit(1) from None
    queue.put((rank, result))
