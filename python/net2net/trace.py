"""trace: runs the user's own forward once and lets a rule look at every operation on the way.

What a rule learns, it says to a `Context`. There are two: `Inference` collects, from the teacher, what must be
replicated alike; `Student` (student.py) holds a student to it, and finds out on the way how each of the student's
parameters must be laid out. Both run this same walk over the same rules, so what a rule claims about an operation is
put to the proof by the student's own forward.
"""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from net2net.outputs import kept, leaves
from net2net.shadows import Shadows, codes, compact, ids_of, replicas_of, spread
from net2net.skeleton import lazy_zeros, named_tensors, own_random_state
from net2net.units import CONSTANT, FIXED, Axis, Units, mix, seed

Inputs = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]


class TraceError(RuntimeError):
    """The forward pass failed. `suspects` are sets of value ids that it may be about, the likeliest first."""

    def __init__(self, message: str, suspects: list[np.ndarray]) -> None:
        super().__init__(message)
        self.suspects = suspects


@dataclass(frozen=True)
class Handle:
    """A parameter or buffer, and which of its dimensions each dimension of the tensor at hand is (-1: none)."""

    name: str
    tensor: Tensor
    dims: tuple[int, ...]


class Context(ABC):
    """What rules talk to. Codes (shadows.py) are int64 tensors of their tensor's shape."""

    def __init__(self, model: nn.Module, units: Units) -> None:
        self.units = units
        self.shadows = Shadows()
        self.module = ""  # the innermost module being run
        self.operation = ""  # the operation whose rule is being asked
        self.given: list[list[Tensor]] = []  # what the modules being run were given, outermost first
        self.opaque = 0  # how many modules being run are not to be looked into
        self.outputs: list[np.ndarray] = []
        self._parameters: dict[int, list[tuple[str, Tensor]]] = {}
        for name, t in named_tensors(model):
            self._parameters.setdefault(t.untyped_storage()._cdata, []).append((name, t))

    # -- what teacher and student do differently ---------------------------------------------------------------------

    @abstractmethod
    def produce(self, name: str, dim: int, size: int, role: str = "out") -> np.ndarray:
        """The codes along a parameter's axis whose positions are new units (or of which nothing is known yet)."""

    @abstractmethod
    def meet(self, name: str, dim: int, size: int, role: str, rows: np.ndarray, why: str) -> np.ndarray:
        """The codes along a parameter's axis that is applied, position by position, to values with the codes `rows`
        [any number of rows, size]. Both must be replicated alike."""

    @abstractmethod
    def tie(self, made: np.ndarray, operands: Sequence[np.ndarray]) -> np.ndarray:
        """The codes of new values with the ids `made`, that are replicated as the operands are."""

    @abstractmethod
    def fuse(self, values: np.ndarray) -> int:
        """Makes one block of all these values; returns which replica of it this is."""

    def even(self, values: np.ndarray) -> None:
        """A norm averages over these values, whatever their number."""
        self.units.even(ids_of(values))

    def head(self, values: np.ndarray) -> None:
        """These are features of heads of attention."""
        self.units.head(ids_of(values))

    @abstractmethod
    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """These values are at the same places."""

    @abstractmethod
    def pin(self, values: np.ndarray, why: str) -> None:
        """The units of these values must keep one replica."""

    @abstractmethod
    def signature(self, hashes: np.ndarray, about: np.ndarray) -> np.ndarray:
        """int64 ids of what an operation was given as a whole, the values `about`."""

    @abstractmethod
    def contracted(self, axis: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
        """uint64 [rows]: for a sum over positions, one number for the terms of each row: a position of the axis, with
        the value that it is multiplied by. In a student all replicas of a term are one term, divided among them."""

    # -- codes -------------------------------------------------------------------------------------------------------

    def roots(self, values: np.ndarray) -> np.ndarray:
        return self.units.blocks.roots(ids_of(values))

    def has_units(self, values: np.ndarray) -> bool:
        return bool((self.roots(values) > FIXED).any())

    def handle(self, t: Tensor) -> Handle | None:
        """The parameter or buffer that `t` is, or a view of; None if it is neither."""
        for name, p in self._parameters.get(t.untyped_storage()._cdata, []):
            if p.dtype != t.dtype:
                continue
            dims: list[int] = []
            for size, stride in zip(t.shape, t.stride(), strict=True):
                matching = [
                    d for d, (n, s) in enumerate(zip(p.shape, p.stride(), strict=True))
                    if s == stride and d not in dims and (n == size or (n > size > 1))
                ]  # fmt: skip
                # A dimension of size 1 has an arbitrary stride, and sizes may repeat: prefer the same position.
                at = len(dims)
                dims.append(at if at in matching else matching[0] if matching and stride and size > 1 else -1)
            return Handle(name, p, tuple(dims))
        return None

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
                dims.append(len(dims) if len(dims) in candidates else candidates[0] if candidates else -1)
            if -1 not in dims:
                return name, dims
        return None

    def of(self, t: Tensor, along: int | None = None, met: np.ndarray | None = None) -> Tensor:
        """The codes of `t`; FIXED where nothing is known.

        Args:
            along: if `t` is a parameter of which nothing is known yet: the dimension of `t` that has units; None: its
                only dimension that is longer than 1.
            met: the codes [rows, size] that it is about to be combined with along that dimension.
        """
        known = self.shadows.get(t)
        if known is None and t.is_floating_point() and (handle := self.handle(t)) is not None and t.numel():
            known = self._label(t, handle, along, met)
        if known is not None:
            return known
        # A weight that is read by anything but the layers that know what its axes are (a norm of it, say).
        self._pin_parameter(t, "its values are used beside the layer that it belongs to")
        return self._unlabelled(t)

    def _unlabelled(self, t: Tensor) -> Tensor:
        """One fixed value: a parameter or buffer is known by its name and place, anything else by its content."""
        if (handle := self.handle(t)) is not None:
            key: Any = ("parameter", handle.name, t.storage_offset(), tuple(t.shape), t.stride())
        else:
            content = b"" if t.is_meta or t.numel() > _CONTENT else _bytes(t)
            key = ("content", str(t.dtype), tuple(t.shape), hashlib.blake2b(content, digest_size=16).hexdigest())
        made = self.units.intern(np.atleast_1d(seed(key)))
        self.units.adopt(made, FIXED)
        return torch.from_numpy(codes(made)).reshape((1,) * t.dim()).expand(t.shape)

    def _label(self, t: Tensor, handle: Handle, along: int | None, met: np.ndarray | None) -> Tensor | None:
        """Labels a parameter that is met by anything but the layers that know what its axes are."""
        p = handle.tensor
        if along is None:
            long = [d for d in range(t.dim()) if t.shape[d] > 1 and t.stride(d)]
            if len(long) > 1:
                return None
            if long:
                along = long[0]
        if along is None:
            wide = [d for d, n in enumerate(p.shape) if n > 1]
            dim = wide[0] if len(wide) == 1 else p.dim() - 1 if not wide else -1
            if p.dim() == 1:
                dim = 0
        else:
            dim = handle.dims[along]
        if dim < 0 or p.dim() == 0:
            return None
        size = p.shape[dim]
        self.units.values.add((handle.name, dim))
        if met is not None and met.shape[-1] == size:
            vector = self.meet(
                handle.name, dim, size, "each", met, f"{handle.name} is applied to values of fixed width"
            )
        else:
            vector = self.produce(handle.name, dim, size, "each")
        self.shadows.set(p, spread(torch.from_numpy(vector), dim, p.shape))
        return self.shadows.get(t)

    def set(self, t: Tensor, made: np.ndarray | Tensor) -> None:
        """`made`: codes that can be broadcast to the shape of `t`."""
        made = torch.from_numpy(np.array(made)) if isinstance(made, np.ndarray) else made
        if made.dim() > t.dim():
            made = made.reshape(made.shape[made.dim() - t.dim() :])
        self.shadows.set(t, made.reshape((1,) * (t.dim() - made.dim()) + tuple(made.shape)).expand(t.shape))

    def make(self, key: object, operands: Sequence[np.ndarray], tied: Sequence[bool] | None = None) -> np.ndarray:
        """Codes of the values that an operation makes of its operands, element by element (broadcast), of which those
        that are `tied` (all, by default) must be replicated with the result.

        Args:
            key: names the operation with all numbers that it depends on.
        """
        arrays = np.broadcast_arrays(*operands) if operands else [np.zeros((), dtype=np.int64)]
        state: Any = seed(key)
        for array in arrays:
            state = mix(state, ids_of(array))
        if not operands:
            constant = self.units.intern(np.atleast_1d(state))
            self.units.adopt(constant, CONSTANT)
            return codes(constant).reshape(())
        made = self.units.intern(state)
        wanted = [True] * len(arrays) if tied is None else tied
        return self._tied(made, list(arrays), wanted)

    def _tied(self, made: np.ndarray, operands: list[np.ndarray], tied: Sequence[bool]) -> np.ndarray:
        fresh = made >= self.units.fresh
        roots = [self.roots(a) for a in operands]
        self.check_known(made, [a for a, r in zip(operands, roots, strict=True) if (r > FIXED).any()])
        if fresh.any():
            # New values are put where their first operand with a unit is.
            block, place = np.zeros(made.shape, dtype=np.int64), made.copy()
            for a, r, t in zip(operands, roots, tied, strict=True):
                first = (r > FIXED) & (block <= FIXED)
                if t and first.any():
                    place[first] = self.units.places.roots(ids_of(a[first]))
                    block[first] = r[first]
                block[(r >= FIXED) & (block < FIXED)] = FIXED
            self.units.blocks.put(made[fresh], block[fresh])
            self.units.places.put(made[fresh], place[fresh])
        return self.tie(made, [a for a, t in zip(operands, tied, strict=True) if t])

    def derive(
        self, key: object, operands: Sequence[np.ndarray], units: np.ndarray, replicas: np.ndarray
    ) -> np.ndarray:
        """As `make`, of values that are replicated with the blocks of `units` (or are fixed, where these are not
        units); they are themselves these replicas."""
        arrays = np.broadcast_arrays(*operands)
        state: Any = seed(key)
        for array in arrays:
            state = mix(state, ids_of(array))
        made = self.units.intern(state)
        units, replicas = np.broadcast_to(units, made.shape), np.broadcast_to(replicas, made.shape)
        lone = self.roots(units) <= FIXED
        self.check_known(made, [units])
        self.units.adopt(made[lone], FIXED)
        self.grow_with(made[~lone], ids_of(units[~lone]))
        return codes(made, replicas)

    def bundle(self, values: np.ndarray, dims: Sequence[int]) -> np.ndarray:
        """The codes `values` with one for all along `dims`, in which several units take turns (as in an image whose
        channels were made of several by a pixel shuffle): these become one block."""
        for dim in dims:
            n = values.shape[dim]
            if n == 1:
                continue
            last = np.moveaxis(values, dim, -1)
            rows = last.reshape(-1, n)
            replicas = np.array([self.fuse(row) for row in rows])
            units = np.take_along_axis(rows, np.argmax(self.roots(rows) > FIXED, axis=-1)[:, None], -1)[:, 0]
            made = self.derive(("bundle", n), list(rows.T), units, replicas)
            values = np.moveaxis(made.reshape(*last.shape[:-1], 1), -1, dim)
        return values

    @abstractmethod
    def grow_with(self, made: np.ndarray, units: np.ndarray) -> None:
        """The new values `made` are in the blocks of `units`."""

    @abstractmethod
    def crossing(self, rows: np.ndarray, what: str) -> bool:
        """Whether units lie across the rows of codes [rows, n] too: see `Units.crossing`. `what` names the
        operation."""

    def running(self, mode: Walk) -> None:  # noqa: B027 -- only students care
        """A walk begins."""

    @abstractmethod
    def finished(self, training: bool) -> None:
        """A walk has ended, and all outputs are known."""

    def families(self, values: np.ndarray) -> np.ndarray:
        """The codes `values`, but with one for all along dimensions that hold no units: tokens, windows, regions of a
        mask. They hold as many values as ever, whatever the widths, so that one id may stand for all of them."""
        if values.size == 1:
            return values
        ids = ids_of(values)
        roots = self.units.blocks.roots(ids)
        if not (roots > FIXED).any():
            state = total(mix(mix(seed(values.shape), np.arange(values.size)), ids.ravel()))
            made = self.units.intern(np.atleast_1d(state))
            self.units.adopt(made, int(roots.max()))
            return codes(made).reshape((1,) * values.ndim)
        for dim, n in enumerate(values.shape):
            if n == 1:
                continue
            places = np.where(roots == CONSTANT, CONSTANT, self.units.places.roots(ids))
            most = places.max(axis=dim, keepdims=True)
            if not ((places == most) | (places == CONSTANT)).all():
                continue
            which = replicas_of(values)
            if (which != which.take([0], axis=dim)).any():  # the replicas of a single unit
                continue
            state = seed(("family", n))
            for i in range(n):
                state = mix(state, ids.take([i], axis=dim))
            made = self.units.intern(state)
            chosen = np.argmax(roots, axis=dim, keepdims=True)
            unit = np.take_along_axis(values, chosen, axis=dim)
            self.join(values, unit)
            self.units.adopt(made[most == CONSTANT], CONSTANT)
            self.check_known(made, [unit])
            values = self.tie(made, [unit])
            ids = ids_of(values)
            roots = self.units.blocks.roots(ids)
        return values

    def check_known(self, made: np.ndarray, about: list[np.ndarray]) -> None:  # noqa: B027 -- a teacher may
        """A student must not compute values of units that the teacher has not got."""

    def pin_tensor(self, t: Tensor, why: str) -> None:
        """Pins all units that `t` has, and, if it is a parameter, those of its axes."""
        self._pin_parameter(t, why)
        if (known := self.shadows.get(t)) is not None:
            self.pin(compact(known).numpy(), why)

    def _pin_parameter(self, t: Tensor, why: str) -> None:
        for name, p in self._parameters.get(t.untyped_storage()._cdata, []):
            if not p.is_floating_point():
                continue
            for dim, size in enumerate(p.shape[:2]):  # the kernel's dimensions hold no units
                self.pin(self.produce(name, dim, size, "each"), why)

    def is_parameter(self, t: Tensor) -> bool:
        return t.untyped_storage()._cdata in self._parameters

    def values_in(self, tensors: Iterable[Tensor]) -> np.ndarray:
        """The ids that occur in these tensors."""
        known = [self.shadows.get(t) for t in tensors]
        found = [ids_of(compact(k).numpy()).ravel() for k in known if k is not None]
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))

    def where(self) -> str:
        at = f" in {self.module}" if self.module else ""
        return f"{at} ({self.operation})" if self.operation else at

    def returned(self, t: Tensor, why: str) -> None:
        """What the network gives away: its values are part of the function."""
        self.pin_tensor(t, why)
        self.outputs.append(ids_of(compact(self.of(t)).numpy()))


