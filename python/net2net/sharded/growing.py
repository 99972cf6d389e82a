"""grow_sharded: a growth step for a network that is sharded by FSDP2, and for its optimizer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from net2net import optimizer as optim
from net2net.launches import Entry
from net2net.plan import GrowthPlan
from net2net.sharded.agreement import all_or_none, check_equal
from net2net.sharded.moments import stds
from net2net.sharded.optimizer import OptimizerGrowth
from net2net.sharded.shard_growth import grow_shard
from net2net.shards import Spread, is_sharded, local
from net2net.skeleton import Tensors, check_model, each_module, movable
from net2net.spent import check_not_spent


def grow_sharded(
    model: nn.Module,
    plan: GrowthPlan,
    *,
    build: Callable[[], nn.Module],
    wrap: Callable[[nn.Module], nn.Module | None],
    optimizer: Optimizer | None = None,
    state: str = "exact",
) -> tuple[nn.Module, Optimizer | None]:
    """The student of a network that is sharded by FSDP2 (`fully_shard`), sharded as well, and its optimizer.

    Each rank makes its own shards, with the very bits that growing the whole network and then sharding it would give.
    No rank ever holds a whole tensor: what grows along the sharded axis needs rows of other ranks, which are sent in
    pieces; the rest is local. Every rank derives from the plan alone what goes where, so all must have the same plan:
    load it from a file, or make it anew with the same seed. To be called by all ranks together. `model` and `optimizer`
    are not touched (but for unsharded parameters, which are freed).

        plan = net2net.GrowthPlan.load("growth.json")
        model, optimizer = net2net.grow_sharded(model, plan, build=MyNet, wrap=shard, optimizer=optimizer)

    Args:
        model: the teacher. Its parameters are DTensors, sharded along one axis of a mesh and replicated along the
            others, or plain tensors, of which every rank has its own. Buffers are each rank's own.
        plan: made for the unsharded network.
        build: makes the teacher's unsharded network. It is called with `torch.device("meta")` as the default device,
            and the values of its tensors are not used. Their dtypes, whether modules are in train mode, and which
            parameters are trained, are taken from `model`; hooks are not. After an earlier growth,
            `lambda: earlier_plan.apply(build())`.
        wrap: applies `fully_shard` to the student as it was applied to `model`: each tensor along the same axis, over
            as many ranks. It may return the module, or nothing.
        optimizer: over the parameters of `model`.
        state: see `GrowthPlan.grow_optimizer`.

    Returns:
        (student, optimizer), both ready to go on; None for the optimizer if none was given. (A schedule of the learning
        rate and a moving average of the model are grown by `net2net.scheduler.rebind` and by this function.)

    Raises:
        ValueError, TypeError: naming the argument, before anything is made; also on the other ranks, if it is wrong, or
            `build` or `wrap` fails, on one of them alone. `dynamics` of an optimizer (see `net2net.dynamics`) cannot be
            carried along.
    """
    _check_types(model, plan, optimizer)
    _reshard(model)
    tensors = Tensors.of(model)
    sharded = next(filter(is_sharded, tensors.by_name.values()), None)
    if sharded is None:
        raise ValueError(f"model (={type(model).__name__}) is not sharded: use plan.apply, and shard the student")
    with all_or_none(sharded):
        optim.check_state(state)
        if plain := min(plan.inventory.plain, default=None):
            raise ValueError(f"plan grows {plain}, a plain attribute: make it a buffer, or grow before sharding")
        plan.inventory.check_tensors(tensors)
        _check_crossing(plan, tensors)
        if mended := next(iter(plan._mended()), None):
            raise ValueError(f"plan grows a computed weight, with {mended}: grow the model before it is sharded")
    check_equal("plan", plan.document()["digest"], sharded)
    with all_or_none(sharded):
        spreads = {name: Spread.of(name, t) for name, t in tensors.by_name.items()}
        carried = None if optimizer is None else OptimizerGrowth(plan, optimizer, tensors, state)
        student = _student(model, plan, build)
        wrapped = wrap(student)
        student = student if wrapped is None else wrapped
        _check_student(student, plan, tensors, spreads)
        student.to_empty(device=_device(tensors))
        targets = Tensors.of(student)
        places = _by_name(targets)
    with torch.no_grad():
        noise_stds = _noise_stds(plan._noise_of, tensors)
        crossing_stds = _noise_stds(plan._crossing_noise_of, tensors)
        for name, t in tensors.by_name.items():
            target = places[plan._renamed(name)]
            if movable(t):
                grow_shard(plan, Entry(name, None), t, target, noise_std=noise_stds.get(name, 0.0))
                if name in crossing_stds:
                    begins = spreads[name].begins(plan.student_shape(name))
                    plan._cross_part(name, crossing_stds[name], local(target), *begins[:2])
            else:
                local(target).copy_(local(t))
        plan._fill_shards(student)
        grown = None if carried is None else carried.carry_out(targets)
    return student, grown


def _check_types(model: Any, plan: Any, optimizer: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model (={type(model).__name__}) must be a torch.nn.Module")
    if not isinstance(plan, GrowthPlan):
        raise TypeError(f"plan (={type(plan).__name__}) must be a GrowthPlan")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer (={type(optimizer).__name__}) must be a torch.optim.Optimizer")
    check_not_spent("model", model)


def _reshard(model: nn.Module) -> None:
    """After a forward, parameters may still be whole."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for module in each_module(model):
        if fsdp is not None and isinstance(module, fsdp.FSDPModule):
            module.reshard()


