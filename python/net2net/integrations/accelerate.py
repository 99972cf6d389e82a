"""Growth in the middle of a loop with Hugging Face's Accelerate.

    from net2net.integrations.accelerate import grow

    for step, (images, labels) in enumerate(loader):
        if step == 2000:
            model, optimizer, scheduler = grow(accelerator, model, images[:2], optimizer, scheduler, widen=1.5)[:3]
        ...

What `accelerator.prepare` has wrapped is unwrapped, grown by `net2net.grow`, and prepared again in its place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from torch import nn

import net2net
from net2net.grow import GrowthReport
from net2net.plan import GrowthPlan
from net2net.running import Inputs


class Prepared(NamedTuple):
    """What `grow` returns; model, optimizer and scheduler are prepared."""

    model: nn.Module
    optimizer: Any
    scheduler: Any
    plans: list[GrowthPlan]
    report: GrowthReport


def grow(
    accelerator: Accelerator,
    model: nn.Module,
    example_inputs: Inputs,
    optimizer: AcceleratedOptimizer,
    scheduler: Any = None,
    **how: Any,
) -> Prepared:
    """Grows what `accelerator` has prepared, between two steps (not while gradients are being accumulated).

    Args:
        accelerator: forgets the old objects, so its checkpoints have the new ones.
        model, optimizer, scheduler: as `accelerator.prepare` returned them. Use them no more.
        example_inputs: see `net2net.grow`. With several processes, the same in each: all must grow alike.
        how: further arguments of `net2net.grow`, such as `widen` and `lr`.

    Raises:
        ValueError: gradients are being accumulated, or what is given has not been prepared by `accelerator`.
        ValueError, TypeError, RuntimeError: as `net2net.grow`; then all is as it was.
    """
    if not accelerator.sync_gradients:
        raise ValueError("gradients are being accumulated: grow after the optimizer's step")
    for name, given, kind in (
        ("optimizer", optimizer, AcceleratedOptimizer),
        ("scheduler", scheduler, AcceleratedScheduler),
    ):
        if given is not None and not isinstance(given, kind):
            raise ValueError(f"{name} (={type(given).__name__}) has not been prepared by this accelerator")
    grown = net2net.grow(
        accelerator.unwrap_model(model),
        example_inputs,
        optimizer=optimizer.optimizer,
        scheduler=None if scheduler is None else scheduler.scheduler,
        **how,
    )
    for held, old in (
        (accelerator._models, model),
        (accelerator._optimizers, optimizer),
        (accelerator._schedulers, scheduler),
    ):
        held[:] = [each for each in held if each is not old]
    new = [grown.model, grown.optimizer] + ([] if scheduler is None else [grown.scheduler])
    prepared = [*accelerator.prepare(*new), None]
    return Prepared(prepared[0], prepared[1], prepared[2], grown.plans, grown.report)
