"""Learning-rate schedules: copied, bound to another optimizer, and scaled.

Every schedule of torch is homogeneous in its rates: where all of them, and the bounds it keeps, are multiplied by a
factor, so is every rate that comes of it. So whatever the rule for the student's rates, the schedule goes on from where
it is, and each group's rates are the old ones times that group's factor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import SWALR

#: For each schedule the attributes that are rates, beside those that all have. Numbers hold for all groups, lists have
#: one rate per group. A subclass may keep anything, so only these very classes count.
RATES: dict[type[LRScheduler], tuple[str, ...]] = {
    lr_scheduler.LambdaLR: (),
    lr_scheduler.MultiplicativeLR: (),
    lr_scheduler.StepLR: (),
    lr_scheduler.MultiStepLR: (),
    lr_scheduler.ConstantLR: (),
    lr_scheduler.LinearLR: (),
    lr_scheduler.ExponentialLR: (),
    lr_scheduler.PolynomialLR: (),
    lr_scheduler.SequentialLR: (),
    lr_scheduler.ChainedScheduler: (),
    lr_scheduler.CosineAnnealingLR: ("eta_min",),
    lr_scheduler.CosineAnnealingWarmRestarts: ("eta_min",),
    lr_scheduler.CyclicLR: ("max_lrs",),
    lr_scheduler.OneCycleLR: (),
    lr_scheduler.ReduceLROnPlateau: ("min_lrs", "default_min_lr", "eps"),
    SWALR: (),
}

#: Rates that all schedules may have, one per group ...
_OF_ALL = ("base_lrs", "_last_lr")

#: ... and those that are kept as options of parameter groups.
_OF_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")


def check_scheduler(scheduler: LRScheduler, optimizer: Optimizer) -> None:
    """TypeError if it, or one within it, is of an unknown class; ValueError if it is not bound to `optimizer`."""
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(f"scheduler (={type(scheduler).__name__}) must be a torch.optim.lr_scheduler.LRScheduler")
    for each in _nested(scheduler):
        if type(each) not in RATES:
            known = ", ".join(c.__name__ for c in RATES)
            raise TypeError(
                f"scheduler (={type(each).__module__}.{type(each).__name__}) is of a class that is not known to work "
                f"with another optimizer than it was made for; known are {known}"
            )
        if each.optimizer is not optimizer:
            raise ValueError(f"scheduler (={type(each).__name__}) belongs to another optimizer than the one given")


def _nested(scheduler: LRScheduler) -> Iterator[LRScheduler]:
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from _nested(inner)


def rebind(scheduler: LRScheduler, optimizer: Optimizer) -> LRScheduler:
    """A copy of `scheduler`, where it is in its schedule, for `optimizer`: a grown one, with the same groups."""
    old = scheduler.optimizer
    memo: dict[int, Any] = {id(old): optimizer}
    for each in _nested(scheduler):
        functions = [*getattr(each, "lr_lambdas", ()), getattr(each, "_scale_fn_custom", None)]
        # To copy a method is to copy the object that it is bound to, which may be anything.
        memo.update({id(f): f for f in functions if isinstance(f, MethodType)})
    if hasattr(old.step, "_wrapped_by_lr_sched"):
        _Bound(optimizer)
        optimizer._opt_called = getattr(old, "_opt_called", False)  # type: ignore[attr-defined]
    return copy.deepcopy(scheduler, memo)


class _Bound(LRScheduler):
    """Leaves rates as they are. Schedules want to know whether the optimizer has made a step; to be told, torch
    replaces its `step` when a schedule is made, and only then."""

    def get_lr(self) -> list[float | Tensor]:
        return [group["lr"] for group in self.optimizer.param_groups]


def scale(optimizer: Optimizer, scheduler: LRScheduler | None, factors: Sequence[float]) -> None:
    """Multiplies the rates of each group, now and in the schedule to come, by its factor.

    Raises:
        ValueError: if the factors differ, but the schedule has a lower bound for all groups together.
    """
    schedules = [] if scheduler is None else list(_nested(scheduler))
    for each in schedules:
        if getattr(each, "eta_min", 0) and max(factors) > min(factors) * (1 + 1e-9):
            raise ValueError(
                f"scheduler (={type(each).__name__}) has one eta_min (={each.eta_min}) for all groups, but their rates "  # type: ignore[attr-defined]
                f"are to be multiplied by {', '.join(f'{f:g}' for f in factors)}; give one factor for all"
            )
    for each in schedules:
        for name in dict.fromkeys([*_OF_ALL, *RATES[type(each)]]):
            value = getattr(each, name, None)
            if isinstance(value, list | tuple):
                setattr(each, name, [v * f for v, f in zip(value, factors, strict=True)])
            elif value is not None:
                setattr(each, name, value * min(factors))
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        for name in _OF_GROUPS:
            if isinstance(group.get(name), Tensor):
                group[name] = group[name] * factor
            elif name in group:
                group[name] *= factor
