"""A student without its values: for what only a module tells."""

from __future__ import annotations

import torch
from torch import nn

from net2net.plan import GrowthPlan
from net2net.skeleton import check_model, movable, rebuild


def architecture(plan: GrowthPlan, model: nn.Module) -> nn.Module:
    """The student of `model`, with what is in a state dict on the meta device. Other buffers are grown.

    Raises:
        ValueError: if the plan was made for another model.
    """
    tensors = check_model(model)
    plan.inventory.check_tensors(tensors)
    saved = {id(t) for t in model.state_dict(keep_vars=True).values()}
    new, others = {}, {}
    for name, t in tensors.by_name.items():
        if id(t) in saved or t.is_meta:
            new[name] = torch.empty(plan.student_shape(name), dtype=t.dtype, device="meta")
        elif movable(t):
            others[name] = t
    with torch.no_grad():
        student = rebuild(model, {**new, **plan._grown(others)}, tensors)
        plan._finish(student)
    return student
