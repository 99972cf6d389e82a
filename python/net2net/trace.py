"""trace: runs the user's own forward once and lets a rule look at every operation on the way.

What a rule learns, it says to a `Context`. There are two: `Inference` collects, from the teacher, which units must be
widened alike; `Check` (check.py) holds a student to what was inferred. Both run this same walk over the same rules, so
what a rule claims about an operation is put to the proof by the student's own forward.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from net2net import labels as lab
from net2net.outputs import kept, leaves
from net2net.skeleton import named_tensors, own_random_state
from net2net.units import FIXED, Axis, Units

Inputs = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]


class TraceError(RuntimeError):
    """The forward pass failed. `suspects` are sets of units that it may be about, the likeliest first."""

    def __init__(self, message: str, suspects: list[np.ndarray]) -> None:
        super().__init__(message)
        self.suspects = suspects


class Context(ABC):
    """What rules talk to. Labels are int32 tensors of their tensor's shape; vectors of labels are along one
    dimension."""

    def __init__(self, model: nn.Module) -> None:
        self.labels = lab.Labels()
        self.module = ""  # the innermost module being run
        self.seen_numbers: list[tuple[str, tuple[str, ...]]] = []
        self._parameters: dict[int, list[tuple[str, Tensor]]] = {}
        for name, t in named_tensors(model):
            self._parameters.setdefault(t.untyped_storage()._cdata, []).append((name, t))

    @abstractmethod
    def axis_ids(self, name: str, dim: int, size: int, role: str) -> Tensor:
        """The unit ids along a parameter's axis, which plays `role` here (see `Axis.roles`)."""

    @abstractmethod
    def join(self, a: Tensor, b: Tensor, why: str) -> None:
        """These labels (broadcast against each other) must be the same units."""

    @abstractmethod
    def pin(self, labels: Tensor, why: str) -> None:
        """These units must keep one replica."""

    def parameter(self, t: Tensor) -> tuple[str, list[int]] | None:
        """The parameter or buffer that `t` is, whole, and for each dimension of `t` the parameter's; else None.

        A transposed view counts; a slice or a reshaped view does not.
        """
        for name, p in self._parameters.get(t.untyped_storage()._cdata, []):
            if p.storage_offset() != t.storage_offset() or p.dim() != t.dim() or p.dtype != t.dtype:
                continue
            places = list(zip(p.shape, p.stride(), strict=True))
            dims: list[int] = []
            for place in zip(t.shape, t.stride(), strict=True):
                candidates = [d for d, known in enumerate(places) if known == place and d not in dims]
                # A dimension of size 1 has an arbitrary stride, and sizes may repeat: prefer the same position.
                dims.append(len(dims) if len(dims) in candidates else candidates[0] if candidates else -1)
            if -1 not in dims:
                return name, dims
        return None

    def of(self, t: Tensor) -> Tensor:
        """The labels of `t`; FIXED where nothing is known."""
        known = self.labels.get(t)
        if known is None and (vector := self._vector_parameter(t)) is not None:
            name, p, dim = vector
            ids = self.axis_ids(name, dim, p.shape[dim], "each")
            self.labels.set(p, lab.spread(ids, dim, p.shape))
            known = self.labels.get(t)
        if known is not None:
            return known
        # A weight that is read by anything but the layers that know what its axes are (a norm of it, say).
        self._pin_parameter(t, "its values are used beside the layer that it belongs to")
        return torch.full((1,) * t.dim(), FIXED, dtype=torch.int32).expand(t.shape)

    def _vector_parameter(self, t: Tensor) -> tuple[str, Tensor, int] | None:
        """The parameter or buffer behind `t`, if all but one of its dimensions have size 1, and that dimension.

        Such a tensor (a bias, a gain, a layer scale) may enter any point-wise operation, one value per unit. Whether it
        is applied to units at all is for the operation's other operands to say.
        """
        for name, p in self._parameters.get(t.untyped_storage()._cdata, []):
            if not p.is_floating_point() or p.dim() == 0 or p.numel() == 0:
                continue
            long = [d for d, n in enumerate(p.shape) if n > 1] or [p.dim() - 1 if p.dim() > 1 else 0]
            if len(long) == 1:
                return name, p, long[0]
        return None

    @abstractmethod
    def canonical(self, labels: Tensor) -> Tensor:
        """`labels` with every unit under one name, where units that were joined may still have several."""

    def along(self, t: Tensor, dim: int) -> Tensor | None:
        """The units along `dim` of `t`, if they are the same along all other dimensions; else None."""
        labels = self.of(t)
        vector = lab.along(labels, dim)
        return lab.along(self.canonical(labels), dim) if vector is None else vector

    def set(self, t: Tensor, labels: Tensor) -> None:
        self.labels.set(t, labels)

    def pin_tensor(self, t: Tensor, why: str) -> None:
        """Pins all units that `t` has, and, if it is a parameter, those of its axes."""
        self._pin_parameter(t, why)
        self.pin(self.of(t), why)

    def _pin_parameter(self, t: Tensor, why: str) -> None:
        for name, p in self._parameters.get(t.untyped_storage()._cdata, []):
            for dim, size in enumerate(p.shape[:2]):  # the kernel's dimensions hold no units
                self.pin(self.axis_ids(name, dim, size, "each"), why)

    def is_parameter(self, t: Tensor) -> bool:
        return t.untyped_storage()._cdata in self._parameters

    def units_of(self, tensors: Iterable[Tensor]) -> np.ndarray:
        """The labels that occur in these tensors."""
        known = [self.labels.get(t) for t in tensors]
        found = [lab.compact(labels).reshape(-1).numpy() for labels in known if labels is not None]
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int32), *found]))

    def numbers(self, func: Any, values: list[Any]) -> None:
        """The numbers that an operation on values was given. Code may have made them from a tensor's width (`x /
        x.shape[1]`), which no label shows; so they must be the same in the student."""
        plain = tuple(repr(v.item() if isinstance(v, Tensor) else v) for v in values)
        self.seen_numbers.append((str(func), plain))

    def where(self) -> str:
        return f" in {self.module}" if self.module else ""


