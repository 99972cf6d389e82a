"""blocks: residual blocks that can be repeated without changing the function, and how.

A residual block adds what it computes to what it is given. A copy of it whose last parameters are zero adds nothing, so
it may follow the block at once (zero-initialised residuals: Goyal et al., 2017; whole blocks: LLaMA Pro, 2024). Which
parameters these are is not guessed from names: they are those used last before an addition in the block's own forward,
and the copy is run to see that it hands on what it is given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from net2net.rules import name_of
from net2net.running import Inputs, call
from net2net.skeleton import aside, in_mode, named_tensors, own_random_state, rebuild

#: How many operations with parameters before an addition are tried: a convolution and what normalises or scales it.
REACH = 3


@dataclass(frozen=True)
class Repetition:
    """Copies of a residual block behind it.

    Attributes:
        module: the block, which is wrapped together with its copies.
        count: of copies.
        zeroed: the block's parameters that are zero in its copies, by their names in the block.
        several: the block takes more arguments than the one that it adds to.
    """

    module: str
    count: int
    zeroed: list[str]
    several: bool

    def names(self) -> list[str]:
        return [f"grown{i}" for i in range(self.count)]

    def copy_of(self, block: nn.Module) -> nn.Module:
        """A copy with tensors of its own. Its parameters have no values yet; code may index with its buffers."""
        new = {n: torch.empty_like(t) if isinstance(t, nn.Parameter) else t.clone() for n, t in named_tensors(block)}
        return rebuild(block, new)

    def fill(self, copy: nn.Module, block: nn.Module) -> None:
        """The block's values, and zeros."""
        theirs = dict(block.named_parameters())
        for name, p in copy.named_parameters():
            if name in self.zeroed:
                p.detach().zero_()
            else:
                p.detach().copy_(theirs[name].detach())
        for mine, its in zip(copy.buffers(), block.buffers(), strict=True):
            mine.copy_(its)


@dataclass(eq=False)
class _Frame:
    """A module's forward while it runs.

    Attributes:
        recent: the parameters of each operation that had any since the last addition, here or further inside.
        branches: for each addition in this very forward, `recent` at that time.
    """

    name: str
    recent: list[list[str]] = field(default_factory=list)
    branches: list[list[list[str]]] = field(default_factory=list)


class _Watch(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.owners = {p.untyped_storage()._cdata: name for name, p in model.named_parameters()}
        self.frames: list[_Frame] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        used = [self.owners.get(t.untyped_storage()._cdata) for t in tensors]
        parameters = [name for name in used if name is not None]
        # A view of a parameter (its transpose) is not yet a use of it.
        view = len(tensors) == 1 and func.is_view
        if parameters and not view:
            for frame in self.frames:
                frame.recent.append(parameters)
        elif name_of(func).removesuffix("_") == "add" and len(tensors) == 2 and self.frames:
            frame = self.frames[-1]
            frame.branches.append(frame.recent)
            frame.recent = []
        return func(*args, **(kwargs or {}))


def find_blocks(model: nn.Module, example_inputs: Inputs, count: int) -> tuple[list[Repetition], dict[str, str]]:
    """The residual blocks of `model`, in order, each with what is zero in `count` copies of it; and the modules that
    add, but cannot be repeated, with the reasons. `model` is not touched."""
    runner = in_mode(aside(model), False)
    watch = _Watch(runner)
    calls: dict[str, int] = {}
    found: dict[str, Repetition] = {}
    refused: dict[str, str] = {}
    stack: list[tuple[_Frame, tuple[Any, ...], dict[str, Any]]] = []
    for name, module in runner.named_modules():

        def enter(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
            frame = _Frame(name)
            watch.frames.append(frame)
            stack.append((frame, args, kwargs))

        def leave(_m: nn.Module, _a: tuple[Any, ...], _k: dict[str, Any], out: Any, name: str = name) -> None:
            frame, args, kwargs = stack.pop()
            watch.frames.pop()
            calls[name] = calls.get(name, 0) + 1
            if not name or not frame.branches or name in found or name in refused:
                return
            block = model.get_submodule(name)  # as it is without these hooks
            with _disable_current_modes(), own_random_state(block):
                result = _repeatable(block, frame, args, kwargs, out, count)
            if isinstance(result, str):
                refused[name] = result
            else:
                found[name] = result

        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, with_kwargs=True)
    with torch.no_grad(), own_random_state(runner), _no_fast_path(), watch:
        call(runner, example_inputs)
    for name in list(found):
        if calls[name] > 1:
            refused[name] = "this block is run more than once"
        elif any(inner.startswith(f"{name}.") for inner in found):
            refused[name] = "a block inside this one can be repeated"
    blocks = [block for name, block in found.items() if name not in refused]
    # What adds within a block (a table to attention, say) is nobody's question.
    inner = {name for name in refused if any(name.startswith(f"{block.module}.") for block in blocks)}
    return blocks, {name: reason for name, reason in refused.items() if name not in inner}


def _repeatable(
    block: nn.Module, frame: _Frame, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, count: int
) -> Repetition | str:
    """How to repeat the block, or why it cannot be done."""
    if not isinstance(out, Tensor):
        return "it does not return one tensor"
    given = args[0] if args else None
    if not isinstance(given, Tensor) or given.shape != out.shape:
        return "what it returns has another shape than what it is given"
    prefix = f"{frame.name}."
    several = len(args) > 1 or bool(kwargs)
    for reach in range(1, REACH + 1):
        last = [name for branch in frame.branches for used in branch[-reach:] for name in used]
        if not all(name.startswith(prefix) for name in last):
            return "it adds what parameters outside it have made"
        trial = Repetition(frame.name, count, sorted({name.removeprefix(prefix) for name in last}), several)
        if not trial.zeroed:
            return "no parameter of it is used before it adds"
        if _hands_on(trial, block, out, args[1:], kwargs):
            return trial
    return "a copy of it with zeros does not hand on what it is given (it normalises or scales the sum, perhaps)"


def _hands_on(trial: Repetition, block: nn.Module, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the copy is the identity, in eval and in train mode."""
    copy = trial.copy_of(block)
    trial.fill(copy, block)
    if not torch.equal(in_mode(copy, False)(x.clone(), *args, **kwargs), x):
        return False
    try:
        return torch.equal(in_mode(copy, True)(x.clone(), *args, **kwargs), x)
    except ValueError:  # batch normalisation of a single value: the block itself does not train on this input
        return True


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """Attention as written, not as one operation that hides the additions."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