def _student(model: nn.Module, plan: GrowthPlan, build: Callable[[], nn.Module]) -> nn.Module:
    """The unsharded student, without any memory."""
    with torch.device("meta"):
        base = build()
    try:
        check_model(base)
        base = base.to("meta")
        theirs = dict(base.named_modules())
        for name, module in model.named_modules():
            if name in theirs:
                theirs[name].training = module.training
        given = Tensors.of(model).by_name
        for name, t in Tensors.of(base).by_name.items():
            if name in given:
                t.data = t.data.to(given[name].dtype)
                t.requires_grad_(given[name].requires_grad)
        return plan.apply(base)
    except (ValueError, TypeError) as error:
        raise type(error)(f"what build() makes is not the unsharded teacher: {error}") from error


def _device(tensors: Tensors) -> torch.device:
    return next(local(t).device for t in tensors.by_name.values() if is_sharded(t))


def _by_name(tensors: Tensors) -> dict[str, Tensor]:
    """By all of their names."""
    return {**tensors.by_name, **{alias: tensors.by_name[first] for alias, first in tensors.aliases.items()}}


def _check_student(student: nn.Module, plan: GrowthPlan, tensors: Tensors, spreads: dict[str, Spread]) -> None:
    places = _by_name(Tensors.of(student))
    for name in tensors.by_name:
        target = places.get(plan._renamed(name))
        spread, old = spreads[name], tensors.by_name[name]
        shape = plan.student_shape(name)
        if target is None or tuple(target.shape) != shape:
            found = "no tensor" if target is None else f"one of shape {tuple(target.shape)}"
            raise ValueError(f"what wrap() returns has {found} as {plan._renamed(name)}, which should be {shape}")
        if target.dtype != old.dtype:
            raise ValueError(f"wrap() makes {name} of {target.dtype}, but it is {old.dtype}")
        new = Spread.of(name, target)
        if (new.dim, new.rank, new.ranks) != (spread.dim, spread.rank, spread.ranks):
            raise ValueError(
                f"wrap() shards {name} along axis {new.dim} over {new.ranks} ranks, but in model it is sharded along "
                f"{spread.dim} over {spread.ranks}"
            )
        if tuple(local(target).shape) != new.local_shape(shape):
            raise ValueError(f"{name} is sharded in unequal pieces: {tuple(local(target).shape)} of {shape} is here")
    for prefix, module in student.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                raise ValueError(
                    f"{prefix}.{key} is a tensor, but neither a parameter nor a buffer: its values cannot be known"
                )


def _check_crossing(plan: GrowthPlan, tensors: Tensors) -> None:
    for name, t in tensors.by_name.items():
        if plan._crossing_noise_of(name) and (dim := Spread.of(name, t).dim) is not None and dim > 1:
            raise ValueError(f"{name} gets noise, and is sharded along axis {dim}: shard it along 0 or 1")


def _noise_stds(noise_of: Callable[[str], float], tensors: Tensors) -> dict[str, float]:
    """The absolute standard deviation of the noise on the tensors that have such noise, by name."""
    noisy = [name for name, t in tensors.by_name.items() if movable(t) and noise_of(name)]
    found = stds(noisy, [tensors.by_name[name] for name in noisy])
    return {name: std * noise_of(name) for name, std in zip(noisy, found, strict=True)}
