"""Growing sharded networks: the same bits as growing the whole network and sharding it then."""

import copy
import functools
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import net2net
import pytest
import ranks
import torch
import torch.distributed as dist
from models import EXAMPLES, Example
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


MODELS = {**EXAMPLES, "mlp_even": Example(mlp_even, (6, 4)), "blocks": Example(Blocks, (6, 5))}


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
    model, x = MODELS[name].build(dtype)
    if spoil:
        with torch.no_grad():
            next(p for p in model.parameters() if p.dim() > 1).view(-1)[1] = torch.nan
    shard = ranks.sharder(ranks.mesh_of(*mesh), along)
    for kind in optimizers:
        teacher, optimizer = copy.deepcopy(model), None
        if kind != "none":
            optimizer = with_state(kind, teacher)
        mine, build = ranks.sharded_copy(teacher, shard), MODELS[name].make
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
            build = functools.partial(grown, plan, build)
        if not spoil and optimizer is not None and my_optimizer is not None:
            assert_trains_alike(teacher, optimizer, mine, my_optimizer, x)


def grown(plan: net2net.GrowthPlan, build: Callable[[], nn.Module]) -> nn.Module:
    return plan.apply(build())


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


NOISY = {"noise_scale": 0.3, "seed": 5}
WIDER = [("widen", {"width": 1.7, **NOISY})]
TWICE = [("widen", {"width": 2, **NOISY}), ("widen", {"width": 1.5, "noise": "paper", **NOISY})]

#: On how many ranks, and what.
CASES: dict[str, tuple[int, list[tuple[tuple[Any, ...], dict[str, Any]]]]] = {
    "along the second axis": (2, [(("mlp_even", TWICE, ["adam"]), {"along": 1})]),
    "networks": (
        2,
        [((name, WIDER, ["none"]), {}) for name in ("plain_1d", "plain_3d", "gated", "dense", "tied")]
        + [(("channels_last_features", WIDER, ["sgd"]), {})],
    ),
    "one rank": (1, [(("residual", ALL_STEPS, ["rmsprop"]), {}), (("inception", WIDER, ["none"]), {})]),
    "four ranks": (
        4,
        [
            (("residual", ALL_STEPS, ["rmsprop", "rmsprop-tf"]), {}),
            (("plain_2d", TWICE, ["adam"]), {}),
            (("inception", [*WIDER, ("deepen", {"after": "*pair0"})], ["none"]), {}),
            (("mlp_even", TWICE, ["sgd"]), {"along": 1}),
        ],
    ),
    "replicated shards": (4, [(("residual", ALL_STEPS, ["adam"]), {"mesh": (2, 2)})]),
    "dtypes": (
        2,
        [((("plain_2d"), TWICE, ["adam"]), {"dtype": dtype}) for dtype in (torch.float32, torch.bfloat16)]
        + [(("plain_2d", TWICE, ["none"]), {"dtype": torch.float64, "spoil": True})],
    ),
    "state": (2, [(("plain_2d", TWICE, ["rmsprop", "adam"]), {"state": s}) for s in ("replicas_reset", "reset")]),
    "new layers": (
        2,
        [
            (("mlp", [("deepen", {"method": "paired", "count": 2}), *WIDER], ["adam"]), {}),
            (("mlp_even", [("deepen", {"method": "paired"})], ["none"]), {"along": 1}),
            (("mlp_even", [("deepen", {})], ["none"]), {"along": 1}),
            (("blocks", [("deepen", {"method": "residual"}), *WIDER], ["sgd"]), {}),
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_ranks_do_what_one_does(processes: ForkServerContext, case: str) -> None:
    number, given = CASES[case]
    ranks.run(processes, number, many, given, seconds=600)
