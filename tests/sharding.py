"""Sharded networks for tests: how they are made, and how they are held against whole ones."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from models import EXAMPLES, Example
from net2net.rmsprop import RMSpropTF
from net2net.shards import Spread, local
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.optim import SGD, Adam, Optimizer, RMSprop

OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.01, "momentum": 0.9}),
    "adam": (Adam, {"lr": 0.01, "amsgrad": True}),
    "rmsprop": (RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True, "eps": 0.5}),
    "rmsprop-tf": (RMSpropTF, {"lr": 0.01, "eps": 1.0}),
}


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


def mlp_even() -> nn.Module:
    """Whose layers can be cut evenly along both axes."""
    return nn.Sequential(
        nn.Linear(4, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 12, bias=False),
        nn.GELU(),
        nn.Linear(12, 4),
    )


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten()
    )


class Blocks(nn.Module):
    """Residual blocks to repeat, with normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.block = Block()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.norm(self.a(x)).sigmoid())


MODELS = {
    **EXAMPLES,
    "mlp_even": Example(mlp_even, (6, 4)),
    "grouped": Example(grouped, (2, 4, 6, 6)),
    "blocks": Example(Blocks, (6, 5)),
}


# -- what each rank does -----------------------------------------------------------------------------------------------


def optimizer_of(kind: str, model: nn.Module) -> Optimizer:
    cls, options = OPTIMIZERS[kind]
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.0},
        {"params": [p for p in model.parameters() if p.dim() == 1]},
    ]
    return cls(groups, **options)


def with_state(kind: str, model: nn.Module) -> Optimizer:
    """An optimizer that has taken two steps with random gradients, which leave the parameters as they were."""
    optimizer = optimizer_of(kind, model)
    g = torch.Generator().manual_seed(3)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)
        optimizer.step()
    with torch.no_grad():
        for p, old in zip(model.parameters(), before, strict=True):
            p.copy_(old)
    optimizer.zero_grad()
    return optimizer


def sharded_optimizer(kind: str, optimizer: Optimizer, model: nn.Module, sharded: nn.Module) -> Optimizer:
    """The same over the sharded parameters, with the shards of its state."""
    mine = optimizer_of(kind, sharded)
    for p in sharded.parameters():
        p.grad = torch.zeros_like(p)
    values = [local(p).clone() for p in sharded.parameters()]
    mine.step()
    for p, old, whole in zip(sharded.parameters(), values, model.parameters(), strict=True):
        p.grad = None
        local(p).copy_(old)
        for key, value in optimizer.state[whole].items():
            target = mine.state[p][key]
            if isinstance(value, Tensor) and value.dim():
                local(target).copy_(Spread.of(key, target).window(value))
            elif isinstance(value, Tensor):
                target.copy_(value)
    return mine


def state_of(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    names = {p: name for name, p in model.named_parameters()}
    found = {}
    for p, entries in optimizer.state.items():
        found |= {f"{names[p]} {key}": torch.as_tensor(value) for key, value in entries.items()}
    return found


def groups_of(optimizer: Optimizer, model: nn.Module) -> list[dict[str, Any]]:
    names = {p: name for name, p in model.named_parameters()}
    return [{**group, "params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]
