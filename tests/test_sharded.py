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
from net2net.shards import Spread, local
from net2net.skeleton import Tensors
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer
from zoo import NETWORKS

if not dist.is_available():
    pytest.skip("torch is built without distributed training", allow_module_level=True)

from sharding import (
    MODELS,
    assert_shards,
    groups_of,
    mesh_of,
    sharded_copy,
    sharded_optimizer,
    sharder,
    state_of,
    with_state,
)


def make_plan(kind: str, model: nn.Module, x: Tensor, options: dict[str, Any]) -> net2net.GrowthPlan:
    if kind == "widen":
        return net2net.plan_widen(model, x, options.pop("width", 1.5), **options)
    if kind == "deepen":
        return net2net.plan_deepen(model, x, data=[x], **options)
    return net2net.plan_kernels(model, x, **options)


def test_other_plans_on_other_ranks_are_refused(processes: ForkServerContext) -> None:
    ranks.run(processes, 2, grow_differently)


def grow_differently(rank: int) -> None:
    model, x = MODELS["residual"].build(torch.float64)
    shard = sharder(mesh_of())
    mine, plan = sharded_copy(model, shard), net2net.plan_widen(model, x, 1.5, seed=rank)
    with pytest.raises(ValueError, match=r"plan is not the same on all ranks: that of rank \[1\]"):
        net2net.grow_sharded(mine, plan, build=MODELS["residual"].make, wrap=shard)


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
    shard = sharder(mesh_of(*mesh), along)
    for kind in optimizers:
        teacher, optimizer = copy.deepcopy(model), None
        if kind != "none":
            optimizer = with_state(kind, teacher)
        mine, build = sharded_copy(teacher, shard), MODELS[name].make
        my_optimizer = sharded_optimizer(kind, optimizer, teacher, mine) if optimizer is not None else None
        for what, options in steps:
            plan = make_plan(what, teacher, x, dict(options))
            student = plan.apply(teacher)
            my_student, my_optimizer = net2net.grow_sharded(
                mine, plan, build=build, wrap=shard, optimizer=my_optimizer, state=state
            )
            assert_shards(Tensors.of(my_student).by_name, Tensors.of(student).by_name)
            for (_, a), (_, b) in zip(my_student.named_modules(), student.named_modules(), strict=True):
                assert a.training == b.training
            if optimizer is not None and my_optimizer is not None:
                optimizer = plan.grow_optimizer(optimizer, student, state=state)
                assert_shards(state_of(my_optimizer, my_student), state_of(optimizer, student))
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


def test_what_fails_on_one_rank_fails_on_all(processes: ForkServerContext) -> None:
    """Nobody waits for a rank that has given up."""
    ranks.run(processes, 2, fail_alone)


def fail_alone(rank: int) -> None:
    model, x = MODELS["residual"].build(torch.float64)
    base, shard = MODELS["residual"].make, sharder(mesh_of())
    mine, plan = sharded_copy(model, shard), net2net.plan_widen(model, x, 1.5)

    def no_memory() -> nn.Module:
        raise MemoryError("too large")

    def no_wrapper(student: nn.Module) -> nn.Module:
        raise RuntimeError("cannot be sharded")

    for build, wrap, error, told in (
        (no_memory, shard, MemoryError, "too large"),
        (base, no_wrapper, RuntimeError, "cannot be sharded"),
        (lambda: nn.Linear(2, 2), shard, ValueError, "not the unsharded teacher"),
    ):
        if rank == 1:
            with pytest.raises(error, match=told):
                net2net.grow_sharded(mine, plan, build=build, wrap=wrap)
        else:
            with pytest.raises(ValueError, match=rf"rank 1 cannot grow its part: {error.__name__}: .*{told}"):
                net2net.grow_sharded(mine, plan, build=base, wrap=shard)
    if rank == 1:
        plan = net2net.plan_widen(nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2)), torch.ones(1, 2), 1.5)
    with pytest.raises(ValueError, match="model has no" if rank == 1 else "rank 1 cannot grow its part"):
        net2net.grow_sharded(mine, plan, build=base, wrap=shard)


def test_two_ranks_do_what_one_does(processes: ForkServerContext) -> None:
    ranks.run(processes, 2, grow_both, "residual", ALL_STEPS, ["sgd", "adam", "rmsprop-tf"])


def many(rank: int, cases: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
    for arguments, options in cases:
        try:
            grow_both(rank, *arguments, **options)
        except Exception as error:
            raise RuntimeError(f"in {arguments}, {options}") from error


NOISY = {"noise_scale": 0.3, "seed": 5}
WIDER = [("widen", {"width": 1.7, **NOISY})]
TWICE = [("widen", {"width": 2, **NOISY}), ("widen", {"width": 1.5, "noise": "paper", **NOISY})]

#: On how many ranks, and what.
CASES: dict[str, tuple[int, list[tuple[tuple[Any, ...], dict[str, Any]]]]] = {
    "along the second axis": (2, [((name, TWICE, ["adam"]), {"along": 1}) for name in ("mlp_even", "crosswise")]),
    "networks": (
        2,
        [((name, WIDER, ["none"]), {}) for name in ("plain_1d", "plain_3d", "gated", "dense", "tied", "crosswise")]
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
            (("grouped", [("deepen", {}), ("deepen", {"method": "maxout", "after": "3"})], ["adam"]), {}),
            (("grouped", [("deepen", {}), ("deepen", {"method": "maxout", "after": "3"})], ["none"]), {"along": 1}),
            (("blocks", [("deepen", {"method": "residual"}), *WIDER], ["sgd"]), {}),
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_ranks_do_what_one_does(processes: ForkServerContext, case: str) -> None:
    number, given = CASES[case]
    ranks.run(processes, number, many, given, seconds=600)


def zoo(rank: int) -> None:
    shard = functools.partial(fully_shard, mesh=mesh_of())
    for name, network in NETWORKS.items():
        teacher, x = network.build()
        plan = net2net.plan_widen(teacher, x, 1.5, noise_scale=0.3)
        expected, build = plan.apply(teacher), functools.partial(copy.deepcopy, teacher)
        student, _ = net2net.grow_sharded(shard(copy.deepcopy(teacher)), plan, build=build, wrap=shard)
        try:
            assert_shards(Tensors.of(student).by_name, Tensors.of(expected).by_name)
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.slow
def test_networks_of_all_kinds(processes: ForkServerContext) -> None:
    """Attention, embeddings, axes behind the second one: all that can be widened."""
    ranks.run(processes, 2, zoo, seconds=600)
