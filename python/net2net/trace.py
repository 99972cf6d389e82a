"""trace: runs the user's own forward once, and lets a rule look at every operation on the way."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from net2net.context import Context, TraceError
from net2net.derived import MOST_READS, Derived, Watch, passes_values, reads, sizes_by_value, whole_selection
from net2net.hashes import digest, seed
from net2net.outputs import kept, leaves, made_before_each_run
from net2net.rules.copies import copies
from net2net.rules.elementwise import constant, constant_write
from net2net.rules.kernels import linear_in_kernels
from net2net.rules.table import POINTWISE, flat, is_view, name_of, refuse, rule_for, sees_other_numbers, spelled, view
from net2net.rules.weights import standardising
from net2net.running import Inputs, as_written, call, check_seal, computed, is_large, of_no_value, one_draw, written
from net2net.shadows import compact
from net2net.skeleton import in_mode, memory, named_tensors
from net2net.trail import Trail
from net2net.views import Geometry

#: The reason for units that are the network's outputs: their number is part of the function, so they are not "skipped".
OUTPUT = "its units are the network's outputs"

#: Modules that are not looked into: what goes in and what comes out keeps its width.
OPAQUE: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.RNNCellBase)


#: Where torch's code is, and ours.
_NOT_THEIRS = tuple(str(Path(package).parent) + os.sep for package in (torch.__file__, __file__))

_OF_PARAMETERS = copies, standardising, linear_in_kernels

_NOTHING = contextlib.nullcontext()

_RESHAPING = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.reshape.default}


class Walk(TorchDispatchMode):
    """Runs each operation, then its rule."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, named: Mapping[str, Tensor], context: Context, trail: Trail) -> None:
        super().__init__()
        self.context = context
        self.trail = trail
        self.derived = Derived(named.values())
        self.watch = Watch(self.derived, self.read, self.handed_out, self.cut)
        self.unfollowed = ""  # why nothing can be followed any more
        self._sizes_read = 0
        self._reached: set[str] = set()
        #: Tensors of which one is what the other was seen as, by the memory that they are in.
        self._twins: dict[int, Tensor] = {}
        self._names = {id(module): name for name, module in model.named_modules()}

    def read(self, what: str, sizes: bool = False) -> None:
        """Python has read values that are not what they will be. From here on it may do anything with all that it can
        reach: with what is in memory, and with the weights of the modules that it has at hand.

        Args:
            sizes: it was only how many there are, most often to go by if there are none.
        """
        if self.watch.looking:
            return
        self.trail.complete = False
        self._sizes_read += sizes
        if self._sizes_read > MOST_READS:
            raise RuntimeError("a loop does not end while activations are zero")
        why = f"the code reads values of activations ({what}), on which what it does next may depend"
        with _disable_current_modes():
            if not self.unfollowed:
                self.unfollowed = why
                self.context.pin_living(why)
            for module in () if sizes else self._within_reach():
                if module not in self._reached:
                    self._reached.add(module)
                    self.context.pin_weights(module, why)

    def _within_reach(self) -> list[str]:
        """The modules that the code at hand, which is not torch's or ours, has at hand itself."""
        frame: Any = sys._getframe()
        while frame is not None and frame.f_code.co_filename.startswith(_NOT_THEIRS):
            frame = frame.f_back
        found: list[str] = []
        while frame is not None:
            values = list(frame.f_locals.values())
            found += [self._names[id(v)] for v in values if isinstance(v, nn.Module) and id(v) in self._names]
            if not frame.f_code.co_name.startswith("<"):  # a comprehension or a lambda is a part of what is around it
                break
            frame = frame.f_back
        return found

    def cut(self, end: int) -> None:
        """A slice ends beyond the end."""
        self.trail.event("cut", end)
        self.context.cut(end)

    def handed_out(self, t: Tensor) -> None:
        """Python has got the numbers of a tensor."""
        self.trail.event("handed out", t)
        if t not in self.derived and not self.context.is_parameter(t):
            # It may write to the same memory; from here on it is known by what it holds.
            self.context.expanded.forget([t])
            self.context.shadows.forget([t])
        if self.context.is_parameter(t):
            with _disable_current_modes():
                self.context.pin_tensor(t, "the code reads its values")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        context, kwargs = self.context, kwargs or {}
        if isinstance(func, HigherOrderOperator):
            self.trail.complete = False
            return self._with_code(func, args, kwargs)
        check_seal(func, args, kwargs)
        leaves_ = flat((args, kwargs))
        tensors = tuple(t for t in leaves_ if isinstance(t, Tensor))
        context.take_part(tensors)
        # Parameters are not asked: a rule that does makes them take part.
        if any(not context.is_parameter(t) and t in context.shadows for t in tensors):
            context.last = tensors
        plain = tuple(a for a in leaves_ if isinstance(a, int) and not isinstance(a, bool))
        # The sizes that a view is asked for must come to this many.
        elements = tensors[0].numel() if tensors and func in _RESHAPING else 0
        context.seen.append((elements, plain))
        context.reached = context.where()
        rule = rule_for(func)
        derived = self.derived.any(tensors)
        sized = derived and sizes_by_value(func, args, self.derived)
        if derived and context.whole:
            args = whole_selection(func, args, self.derived, self._stand_in)
        try:
            with one_draw() if torch.Tag.nondeterministic_seeded in func.tags else _NOTHING:
                if not derived:  # made of inputs alone
                    out = func(*args, **kwargs)
                else:
                    run = of_no_value if rule is not view and self._without_value(tensors) else computed
                    out = run(func, args, kwargs)
                    if sees_other_numbers(func):
                        out = self._apart(tensors[0], out)
            if sized or sees_other_numbers(func):
                self.trail.complete = False
            made, into = [t for t in flat(out) if isinstance(t, Tensor)], self._written(func, args, kwargs)
            self.trail.operation(func, args, kwargs, tensors, made)
            context.operation = str(func)
            for t in into:
                context.wrote(t)
            self._copies(func, args, kwargs, out, made, into, derived)
            if rule is not view and not is_view(func):
                context.carriers.saw(name_of(func), tensors, made)
            try:
                # What is made of parameters has no units yet.
                if not any(of_parameters(context, func, args, kwargs, out) for of_parameters in _OF_PARAMETERS):
                    for t in into:
                        context.overwritten(t)
                        if t.untyped_storage()._cdata in self._twins:
                            raise RuntimeError(f"{func} writes to numbers that are seen as those of another kind, too")
                    rule(context, func, args, kwargs, out)
            except TraceError:
                raise
            except Exception as error:  # not foreseen by the rule; in a student the same happens
                refuse(context, func, args, kwargs, out, f"{func} is not understood here ({error})")
            if derived:
                self.derived.add(into)
            self._follow(func, tensors, made, derived, sized)
        except Exception as error:
            if derived and isinstance(error, torch.linalg.LinAlgError):
                self.read("an exception")
            if tensors and all(map(context.is_parameter, tensors)) and not hasattr(error, "suspects"):
                error.suspects = [context.units_of(tensors)]  # type: ignore[attr-defined]
            error.in_operation = True  # type: ignore[attr-defined]
            context.mark(error)
            raise
        finally:
            context.operation = ""
        return out

    def _with_code(self, func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
        """An operation that is given code of the user's own, such as FlexAttention with what it does to scores: that
        may tell one head from another, and look at anything."""
        kernel = func.py_kernels.get(torch._C.DispatchKey.CompositeExplicitAutograd)
        if func.name() != "flex_attention" or kernel is None:
            raise NotImplementedError(f"{func.name()} runs code that is not looked into")
        context = self.context
        with _Reads() as reads:
            out = kernel(*args, **kwargs)
        given = [t for t in flat((args, kwargs)) if isinstance(t, Tensor)] + reads.tensors
        context.take_part(given)
        context.carriers.saw("", given, [])
        # What the code does, and with which numbers, is part of the value.
        what = {"done": digest(*reads.operations).hex()}
        refuse(context, func.name(), given, what, out, "FlexAttention runs code that may tell heads apart")
        self.derived.add(t for t in flat(out) if isinstance(t, Tensor))
        return out

    def _copies(
        self, func: Any, args: Any, kwargs: Any, out: Any, made: list[Tensor], written: list[Tensor], derived: bool
    ) -> None:
        """Keeps which elements are copies of one."""
        expanded, name, rule = self.context.expanded, name_of(func), rule_for(func)
        if rule is constant and "empty" not in name:
            for t in made:
                expanded.constant(t)
        elif rule is constant_write and name.endswith("_"):
            expanded.filled(args[0], None)
        elif derived or torch.Tag.nondeterministic_seeded in func.tags:
            expanded.forget(written)
        elif name == "copy_":
            expanded.filled(args[0], args[1])
        elif rule is POINTWISE[0]:
            expanded.elementwise([t for t in flat((args, kwargs)) if isinstance(t, Tensor)], made, written)
        else:
            expanded.other(name, args, kwargs, out, written)

    @staticmethod
    def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
        """The tensors that an operation has written to."""
        if not (places := written(func)):
            return []
        named = [*args, *(kwargs.get(a.name) for a in func._schema.arguments[len(args) :])]
        return [t for i in places for t in flat(named[i]) if isinstance(t, Tensor)]

    def _apart(self, t: Tensor, seen: Tensor) -> Tensor:
        """What `t` is seen as, in memory of its own, which has codes of its own."""
        made = seen.clone()
        self._twins |= {x.untyped_storage()._cdata: x for x in (t, made)}
        return made

    def _stand_in(self, mask: Tensor, whole: Tensor) -> None:
        """`whole` takes the place of a mask."""
        self.derived.add([whole])
        if (known := self.context.shadows.get(mask)) is not None:
            self.context.set(whole, compact(known).clone())

    def _follow(self, func: Any, given: Sequence[Tensor], made: Sequence[Tensor], derived: bool, sized: bool) -> None:
        """What an operation made of the tensors `given`, some of which are `derived`."""
        if derived and reads(func):
            self.read(name_of(func))
        if derived and passes_values(func):
            self.derived.add(made)
            lengths = {t.shape[0] for t in given if self.derived.is_sized(t)}
            self.derived.add_sized(t for t in made if t.dim() and (sized or t.shape[0] in lengths))
            if sized and not self.context.whole:
                for t in given:
                    self.context.pin_tensor(t, f"{func} takes what values say")
            if made and not is_view(func) and not any(t.numel() for t in made):
                for t in given:
                    self.context.pin_tensor(t, f"{func} gives nothing that could be followed")
        if self.unfollowed:
            for t in made:
                self.context.pin_tensor(t, self.unfollowed)

    def _without_value(self, given: tuple[Tensor, ...]) -> bool:
        """Whether a tensor among these is large and has units: what is made of weights, which are all zero. (Indices,
        masks and positions are made of other things.)"""
        for t in given:
            if is_large(t):
                codes = self.context.shadows.get(t)
                if codes is not None and self.context.has_units(compact(codes).numpy()):
                    return True
        return False


class _Reads(TorchDispatchMode):
    """Keeps what operations do, and the tensors that they are given and have not made."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.operations: list[tuple[Any, ...]] = []
        self._known: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.tensors += [t for t in flat((args, kwargs or {})) if isinstance(t, Tensor) and self._is_new(t)]
        self.operations.append((str(func), *spelled(args, kwargs or {})))
        out = func(*args, **(kwargs or {}))
        for t in flat(out):
            if isinstance(t, Tensor):
                self._is_new(t)
        return out

    def _is_new(self, t: Tensor) -> bool:
        storage = t.untyped_storage()
        known = self._known.get(storage._cdata)
        if known is not None and not known.expired():
            return False
        self._known[storage._cdata] = StorageWeakRef(storage)
        return True


@contextlib.contextmanager
def _following_modules(model: nn.Module, context: Context, run: Walk) -> Iterator[None]:
    """Keeps `context.module` at the innermost module being run. `model` is our own copy, so hooks harm nobody."""
    stack = [""]
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            stack.append(name)
            context.module = name
            context.given.append([t for t in flat(args) if isinstance(t, Tensor)])

        def leave(module: nn.Module, _args: Any, _out: Any) -> None:
            stack.pop()
            context.given.pop()
            context.module = stack[-1]

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    opaque = [module for module in model.modules() if isinstance(module, OPAQUE)]
    own = [module.__dict__.get("forward") for module in opaque]
    for module in opaque:
        module.__dict__["forward"] = _as_a_whole(module, context, run)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, forward in zip(opaque, own, strict=True):
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def _as_a_whole(module: nn.Module, context: Context, run: Walk) -> Callable[..., Any]:
    """The forward of a module as one operation without a rule, whatever it consists of (of a recurrent layer, several
    operations per step)."""
    forward = module.forward

    def whole(*args: Any, **kwargs: Any) -> Any:
        context.reached = context.where()
        with _disable_current_modes():
            out = forward(*args, **kwargs)
            given = (args, kwargs, list(module.parameters()))
            context.take_part(module.parameters())
            context.carriers.saw("", [t for t in flat(given) if isinstance(t, Tensor)], [])
            refuse(context, type(module).__name__, given, {}, out, "a recurrent layer is not looked into")
            run.derived.add(t for t in flat(out) if isinstance(t, Tensor))
            run.trail.complete = False
        return out

    return whole


def walk(model: nn.Module, inputs: Inputs, context: Context, training: bool) -> Trail:
    """Runs `model` (a skeleton: see skeleton.py) on `inputs` in train or eval mode, in which it is left, and tells
    `context` what the rules find.

    Returns what was done.

    Raises TraceError if the forward raises, or the model's own `train` (of one that is for inference alone).
    """
    context.begin()
    try:
        in_mode(model, training)
    except Exception as error:
        raise TraceError(f"{type(error).__name__} in train(mode={training}): {error}", []) from error
    context.training = model.training
    before = dict(named_tensors(model))
    at = memory(model)
    run = Walk(model, before, context, Trail(before, inputs, model.training))
    context.trail = run.trail
    run.derived.add(context.handed_on)
    try:
        with as_written(model), _following_modules(model, context, run), run.watch, run:
            out = call(model, inputs)
    except TraceError:
        raise
    except Exception as error:
        where, suspects = context.mark(error)
        raise TraceError(f"{type(error).__name__}{where}: {error}", suspects) from error
    returned, left = list(leaves(out)), list(kept(model, context.caches.dicts()))
    changed = _changed(model, before, at, context)
    given_on = [*changed, *(t for t in left if not context.is_parameter(t))]
    context.handed_on = [t for t in given_on if t in run.derived]
    for t in returned:
        if isinstance(t, Tensor):
            context.returned(t, OUTPUT)
        else:
            context.outputs.append(seed(repr(t)).astype(np.int64))
    for t in left:
        if not context.is_parameter(t):
            context.returned(t, "a module keeps them as an attribute, which other code may read")
    run.trail.event("returned", returned, left)
    if context.failed or context.caches.dicts():
        run.trail.complete = False
    context.finished(model.training)
    return run.trail


def _changed(
    model: nn.Module, before: dict[str, Tensor], at: dict[str, tuple[int, Geometry]], context: Context
) -> list[Tensor]:
    """What a forward left in the place of other values, in the model's parameters, buffers and plain attributes: the
    context is told of it.

    Args:
        before: what was there.
        at: where in memory that was.
    """
    after, now = dict(named_tensors(model)), memory(model)
    # (Other memory may have been put in the place of the same tensor's.)
    moved = {k for k, t in before.items() if after.get(k) is not t or now[k] != at[k]}
    context.reassigned |= moved
    anew = {f"{m}.{k}" if m else k for m, module in model.named_modules() for k in made_before_each_run(module)}
    found = ((k, t) for k, t in after.items() if k in moved or k in context.touched or k not in before)
    return [t for k, t in found if k not in anew and context.left(k, t, at[k][1] if k in at else None)]
