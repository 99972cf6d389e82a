"""Schedules that are copied to a grown optimizer: the same rates from where they are, and those times a factor."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from net2net.scheduler import RATES, check_scheduler, rebind, scale
from torch import nn
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import SWALR


class Warmup:
    """A schedule that is an object."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.steps)

    def method(self, step: int) -> float:
        return 0.9**step


Make = Callable[[Optimizer], LRScheduler]


def sequential(optimizer: Optimizer) -> LRScheduler:
    warmup = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    inner = lr_scheduler.StepLR(optimizer, 3)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, 5, eta_min=1e-3)
    return lr_scheduler.SequentialLR(optimizer, [warmup, inner, cosine], [4, 9])


MAKERS: dict[str, Make] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, [lambda e: 0.9**e, Warmup(7)]),
    "lambda method": lambda o: lr_scheduler.LambdaLR(o, Warmup(3).method),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda e: 0.95 + 0.01 * (e % 3)),
    "step": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [2, 6, 9], 0.3),
    "constant": lambda o: lr_scheduler.ConstantLR(o, 0.5, 6),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.2, 0.8, 9),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 11, 2.0),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6, 1e-3),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2, 1e-3),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, [0.01, 0.02], [0.1, 0.3], 3, mode="triangular2"),
    "cyclic exp": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, mode="exp_range", gamma=0.9),
    "cyclic own": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, scale_fn=Warmup(9).method),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, [0.3, 0.5], total_steps=20),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5, min_lr=[1e-2, 3e-2], cooldown=1),
    "sequential": sequential,
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 5), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "chained sequential": lambda o: lr_scheduler.ChainedScheduler([sequential(o), lr_scheduler.ExponentialLR(o, 0.9)]),
    "swa": lambda o: SWALR(o, 0.05, 8),
}


def optimizer_of(kind: str = "sgd") -> Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": 0.1}, {"params": [nn.Parameter(torch.ones(2))]}]
    return SGD(groups, lr=0.4, momentum=0.9) if kind == "sgd" else AdamW(groups, lr=0.4)


def advance(scheduler: LRScheduler, steps: int) -> list[list[float]]:
    rates = []
    for i in range(steps):
        scheduler.optimizer.step()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(metrics=1.0 + 0.1 * (i % 4))
        else:
            scheduler.step()
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        assert scheduler.get_last_lr() == rates[-1]
    return rates


@pytest.mark.parametrize("before", [0, 1, 4, 7])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("name", MAKERS)
def test_rates_go_on_as_they_would_have(name: str, kind: str, before: int) -> None:
    old = optimizer_of(kind)
    scheduler = MAKERS[name](old)
    advance(scheduler, before)
    check_scheduler(scheduler, old)
    new = copy.deepcopy(old)
    bound = rebind(scheduler, new)
    assert type(bound) is type(scheduler)
    assert [g["lr"] for g in new.param_groups] == [g["lr"] for g in old.param_groups]
    untouched = copy.deepcopy(scheduler.state_dict())
    rates = advance(bound, 12)
    assert {k: v for k, v in scheduler.state_dict().items() if not callable(v)}.keys() <= untouched.keys()
    assert rates == advance(scheduler, 12)
    momenta = [[g.get(k) for k in ("momentum", "betas")] for o in (old, new) for g in o.param_groups]
    assert momenta[:2] == momenta[2:]


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("name", MAKERS)
def test_rates_times_a_factor(name: str, before: int) -> None:
    old = optimizer_of()
    scheduler = MAKERS[name](old)
    advance(scheduler, before)
    new = copy.deepcopy(old)
    bound = rebind(scheduler, new)
    one_bound = "sequential" in name or name in ("cosine", "restarts")
    factors = [0.3, 0.3] if one_bound else [0.3, 0.2]
    scale(new, bound, factors)
    now = [[g["lr"] for g in new.param_groups], *advance(bound, 12)]
    expected = [[g["lr"] for g in old.param_groups], *advance(scheduler, 12)]
    for mine, theirs in zip(now, expected, strict=True):
        assert mine == pytest.approx([lr * f for lr, f in zip(theirs, factors, strict=True)], rel=1e-9, abs=1e-12)


def test_rates_that_are_tensors() -> None:
    old = AdamW([nn.Parameter(torch.ones(2))], lr=torch.tensor(0.5), foreach=False)
    scheduler = lr_scheduler.ExponentialLR(old, 0.5)
    new = copy.deepcopy(old)
    bound = rebind(scheduler, new)
    scale(new, bound, [0.1])
    new.step()
    bound.step()
    assert new.param_groups[0]["lr"].item() == pytest.approx(0.025)
    assert old.param_groups[0]["lr"].item() == 0.5


def test_different_factors_and_one_lower_bound() -> None:
    optimizer = optimizer_of()
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 9, eta_min=0.01)
    with pytest.raises(ValueError, match=r"eta_min \(=0.01\) for all groups.*0.5, 0.25"):
        scale(optimizer, scheduler, [0.5, 0.25])
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.4]


def test_all_schedules_of_torch_are_known() -> None:
    given = {getattr(lr_scheduler, name) for name in lr_scheduler.__all__}
    assert given - {LRScheduler} <= set(RATES)


def test_unknown_and_foreign_schedules_are_refused() -> None:
    class Mine(lr_scheduler.StepLR):
        pass

    optimizer = optimizer_of()
    other: Any = object()
    with pytest.raises(TypeError, match="Mine"):
        check_scheduler(Mine(optimizer, 3), optimizer)
    nested = lr_scheduler.ChainedScheduler([Mine(optimizer, 3), lr_scheduler.StepLR(optimizer, 2)])
    with pytest.raises(TypeError, match="Mine"):
        check_scheduler(nested, optimizer)
    with pytest.raises(ValueError, match="another optimizer"):
        check_scheduler(lr_scheduler.StepLR(optimizer_of(), 3), optimizer)
    with pytest.raises(TypeError, match="object"):
        check_scheduler(other, optimizer)