class Inference(Context):
    """Collects the units of a teacher."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.units = Units()
        self.trains = False  # whether train mode was walked too

    def axis_ids(self, name: str, dim: int, size: int, role: str) -> Tensor:
        axis: Axis = self.units.axis(name, dim, size)
        axis.roles.add(role)
        return torch.from_numpy(axis.ids().astype(np.int32))

    def canonical(self, labels: Tensor) -> Tensor:
        few = lab.compact(labels)
        roots = self.units.sets.roots(few.numpy().ravel())
        return torch.from_numpy(roots.astype(np.int32)).view(few.shape).expand(labels.shape)

    def join(self, a: Tensor, b: Tensor, why: str) -> None:
        a, b = torch.broadcast_tensors(lab.compact(a), lab.compact(b))
        left, right = a.numpy().ravel(), b.numpy().ravel()
        both = (left > FIXED) & (right > FIXED)
        self.units.join(left[both], right[both])
        self.pin(torch.from_numpy(np.concatenate([left[right == FIXED], right[left == FIXED]])), why)

    def pin(self, labels: Tensor, why: str) -> None:
        self.units.pin(lab.compact(labels).numpy().ravel(), why + self.where())


#: Operations whose result is not worth computing: the weights of a skeleton are zero anyway, and only structure is
#: asked for.
COSTLY = {"aten::convolution", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation's result; for the costly ones zeros of its shape, after the operation's own checks of shapes."""
    if func._schema.name not in COSTLY:
        return func(*args, **kwargs)
    device = next(t.device for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
    meta_args, meta_kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    return torch.zeros_like(func(*meta_args, **meta_kwargs), device=device)


class _Walk(TorchDispatchMode):
    """Runs each operation, then its rule."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.where = ""  # the module that ran the last operation: after an exception, all modules have been left
        self.last: tuple[Tensor, ...] = ()  # what the last operation that saw units was given

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from net2net.rules import rule_for

        kwargs = kwargs or {}
        tensors = tuple(t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        # Parameters are not asked: a rule that does makes them take part.
        if (self.context.units_of(t for t in tensors if not self.context.is_parameter(t)) > FIXED).any():
            self.last = tensors
        self.where = self.context.where()
        out = computed(func, args, kwargs)
        rule_for(func)(self.context, func, args, kwargs, out)
        return out


@contextlib.contextmanager
def _following_modules(model: nn.Module, context: Context) -> Iterator[None]:
    """Keeps `context.module` at the innermost module being run. `model` is our own copy, so hooks harm nobody."""
    stack = [""]
    handles = []
    for name, module in model.named_modules():

        def enter(_m: nn.Module, _args: Any, name: str = name) -> None:
            stack.append(name)
            context.module = name

        def leave(_m: nn.Module, _args: Any, _out: Any) -> None:
            stack.pop()
            context.module = stack[-1]

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def call(model: nn.Module, inputs: Inputs) -> Any:
    """`model` on example inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def walk(model: nn.Module, inputs: Inputs, context: Context) -> None:
    """Runs `model` (a skeleton: see skeleton.py) on `inputs`, and tells `context` what the rules find.

    Raises TraceError if the forward raises.
    """
    mode = _Walk(context)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # Transformer layers' fused inference path hides their parameters' use in one opaque operation.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), own_random_state(model), _following_modules(model, context), mode:
            out = call(model, inputs)
    except TraceError:
        raise
    except Exception as error:
        # What flowed into the failing operation is likelier to be at fault than the parameters that it was given.
        flowing = [t for t in mode.last if not context.is_parameter(t)]
        suspects = [context.units_of(flowing), context.units_of(mode.last)]
        raise TraceError(f"{type(error).__name__}{mode.where}: {error}", suspects) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    for t in leaves(out):
        if isinstance(t, Tensor):
            context.pin_tensor(t, OUTPUT)
    for t in kept(model):
        if not context.is_parameter(t):
            context.pin(context.of(t), "a module keeps them as an attribute, which other code may read")


#: The reason for units that are the network's outputs: their number is part of the function, so they are not "skipped".
OUTPUT = "its units are the network's outputs"
