"""Growing sharded networks: the same bits as growing the whole network and sharding it then."""

import copy
from multiprocessing.context import ForkServerContext
from typing import Any

import net2net
import pytest
import ranks
import torch
import torch.distributed as dist
from models import EXAMPLES
from net2net.rmsprop import RMSpropTF
from net2net.shards import Spread, local
from net2net.skeleton import Tensors
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RMSprop

if not dist.is_available():
    pytest.skip("torch is built without distributed training", allow_module_level=True)

OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.01, "momentum": 0.9}),
    "adam": (Adam, {"lr": 0.01, "amsgrad": True}),
    "rmsprop": (RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True, "eps": 0.5}),
    "rmsprop-tf": (RMSpropTF, {"lr": 0.01, "eps": 1.0}),
}


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return ranks.servers()


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


def make_plan(kind: str, model: nn.Module, x: Tensor, options: dict[str, Any]) -> net2net.GrowthPlan:
    if kind == "widen":
        return net2net.plan_widen(model, x, options.pop("width", 1.5), **options)
    if kind == "deepen":
        return net2net.plan_deepen(model, x, data=[x], **options)
    return net2net.plan_kernels(model, x, **options)


def grow_both(
    rank: int,
    name: str,
    steps: list[tuple[str, dict[str, Any]]],
    optimizers: list[str],
    mesh: tuple[int, ...] = (),
    along: int = 0,
    dtype: torch.dtype = torch.float64,
    spoil: bool = False,
    state: str = "exact",
) -> None:
    """The steps one after the other on the whole network and on the sharded one, compared after each."""
    model, x = EXAMPLES[name].build(dtype)
    if spoil:
        with torch.no_grad():
            next(p for p in model.parameters() if p.dim() > 1).view(-1)[1] = torch.nan
    shard = ranks.sharder(ranks.mesh_of(*mesh), along)
    for kind in optimizers:
        teacher, optimizer = copy.deepcopy(model), None
        if kind != "none":
            optimizer = with_state(kind, teacher)
        mine, build = ranks.sharded_copy(teacher, shard), EXAMPLES[name].make
        my_optimizer = sharded_optimizer(kind, optimizer, teacher, mine) if optimizer is not None else None
        for what, options in steps:
            plan = make_plan(what, teacher, x, dict(options))
            student = plan.apply(teacher)
            my_student, my_optimizer = net2net.grow_sharded(
                mine, plan, build=build, wrap=shard, optimizer=my_optimizer, state=state
            )
            ranks.assert_shards(Tensors.of(my_student).by_name, Tensors.of(student).by_name)
            for (_, a), (_, b) in zip(my_student.named_modules(), student.named_modules(), strict=True):
                assert a.training == b.training
            if optimizer is not None and my_optimizer is not None:
                optimizer = plan.grow_optimizer(optimizer, student, state=state)
                ranks.assert_shards(state_of(my_optimizer, my_student), state_of(optimizer, student))
                assert groups_of(my_optimizer, my_student) == groups_of(optimizer, student)
            teacher, mine = student, my_student
            build = (lambda plan, before: lambda: plan.apply(before()))(plan, build)
        if not spoil and optimizer is not None and my_optimizer is not None:
            assert_trains_alike(teacher, optimizer, mine, my_optimizer, x)


def assert_trains_alike(
    whole: nn.Module, optimizer: Optimizer, sharded: nn.Module, sharded_optimizer: Optimizer, x: Tensor
) -> None:
    for _ in range(2):
        for model, its in ((whole, optimizer), (sharded, sharded_optimizer)):
            its.zero_grad()
            model(x).square().mean().backward()
            its.step()
    expected = dict(whole.named_parameters())
    for name, p in sharded.named_parameters():
        part = Spread.of(name, p).window(expected[name].detach())
        torch.testing.assert_close(local(p), part, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


# -- the same bits -----------------------------------------------------------------------------------------------------

ALL_STEPS = [
    ("widen", {"width": 1.5}),
    ("deepen", {}),
    ("kernel", {"sizes": {"*conv1*": 5}}),
]


def test_two_ranks_do_what_one_does(processes: ForkServerContext) -> None:
    ranks.run(processes, 2, grow_both, "residual", ALL_STEPS, ["sgd", "adam", "rmsprop-tf"])


def many(rank: int, cases: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
    for arguments, options in cases:
        try:
            grow_both(rank, *arguments, **options)
        except Exception as error:
            error.add_note(f"in {arguments}, {options}")
            raise