#: Tensors of more elements than this are not compared by their content: inputs, which are the same in any case.
_CONTENT = 2**22


def _bytes(t: Tensor) -> bytes:
    dense = t.detach().cpu().contiguous().reshape(-1)
    return dense.view(torch.uint8).numpy().tobytes()


def row_keys(rows: np.ndarray) -> np.ndarray:
    """int64 [n]: for each column of the codes [rows, n], one number for its values."""
    state: Any = seed("rows")
    for row in rows:
        state = mix(state, ids_of(row))
    return np.asarray(state).astype(np.int64)


class Inference(Context):
    """Collects the units of a teacher."""

    def __init__(self, model: nn.Module, units: Units) -> None:
        super().__init__(model, units)
        self.returns: dict[bool, list[np.ndarray]] = {}  # in eval mode, and in train mode if that could be walked too

    def finished(self, training: bool) -> None:
        self.returns[training], self.outputs = self.outputs, []

    def _axis(self, name: str, dim: int, size: int, role: str) -> Axis:
        axis = self.units.axis(name, dim, size)
        axis.roles.add(role)
        return axis

    def produce(self, name: str, dim: int, size: int, role: str = "out") -> np.ndarray:
        return codes(self._axis(name, dim, size, role).ids())

    def meet(self, name: str, dim: int, size: int, role: str, rows: np.ndarray, why: str) -> np.ndarray:
        axis = self._axis(name, dim, size, role)
        ids = axis.ids()
        for row in np.unique(rows, axis=0) if len(rows) > 1 else rows:
            self._meeting(ids, row, why)
        if axis.met is None:
            axis.met = row_keys(rows)
        return codes(ids)

    def _meeting(self, ids: np.ndarray, row: np.ndarray, why: str) -> None:
        self.units.join(ids, ids_of(row))
        self.units.pin(ids[self.roots(row) == FIXED], why + self.where())

    def tie(self, made: np.ndarray, operands: Sequence[np.ndarray]) -> np.ndarray:
        for operand in operands:
            self.units.join(made, ids_of(operand))
        return codes(made)

    def fuse(self, values: np.ndarray) -> int:
        self.units.fuse(ids_of(values).ravel())
        return 0

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        a, b = np.broadcast_arrays(a, b)
        self.units.join(ids_of(a), ids_of(b))

    def pin(self, values: np.ndarray, why: str) -> None:
        self.units.pin(ids_of(values).ravel(), why + self.where())

    def signature(self, hashes: np.ndarray, about: np.ndarray) -> np.ndarray:
        ids = self.units.intern(hashes)
        self.units.adopt(ids, CONSTANT)
        return ids

    def grow_with(self, made: np.ndarray, units: np.ndarray) -> None:
        self.units.blocks.join(made, units)

    def crossing(self, rows: np.ndarray, what: str) -> bool:
        return self.units.decisions.setdefault((self.module, what), self.units.crossing(rows))

    def contracted(self, axis: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
        return total(mix(mix(seed("term"), ids_of(axis)), ids_of(rows)))


def total(terms: np.ndarray) -> np.ndarray:
    """uint64: the sum of hashes over the last dimension, in whatever order."""
    with np.errstate(over="ignore"):
        return np.asarray(terms.sum(-1, dtype=np.uint64))


#: Operations whose result is not worth computing: the weights of a skeleton are zero anyway, and only structure is
#: asked for.
COSTLY = {
    "aten::convolution", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
}  # fmt: skip


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation's result; for the costly ones zeros of its shape, after the operation's own checks of shapes."""
    if func._schema.name not in COSTLY:
        return func(*args, **kwargs)
    device = next(t.device for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
    meta_args, meta_kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))

    def zeros(t: Tensor) -> Tensor:  # they are dense, in whatever memory format
        return lazy_zeros((t.numel(),), t.dtype, device).as_strided(t.shape, t.stride())

    return tree_map_only(Tensor, zeros, func(*meta_args, **meta_kwargs))


class Walk(TorchDispatchMode):
    """Runs each operation, then its rule."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.where = ""  # the module that ran the last operation: after an exception, all modules have been left
        self.last: tuple[Tensor, ...] = ()  # what the last operation that saw units was given
        #: Of each operation: the elements of its first tensor, and the numbers that it was given.
        self.seen: list[tuple[int, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from net2net.rules.table import refuse, rule_for, unknown

        kwargs = kwargs or {}
        leaves_ = tree_leaves((args, kwargs))
        tensors = tuple(t for t in leaves_ if isinstance(t, Tensor))
        # Parameters are not asked: a rule that does makes them take part.
        if any(not self.context.is_parameter(t) and self.context.shadows.get(t) is not None for t in tensors):
            self.last = tensors
        plain = tuple(a for a in leaves_ if isinstance(a, int) and not isinstance(a, bool))
        self.seen.append((tensors[0].numel() if tensors else 0, plain))
        self.where = self.context.where()
        try:
            out = computed(func, args, kwargs)
            self.context.operation = str(func)
            rule = rule_for(func) if not self.context.opaque else unknown
            try:
                rule(self.context, func, args, kwargs, out)
            except TraceError:
                raise
            except Exception as error:  # not foreseen by the rule; in a student the same happens
                refuse(self.context, func, args, kwargs, out, f"{func} is not understood here ({error})")
        except Exception as error:
            self.mark(error)
            raise
        finally:
            self.context.operation = ""
        return out

    def mark(self, error: Any) -> tuple[str, list[np.ndarray]]:
        """Keeps with an error, when it is first seen, where it was and what it may be about; returns both."""
        if not hasattr(error, "where"):
            with _disable_current_modes():
                error.suspects = [*getattr(error, "suspects", []), *self._suspects()]
            error.where = self.where
        return error.where, error.suspects

    def _suspects(self) -> list[np.ndarray]:
        # What flowed into the failing operation is likelier to be at fault than the parameters that it was given.
        flowing = [t for t in self.last if not self.context.is_parameter(t)]
        return [self.context.values_in(ts) for ts in (flowing, self.last, *reversed(self.context.given))]


#: Modules that are not looked into: what goes in and what comes out keeps its width.
OPAQUE: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.RNNCellBase)


@contextlib.contextmanager
def _following_modules(model: nn.Module, context: Context) -> Iterator[None]:
    """Keeps `context.module` at the innermost module being run. `model` is our own copy, so hooks harm nobody."""
    stack = [""]
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            stack.append(name)
            context.module = name
            context.given.append([t for t in tree_leaves(args) if isinstance(t, Tensor)])
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


def call(model: nn.Module, inputs: Inputs) -> Any:
    """`model` on example inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def walk(model: nn.Module, inputs: Inputs, context: Context) -> None:
    """Runs `model` (a skeleton: see skeleton.py) on `inputs`, and tells `context` what the rules find.

    Raises TraceError if the forward raises.
    """
    mode = Walk(context)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # Transformer layers' fused inference path hides their parameters' use in one opaque operation.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), own_random_state(model), _following_modules(model, context), mode:
            context.running(mode)
            out = call(model, inputs)
    except TraceError:
        raise
    except Exception as error:
        where, suspects = mode.mark(error)
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


#: The reason for units that are the network's outputs: their number is part of the function, so they are not "skipped".
OUTPUT = "its units are the network's outputs"
