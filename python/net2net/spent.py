"""Models and optimizers whose tensors were handed on. They stay refused: their tensors are empty.

The mark is a hook, so that whoever runs one of them anyway is told why it fails.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn
from torch.optim import Optimizer

_WHY = "was consumed by a growth step (consume=True): its tensors are the student's now"


#: Two threads must not use one model up between them.
_ONE_AT_A_TIME = threading.RLock()

F = TypeVar("F", bound=Callable[..., Any])


def one_consumer_at_a_time(grow: F) -> F:
    """For methods with the keyword `consume`: calls that set it wait for each other, checks included."""

    @functools.wraps(grow)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        with _ONE_AT_A_TIME if options.get("consume") else contextlib.nullcontext():
            return grow(*arguments, **options)

    return cast(F, wrapped)


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
