"""The paper's baseline for widening, random pad: the old weights in a larger tensor, the rest random (section 3.1)."""

from __future__ import annotations

import torch
from torch import nn

from net2net.skeleton import named_tensors, own_random_state
from net2net.widen_plan import WidenPlan


def random_pad(model: nn.Module, plan: WidenPlan, seed: int = 0) -> nn.Module:
    """A student of the plan's shapes in which the new units have random weights; the function is not kept.

    Where a student unit is the first copy of a teacher unit, it has the teacher's weights, undivided; all else is what
    the modules' own `reset_parameters` draws, and for buffers (running statistics) what it resets them to.

    Args:
        model: the teacher. It is not touched.
        plan: from `plan_widen` on it.
        seed: of the random weights.
    """
    student = plan.apply(model)
    teacher = dict(named_tensors(model))
    with torch.no_grad(), own_random_state(student):
        torch.manual_seed(seed)
        # Children first: a model's own initialisation, where it has one, then overrules its layers'.
        for module in reversed(list(student.modules())):
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        for name, fresh in named_tensors(student):
            place = [plan.first_copies(name, dim) for dim in range(min(2, fresh.dim()))]
            if fresh.dim() == 0 or all(p is None for p in place):
                fresh.copy_(teacher[name])
                continue
            rows = [torch.arange(n) if p is None else p for n, p in zip(fresh.shape, place, strict=False)]
            fresh[torch.meshgrid(*rows, indexing="ij")] = teacher[name]
    return student
