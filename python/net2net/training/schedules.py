"""Learning rates over time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

KINDS = ("constant", "cosine", "exponential")


@dataclass
class Schedule:
    """The factor on an optimizer's learning rates, as a function of the number of steps done.

    Attributes:
        kind: constant: 1. cosine: from 1 to `final` along half a period of a cosine, over `steps`. exponential:
            times `decay` after every `decay_steps`, in steps, as Inception was trained.
        steps: the length of the run.
        final: the cosine's last value, in [0, 1].
        decay: in (0, 1].
        decay_steps: at least 1.
        warmup: over so many first steps the factor rises linearly from 1 / `warmup` of its value.

    Raises:
        ValueError: an attribute is out of range; the message names it and its value.
    """

    kind: str = "constant"
    steps: int = 1
    final: float = 0.0
    decay: float = 0.94
    decay_steps: int = 1
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind (={self.kind!r}) must be one of {', '.join(KINDS)}")
        for name, value, least in (
            ("steps", self.steps, 0),
            ("decay_steps", self.decay_steps, 1),
            ("warmup", self.warmup, 0),
        ):
            if value < least:
                raise ValueError(f"{name} (={value}) must be at least {least}")
        if not 0 <= self.final <= 1:
            raise ValueError(f"final (={self.final}) must be in [0, 1]")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay (={self.decay}) must be in (0, 1]")

    def __call__(self, step: int) -> float:
        factor = 1.0
        if self.kind == "cosine":
            factor = cosine(min(step / max(self.steps, 1), 1.0), self.final)
        elif self.kind == "exponential":
            factor = self.decay ** (step // self.decay_steps)
        return factor * self.warming(step)

    def warming(self, step: int) -> float:
        """The share of its value that the warm-up leaves of the factor, in (0, 1]; 1 when it is over."""
        return min((step + 1) / self.warmup, 1.0) if self.warmup else 1.0


def cosine(progress: float, final: float) -> float:
    """From 1 at `progress` 0 to `final` at 1, along half a period of a cosine."""
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def go_on(optimizer: Optimizer, scheduler: LambdaLR, step: int) -> None:
    """Bring a scheduler that has just been attached, and the rates of `optimizer`, to where they are after so many
    steps."""
    scheduler.last_epoch, scheduler._step_count = step, step + 1
    rates = [lr * f(step) for lr, f in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, base, lr in zip(optimizer.param_groups, scheduler.base_lrs, rates, strict=True):
        group["initial_lr"], group["lr"] = base, lr
    scheduler._last_lr = rates


def attach(optimizer: Optimizer, schedule: Schedule) -> LambdaLR:
    """A scheduler that multiplies the learning rates that `optimizer` has now.

    An earlier scheduler leaves its own first rates in the optimizer, which torch would take instead; they are removed.
    """
    for group in optimizer.param_groups:
        group.pop("initial_lr", None)
    return LambdaLR(optimizer, schedule)
