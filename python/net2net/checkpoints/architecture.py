"""Modules without the values of their parameters: for what only a module tells."""

from __future__ import annotations

import torch
from torch import nn

from net2net.plan import GrowthPlan
from net2net.skeleton import check_model, lazy_zeros, movable, named_tensors, rebuild


def architecture(plan: GrowthPlan, model: nn.Module) -> nn.Module:
    """The student of `model`, with parameters on the meta device. Buffers have their values: code may index with them.

    Raises:
        ValueError: if the plan was made for another model.
    """
    tensors = check_model(model, plan.inventory.plain)
    plan.inventory.check_tensors(tensors)
    new, others = {}, {}
    for name, t in tensors.by_name.items():
        if isinstance(t, nn.Parameter) or t.is_meta:
            new[name] = torch.empty(plan.student_shape(name), dtype=t.dtype, device="meta")
        elif movable(t):
            others[name] = t
    with torch.no_grad():
        student = rebuild(model, {**new, **plan._grown(others)}, tensors)
        plan._finish(student)
    return student


def with_zeros(model: nn.Module) -> nn.Module:
    """The same with zeros, which take no memory until they are looked at, for what is on the meta device."""
    cpu = torch.device("cpu")
    return rebuild(model, {name: lazy_zeros(t.shape, t.dtype, cpu) for name, t in named_tensors(model) if t.is_meta})
