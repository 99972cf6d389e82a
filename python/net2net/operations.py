"""operations: what a forward computes, as the list of its ATen operations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from net2net.running import Inputs, call, computed
from net2net.skeleton import own_random_state


class _Record(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.paused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused:
            self.names.append(str(func))
        return computed(func, args, kwargs or {})


def operations(model: nn.Module, inputs: Inputs, ignored: Iterable[str] = ()) -> list[str]:
    """The operations of one forward of `model` (a skeleton: see skeleton.py), but for those within the `ignored`
    modules."""
    record = _Record()

    def enter(_module: nn.Module, _args: Any) -> None:
        record.paused += 1

    def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
        record.paused -= 1

    handles: list[Any] = []
    for name in ignored:
        module = model.get_submodule(name)
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with torch.no_grad(), own_random_state(model), record:
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return record.names
