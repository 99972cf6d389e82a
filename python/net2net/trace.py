"""trace: runs the user's own forward once, and lets a rule look at every operation on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from net2net.context import Context, TraceError
from net2net.hashes import seed
from net2net.outputs import kept, leaves
from net2net.rules.table import flat, refuse, rule_for, unknown
from net2net.running import Inputs, call, computed
from net2net.skeleton import own_random_state

#: The reason for units that are the network's outputs: their number is part of the function, so they are not "skipped".
OUTPUT = "its units are the network's outputs"

#: Modules that are not looked into: what goes in and what comes out keeps its width.
OPAQUE: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.RNNCellBase)


_RESHAPING = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.reshape.default}


class Walk(TorchDispatchMode):
    """Runs each operation, then its rule."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        context, kwargs = self.context, kwargs or {}
        leaves_ = flat((args, kwargs))
        tensors = tuple(t for t in leaves_ if isinstance(t, Tensor))
        # Parameters are not asked: a rule that does makes them take part.
        if any(not context.is_parameter(t) and context.shadows.get(t) is not None for t in tensors):
            context.last = tensors
        plain = tuple(a for a in leaves_ if isinstance(a, int) and not isinstance(a, bool))
        # The sizes that a view is asked for must come to this many.
        elements = tensors[0].numel() if tensors and func in _RESHAPING else 0
        context.seen.append((elements, plain))
        context.reached = context.where()
        try:
            out = computed(func, args, kwargs)
            context.operation = str(func)
            rule = rule_for(func) if not context.opaque else unknown
            try:
                rule(context, func, args, kwargs, out)
            except TraceError:
                raise
            except Exception as error:  # not foreseen by the rule; in a student the same happens
                refuse(context, func, args, kwargs, out, f"{func} is not understood here ({error})")
        except Exception as error:
            context.mark(error)
            raise
        finally:
            context.operation = ""
        return out


@contextlib.contextmanager
def _following_modules(model: nn.Module, context: Context) -> Iterator[None]:
    """Keeps `context.module` at the innermost module being run. `model` is our own copy, so hooks harm nobody."""
    stack = [""]
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            stack.append(name)
            context.module = name
            context.given.append([t for t in flat(args) if isinstance(t, Tensor)])
            context.opaque += isinstance(module, OPAQUE)

        def leave(module: nn.Module, _args: Any, _out: Any) -> None:
            stack.pop()
            context.given.pop()
            context.module = stack[-1]
            context.opaque -= isinstance(module, OPAQUE)

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def walk(model: nn.Module, inputs: Inputs, context: Context) -> None:
    """Runs `model` (a skeleton: see skeleton.py) on `inputs`, and tells `context` what the rules find.

    Raises TraceError if the forward raises.
    """
    context.begin()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # Transformer layers' fused inference path hides their parameters' use in one opaque operation.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), own_random_state(model), _following_modules(model, context), Walk(context):
            out = call(model, inputs)
    except TraceError:
        raise
    except Exception as error:
        where, suspects = context.mark(error)
        raise TraceError(f"{type(error).__name__}{where}: {error}", suspects) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    for t in leaves(out):
        if isinstance(t, Tensor):
            context.returned(t, OUTPUT)
        else:
            context.outputs.append(seed(repr(t)).astype(np.int64))
    for t in kept(model):
        if not context.is_parameter(t):
            context.returned(t, "a module keeps them as an attribute, which other code may read")
    context.finished(model.training)
