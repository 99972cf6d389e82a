"""echo: whether a model does in train mode what it does in eval mode.

Most do, but for what trail.py leaves out. What was found of their forward in eval mode then holds for both modes, and
they need no second walk, which takes several times as long.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from net2net.derived import MOST_READS, Derived, Watch, sizes_by_value
from net2net.kept_numbers import contents
from net2net.outputs import kept, leaves
from net2net.rules.table import is_view, sees_other_numbers, tensors
from net2net.running import Inputs, as_written, call, check_seal, computed, is_large, of_no_value
from net2net.skeleton import in_mode, memory, named_tensors
from net2net.tallies import changed, notes
from net2net.trail import Trail


class Echo(TorchDispatchMode):
    """Runs a skeleton for its trail alone."""

    def __init__(self, named: Mapping[str, Tensor], trail: Trail) -> None:
        super().__init__()
        self.trail, self._derived, self._reads = trail, Derived(named.values()), 0
        self.watch = Watch(
            self._derived,
            self._read,
            functools.partial(trail.event, "handed out"),
            functools.partial(trail.event, "cut"),
        )

    def _read(self, what: str, sizes: bool = False) -> None:
        if not self.watch.looking:
            self._reads += 1
            if self._reads > MOST_READS:
                raise RuntimeError("a loop does not end while activations are zero")
            self.trail.complete = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            self.trail.complete = False
        check_seal(func, args, kwargs)
        given = tensors((args, kwargs))
        derived = self._derived.any(given)
        if sees_other_numbers(func) or (derived and sizes_by_value(func, args, self._derived)):
            self.trail.complete = False
        if not derived:
            out = func(*args, **kwargs)
        else:
            large = not is_view(func) and any(map(is_large, given))
            out = (of_no_value if large else computed)(func, args, kwargs)
            self._derived.add(tensors(out))
        self.trail.operation(func, args, kwargs, given, tensors(out))
        return out


def trail_of(model: nn.Module, inputs: Inputs) -> Trail:
    """What `model` (a skeleton) does in the mode that it is in. Raises what the forward raises."""
    before = dict(named_tensors(model))
    run = Echo(before, Trail(before, inputs, model.training))
    with as_written(model), run.watch, run:
        out = call(model, inputs)
    run.trail.event("returned", list(leaves(out)), list(kept(model)))
    return run.trail


def repeats(model: nn.Module, inputs: Inputs, trail: Trail | None, reassigned: Iterable[str]) -> list[Any] | None:
    """Whether `model`, a skeleton, does the same in train mode, in which it is left, as in eval mode.

    Args:
        trail: what it did in eval mode; None: it is run to see.
        reassigned: the buffers and plain attributes that it puts others in the place of.

    Returns:
        The numbers in what train mode does beside it; None if it does something else.
    """
    before, records = memory(model), contents(model)
    try:
        if trail is None:
            trail = trail_of(in_mode(model, False), inputs)
        if not trail.complete or memory(in_mode(model, True)) != before:
            return None
        again = trail_of(model, inputs)
    except Exception:  # it may only be an error in train mode
        return None
    after = memory(model)
    moved = {name for name, at in before.items() if after.get(name) != at}
    return again.left_out if again.same(trail) and contents(model) == records and moved <= {*reassigned} else None


def tallied(model: nn.Module, inputs: Inputs, modes: Iterable[bool]) -> list[dict[str, str]]:
    """What `model`, a skeleton, changes of what its modules hold beside tensors, when it is run in these modes (whether
    it is train mode), one after the other. Raises what the forward raises."""
    found = []
    for training in modes:
        before = notes(in_mode(model, training))
        trail_of(model, inputs)
        found.append(changed(before, notes(model)))
    return found
