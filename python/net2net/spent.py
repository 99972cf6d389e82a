"""Models and optimizers whose tensors were handed on. They stay refused: their tensors are empty.

The mark is a hook, so that whoever runs one of them anyway is told why it fails.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

_WHY = "was consumed by a growth step (consume=True): its tensors are the student's now"


def _refuse(spent: nn.Module | Optimizer, *_arguments: Any) -> None:
    raise RuntimeError(f"this {type(spent).__name__} {_WHY}")


def spend(given: nn.Module | Optimizer) -> None:
    """Marks an optimizer, or a model and each of its modules."""
    if isinstance(given, Optimizer):
        given.register_step_pre_hook(_refuse)
        return
    for module in given.modules():
        module.register_forward_pre_hook(_refuse)


def check_not_spent(name: str, given: nn.Module | Optimizer) -> None:
    """ValueError if `given` was marked."""
    hooks = given._optimizer_step_pre_hooks if isinstance(given, Optimizer) else given._forward_pre_hooks
    if _refuse in hooks.values():
        raise ValueError(f"{name} {_WHY}")
