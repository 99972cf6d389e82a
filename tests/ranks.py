"""Running a function in several processes at once, as the ranks of a gloo group; and what the tests of sharded growth
do in each of them."""

import copy
import multiprocessing
import socket
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from net2net.shards import Spread, local
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard


def servers() -> ForkServerContext:
    """Processes that start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["net2net", "ranks", "torch.distributed.fsdp", "torch.distributed.tensor"])
    return context


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
    return [results[rank][0] for rank in range(ranks)]


def _rank(queue: Any, rank: int, ranks: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
        result = (work(rank, *arguments),)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        queue.put((rank, traceback.format_exc()))
        raise SystemExit(1) from None
    queue.put((rank, result))


# -- sharded networks --------------------------------------------------------------------------------------------------


def mesh_of(*sizes: int) -> DeviceMesh:
    """Over all ranks, or of the sizes (replicas, shards)."""
    names = ("replicate", "shard") if len(sizes) == 2 else ("shard",)
    return init_device_mesh("cpu", sizes or (dist.get_world_size(),), mesh_dim_names=names)


def sharder(mesh: DeviceMesh, along: int = 0) -> Callable[[nn.Module], nn.Module]:
    """Shards each child of a network, then the rest; along an axis where the parameter has it in equal pieces, else
    along 0. What shares parameters must be sharded together."""
    ranks = mesh.size(mesh.ndim - 1)

    def place(p: nn.Parameter) -> Shard:
        return Shard(along if p.dim() > along and p.shape[along] % ranks == 0 else 0)

    def shard(model: nn.Module) -> nn.Module:
        shared = len(list(model.parameters())) < len(list(model.named_parameters(remove_duplicate=False)))
        for child in model.children():
            if any(True for _ in child.parameters()) and not shared and not isinstance(child, nn.ModuleList):
                fully_shard(child, mesh=mesh, shard_placement_fn=place)
        fully_shard(model, mesh=mesh, shard_placement_fn=place)
        return model

    return shard


def sharded_copy(model: nn.Module, shard: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return shard(copy.deepcopy(model))


def assert_shards(found: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
    """Each is this rank's part of the whole one, bit for bit."""
    assert found.keys() == whole.keys()
    for name, t in found.items():
        assert t.shape == whole[name].shape, name
        mine, expected = local(t), Spread.of(name, t).window(whole[name].detach())
        same = torch.equal(mine.nan_to_num(nan=0.25), expected.nan_to_num(nan=0.25)) if mine.is_floating_point() else (
            torch.equal(mine, expected)
        )  # fmt: skip
        assert same, f"{name}: {(mine - expected).abs().max() if mine.numel() else mine.shape}"
