"""context: what a rule says of an operation, it says to a `Context`.

There are two: `Inference` (inference.py) collects, from the teacher, what must be replicated alike; `Student`
(student.py) holds a student to it, and finds out on the way how each of the student's parameters must be laid out. Both
hear the same rules, so what a rule claims about an operation is put to the proof by the student's own forward.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from net2net.caches import Caches, Place
from net2net.carriers import Carriers
from net2net.expanded import Expanded
from net2net.hashes import content, digest, expression, mix, seed, total
from net2net.parameters import Handle, Parameters
from net2net.shadows import Shadows, codes, compact, compressed, ids_of, replicas_of, spread
from net2net.units import CONSTANT, FIXED, Units
from net2net.views import Geometry, geometry_of

if TYPE_CHECKING:
    from net2net.trail import Trail


class TraceError(RuntimeError):
    """The forward pass failed. `suspects` are sets of value ids that it may be about, the likeliest first."""

    def __init__(self, message: str, suspects: list[np.ndarray]) -> None:
        super().__init__(message)
        self.suspects = suspects


class Context(ABC):
    """What rules talk to. Codes (shadows.py) are int64 tensors of their tensor's shape."""

    def __init__(self, model: nn.Module, units: Units, caches: Sequence[Place] = ()) -> None:
        self.units = units
        self.caches = Caches(model, caches)
        self.shadows = Shadows()
        self.parameters = Parameters(model)
        self.carriers = Carriers(self.parameters)
        self.expanded = Expanded()
        self.training = False  # whether the model is being run in train mode
        self.module = ""  # the innermost module being run
        self.operation = ""  # the operation whose rule is being asked
        self.reassigned: set[str] = set()  # buffers and plain attributes that a forward has put others in the place of
        self.given: list[list[Tensor]] = []  # what the modules being run were given, outermost first
        self.outputs: list[np.ndarray] = []
        self.handed_on: list[Tensor] = []  # what the last walk left for the next one that it made of weights
        #: What `make` has made before, by all that it was given.
        self.made: dict[bytes, np.ndarray] = {}
        #: What views have been found to be (rules/table.py), by the codes that they are of.
        self.scattered: dict[bytes, bool] = {}
        #: Whether selections by values are taken whole (derived.py).
        self.whole = True
        self.begin()

    def begin(self) -> None:
        """A walk begins."""
        self.units.flatten()
        self.carriers.begin()
        self.parameters.begin()
        self.caches.clear()
        self.expanded.clear()
        self._tables: dict[int, int] = {}  # tables by their memory, with the dimension that has units
        self.last: tuple[Tensor, ...] = ()  # what the last operation that saw units was given
        self.failed = False  # whether anything has raised that was not mended then
        self.trail: Trail | None = None  # of this walk
        #: The parameters and buffers that were written to, with the ids of what was at hand.
        self.touched: dict[str, list[np.ndarray]] = {}
        self.reached = ""  # where the last operation was: after an exception, all modules have been left
        #: Of each operation: the elements of its first tensor, and the numbers that it was given.
        self.seen: list[tuple[int, tuple[int, ...]]] = []

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
    def fuse(self, rows: np.ndarray) -> np.ndarray:
        """Makes one block of the values in each row of the codes [n, m]; returns which replica of it this is, int64
        [n]."""

    def even(self, values: np.ndarray) -> None:
        """A norm averages over these values, whatever their number."""
        self.units.even(ids_of(values))

    def head(self, values: np.ndarray) -> None:
        """These are features of heads of attention."""
        self.units.head(ids_of(values))

    def read(self, values: np.ndarray) -> None:  # noqa: B027 -- it matters to a teacher alone
        """What is made of these values does not have their units any more."""

    @abstractmethod
    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """These values are at the same places."""

    def agree(self, a: np.ndarray, b: np.ndarray) -> None:  # noqa: B027 -- a teacher has no replicas
        """These values, of the same blocks, are of the same replicas."""

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

    def of(self, t: Tensor, along: int | None = None, met: np.ndarray | None = None) -> Tensor:
        """The codes of `t`; FIXED where nothing is known.

        Args:
            along: if `t` is a parameter of which nothing is known yet: the dimension of `t` that has units; None: its
                only dimension that is longer than 1.
            met: the codes [rows, size] that it is about to be combined with along that dimension.
        """
        known = self.shadows.get(t)
        if known is None and t.is_floating_point() and (handle := self.parameters.handle(t)) is not None and t.numel():
            known = self._label(t, handle, along, met)
        if known is not None:
            self._sign_rows(t, known)
            return self._part_of_fixed(t, known)
        # A weight that is read by anything but the layers that know what its axes are (a norm of it, say).
        self._pin_parameter(t, "its values are used beside the layer that it belongs to")
        return self._unlabelled(t)

    def _part_of_fixed(self, t: Tensor, known: Tensor) -> Tensor:
        """The codes of `t`; one of its own, if it is a part of something fixed that has one for all of it. Which part,
        a width may have told."""
        few = compact(known)
        if few.numel() != 1 or self.is_parameter(t):
            return known
        long = [(n, step) for n, step in zip(t.shape, t.stride(), strict=True) if n > 1 and step]
        if math.prod(n for n, _ in long) * t.element_size() >= t.untyped_storage().nbytes():
            return known
        if (self.roots(few.numpy()) != FIXED).any():
            return known
        made = self.units.intern(expression(("part", t.storage_offset(), long), [ids_of(few.numpy())]))
        self.units.adopt(made.ravel(), FIXED)
        return torch.from_numpy(codes(made)).expand(t.shape)

    def _unlabelled(self, t: Tensor) -> Tensor:
        """One fixed value: a parameter or buffer is known by its name and place, anything else by its content."""
        if (how := self.parameters.made(t)) is not None:
            key: Any = ("made", how.sources, how.what, how.formula, t.storage_offset(), tuple(t.shape), t.stride())
        elif (handle := self.parameters.handle(t)) is not None:
            key = ("parameter", handle.name, t.storage_offset(), tuple(t.shape), t.stride())
        else:
            few = compact(t.detach())  # it may be expanded to as many heads as there are
            held = b"" if t.is_meta or few.numel() > _CONTENT else content(few)
            key = ("content", str(t.dtype), tuple(few.shape), hashlib.blake2b(held, digest_size=16).hexdigest())
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
        labelled, at = p, dim
        if handle.copy is not None:
            labelled, dims = handle.copy[0], handle.copy[1].dims or ()
            if dim not in dims or labelled.shape[at := dims.index(dim)] != size:
                return None
        self.units.values.add((handle.name, dim))
        if met is not None and met.shape[-1] == size:
            vector = self.meet(
                handle.name, dim, size, "each", met, f"{handle.name} is applied to values of fixed width"
            )
        else:
            vector = self.produce(handle.name, dim, size, "each")
        if handle.copy is not None and (function := handle.copy[1].function):
            vector = self.make(("function", function), [vector])
        self.shadows.set(labelled, spread(torch.from_numpy(vector), at, labelled.shape))
        self._tables[labelled.untyped_storage()._cdata] = dim
        return self.shadows.get(t)

    def _sign_rows(self, t: Tensor, known: Tensor) -> None:
        """Which rows of a table are taken, no width may tell."""
        dim = self._tables.get(t.untyped_storage()._cdata)
        if dim is None or (handle := self.parameters.handle(t)) is None:
            return
        if rows := [cut for cut in handle.cuts(t) if cut[0] != dim]:
            self.signature(np.atleast_1d(seed(("rows", handle.name, rows))), compact(known).numpy())

    def set(self, t: Tensor, made: np.ndarray | Tensor) -> None:
        """`made`: codes that can be broadcast to the shape of `t`."""
        made = torch.from_numpy(np.array(made)) if isinstance(made, np.ndarray) else made
        if made.dim() > t.dim():
            made = made.reshape(made.shape[made.dim() - t.dim() :])
        self.shadows.set(t, made.reshape((1,) * (t.dim() - made.dim()) + tuple(made.shape)).expand(t.shape))

    def make(
        self,
        key: object,
        operands: Sequence[np.ndarray],
        tied: Sequence[bool] | None = None,
        *,
        uniform: bool = False,
    ) -> np.ndarray:
        """Codes of the values that an operation makes of its operands, element by element (broadcast), of which those
        that are `tied` (all, by default) must be replicated with the result.

        Args:
            key: names the operation with all numbers that it depends on.
            uniform: where the operands hold one constant everywhere, so does the result: it agrees with any unit, too.
                (A running sum of ones, or ones with a border of zeros, does not.)
        """
        whole = digest(key, tied, *operands)
        if (before := self.made.get(whole)) is not None:
            return before
        self.made[whole] = made = self._make(key, operands, tied, uniform)
        return made

    def without_repeats(self, vectors: list[np.ndarray]) -> tuple[list[np.ndarray], list[int | None]]:
        """Of vectors of codes that an operation is given side by side (a norm's gain, bias and statistics) those that
        tell more than the first, and what stands for the others, which are joined to it: by how much they are off it,
        all along."""
        different, alike = vectors[:1], list[int | None]()
        for vector in vectors[1:]:
            off = vector - vectors[0]
            if len(off) and (off == off[0]).all():
                self.join(vector, vectors[0])
                alike.append(int(off[0]))
            else:
                different.append(vector)
                alike.append(None)
        return different, alike

    def _make(
        self, key: object, operands: Sequence[np.ndarray], tied: Sequence[bool] | None, uniform: bool
    ) -> np.ndarray:
        arrays = np.broadcast_arrays(*operands) if operands else [np.zeros((), dtype=np.int64)]
        state = expression(key, map(ids_of, arrays))
        if not operands:
            constant = self.units.intern(np.atleast_1d(state))
            self.units.adopt(constant, CONSTANT)
            return codes(constant).reshape(())
        made = self.units.intern(state)
        wanted = [True] * len(arrays) if tied is None else tied
        return self._tied(made, list(arrays), wanted, uniform)

    def _tied(self, made: np.ndarray, operands: list[np.ndarray], tied: Sequence[bool], uniform: bool) -> np.ndarray:
        fresh = made >= self.units.fresh
        roots = [self.roots(a) for a in operands]
        self.check_known(made, (a for a, r in zip(operands, roots, strict=True) if (r > FIXED).any()))
        if fresh.any():
            # New values are put where their first operand with a unit is.
            block, place = np.zeros(made.shape, dtype=np.int64), made.copy()
            for a, r, t in zip(operands, roots, tied, strict=True):
                first = (r > FIXED) & (block <= FIXED)
                if t and first.any():
                    place[first] = self.units.places.roots(ids_of(a[first]))
                    block[first] = r[first]
                block[(r >= FIXED) & (block < FIXED)] = FIXED
                if (block > FIXED).all():
                    break
            constant = block == CONSTANT
            if constant.any() and not (uniform and not any(self.units.varied(ids_of(a)) for a in operands)):
                block[constant] = FIXED
            self.units.blocks.put(made[fresh], block[fresh])
            self.units.places.put(made[fresh], place[fresh])
        return self.tie(made, [a for a, t in zip(operands, tied, strict=True) if t])

    def agreeing(self, made: np.ndarray) -> None:
        """The new values `made` agree with any unit, though each stands for several: it is no single constant."""
        self.units.adopt(made.ravel(), CONSTANT)
        self.units.vary(made)

    def derive(
        self, key: object, operands: Sequence[np.ndarray], units: np.ndarray, replicas: np.ndarray
    ) -> np.ndarray:
        """As `make`, of values that are replicated with the blocks of `units` (or are fixed, where these are not
        units); they are themselves these replicas."""
        made = self.units.intern(expression(key, map(ids_of, np.broadcast_arrays(*operands))))
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
            replicas = self.fuse(rows)
            units = np.take_along_axis(rows, np.argmax(self.roots(rows) > FIXED, axis=-1)[:, None], -1)[:, 0]
            made = self.derive(("bundle", n), list(rows.T), units, replicas)
            values = np.moveaxis(made.reshape(*last.shape[:-1], 1), -1, dim)
        return values

    def weight(self, t: Tensor) -> Handle | None:
        """The parameter that a layer uses as its weight: `t` itself, or what it is computed from."""
        known = self.parameters.weight(t)
        if known is not None:
            self.units.used_as(known.name, known.how)
        return known

    @abstractmethod
    def beside(self, values: np.ndarray, name: str, dim: int) -> None:
        """These values are those of a weight's axis, of which it is not known yet who meets it."""

    @abstractmethod
    def along(self, name: str, dim: int, size: int, weight: str, of: int) -> None:
        """A weight is multiplied by the parameter or buffer `name`, whose axis `dim` meets the weight's axis `of`,
        position by position."""

    @abstractmethod
    def grow_with(self, made: np.ndarray, units: np.ndarray) -> None:
        """The new values `made` are in the blocks of `units`."""

    @abstractmethod
    def cut(self, end: int) -> None:
        """A slice ends beyond the end of what it is of, an input perhaps: another one may be longer."""

    def take_part(self, tensors: Iterable[Tensor]) -> None:  # noqa: B027 -- a student's have, if its teacher's have
        """An operation was given these."""

    @abstractmethod
    def crossing(self, rows: np.ndarray, what: str) -> bool:
        """Whether units lie across the rows of codes [rows, n] too: see `Units.crossing`. `what` names the
        operation."""

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
            constant = roots == CONSTANT
            if constant.any() and not constant.all() and values.size <= _FEW:
                return self._beside_constants(ids, constant)
            state = total(mix(mix(seed(values.shape), np.arange(values.size)), ids.ravel()))
            made = self.units.intern(np.atleast_1d(state))
            # Different constants are as good as anything that is given: another one for each head, perhaps.
            self.units.adopt(made, FIXED if (ids != ids.flat[0]).any() else int(roots.max()))
            return codes(made).reshape((1,) * values.ndim)
        for dim, n in enumerate(values.shape):
            if n == 1:
                continue
            two = tuple(slice(2) if d == dim else 0 for d in range(values.ndim))
            first, second = self.units.places.roots(ids[two]).tolist()
            if first != second and CONSTANT not in roots[two]:  # most often, the units lie along it
                self.apart(*ids[two].tolist())
                continue
            places = np.where(roots == CONSTANT, CONSTANT, self.units.places.roots(ids))
            most = places.max(axis=dim, keepdims=True)
            others = (places != most) & (places != CONSTANT)
            if others.any():
                line = np.moveaxis(others, dim, -1).any(-1)
                seen, here = np.moveaxis(ids, dim, -1)[line][0], np.moveaxis(places, dim, -1)[line][0]
                self.apart(seen[np.argmax(here)], seen[np.argmax((here != here.max()) & (here != CONSTANT))])
                continue
            which = np.where(places == CONSTANT, 0, replicas_of(values))  # a constant is in place beside any of them
            several = (which != which.max(axis=dim, keepdims=True)) & (places != CONSTANT)
            if several.any():  # the replicas of a single unit
                continue
            made = self.units.intern(expression(("family", n), (ids.take([i], axis=dim) for i in range(n))))
            chosen = np.argmax(roots, axis=dim, keepdims=True)
            unit = np.take_along_axis(values, chosen, axis=dim)
            self.join(values, unit)
            constant = most == CONSTANT
            alike = (ids == ids.take([0], axis=dim)).all(axis=dim, keepdims=True)
            self.units.adopt(made[constant & alike], CONSTANT)
            self.units.adopt(made[constant & ~alike], FIXED)
            self.check_known(made, [unit])
            values = self.tie(made, [unit])
            ids = ids_of(values)
            roots = self.units.blocks.roots(ids)
        return values

    def _beside_constants(self, ids: np.ndarray, constant: np.ndarray) -> np.ndarray:
        """The same of ids without units, of which some are `constant`: these (the state that a recurrence begins with,
        beside an input) stay apart from the others, since units may take their place later."""
        for dim, n in enumerate(ids.shape):
            first = constant.take([0], axis=dim)
            if n == 1 or (constant != first).any():
                continue
            alike = (ids == ids.take([0], axis=dim)).all(axis=dim, keepdims=True)
            made = self.units.intern(expression(("family", n), (ids.take([i], axis=dim) for i in range(n))))
            self.units.adopt(made[first & alike], CONSTANT)
            self.units.adopt(made[~(first & alike)], FIXED)
            ids, constant = made, first & alike
        return codes(ids)

    def taken(self, of: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Of the values `of`, those of `part` are taken by their place, and the rest is left. The id of that choice."""
        ids = self.units.intern(np.atleast_1d(total(mix(seed("taken"), np.unique(ids_of(part))))))
        self.units.adopt(ids, CONSTANT)
        return ids

    def apart(self, a: int, b: int) -> None:  # noqa: B027 -- only teachers learn more later
        """Something was decided by the values with these ids being at different places."""

    def check_known(self, made: np.ndarray, about: Iterable[np.ndarray]) -> None:  # noqa: B027 -- a teacher may
        """A student must not compute values of units that the teacher has not got."""

    def pin_tensor(self, t: Tensor, why: str) -> None:
        """Pins all units that `t` has, and, if it is a parameter, those of its axes."""
        self._pin_parameter(t, why)
        if (known := self.shadows.get(t)) is not None:
            self.pin(compact(known).numpy(), why)

    def overwritten(self, t: Tensor) -> None:
        """Something is written to `t`: what it was made of parameters cannot take their place any more."""
        if self.parameters.made(t) is not None:
            codes = self.of(t)  # this pins them
            self.parameters.forget(t)
            self.shadows.set(t, codes)

    def wrote(self, t: Tensor) -> None:
        """An operation has written to `t`."""
        for name, _ in self.parameters.owners(t):
            flowing = [other for other in self.last if not self.is_parameter(other)]
            self.touched[name] = [np.unique(self.values_in(near)) for near in (flowing, *self.given[-1:])]

    def left(self, name: str, t: Tensor, before: Geometry | None) -> bool:
        """At the end, a forward leaves `t` in the parameter or buffer `name`, or as this plain attribute, for another
        one to read. Returns whether it is another value than before.

        Args:
            before: how what was there before lay in memory; None: there was nothing.
        """
        known, its_own = self.shadows.get(t), any(owner == name for owner, _ in self.parameters.owners(t))
        seen: tuple[Any, ...] = ()
        if its_own and geometry_of(t) != before:
            why = f"{name} is put in its own place in another view"
            for (tensor, _), axis in self.units.axes.items():
                if tensor == name:
                    self.pin(codes(axis.ids()), why)
            seen = ("seen", geometry_of(t))
        elif known is None and its_own and (made := self.parameters.made(t)) is not None:
            seen = ("made", made.sources, made.what, made.formula)
        elif known is None and not its_own:
            if self._is_copy_of(name, t):  # in another dtype, perhaps
                return False
            known = self.of(t)
        if seen:
            one = self.units.intern(np.atleast_1d(seed((name, *seen))))
            self.units.adopt(one, FIXED)
            known = torch.from_numpy(codes(one)).reshape((1,) * t.dim()).expand(t.shape)
        values = None if known is None else compact(compressed(known)).numpy()
        self.leave(name, values, tuple(t.shape), before is not None and before[0] == tuple(t.shape))
        return True

    def _is_copy_of(self, name: str, t: Tensor) -> bool:
        handle = self.parameters.handle(t)
        if handle is None or handle.copy is None or handle.copy[1].function:
            return False
        return handle.name == name and t.shape == handle.tensor.shape and handle.dims == tuple(range(t.dim()))

    @abstractmethod
    def leave(self, name: str, values: np.ndarray | None, shape: tuple[int, ...], like_before: bool) -> None:
        """`left`, of codes of size 1 along dimensions along which they are all the same; None: it is what it was.

        Args:
            like_before: whether it has the shape of what was there before.
        """

    def pin_living(self, why: str) -> None:
        """Pins the units of all that is in memory at this point of the forward, but for parameters and buffers."""
        for storage, known in self.shadows.living():
            if not self.parameters.in_memory(storage):
                self.pin(compact(known).numpy(), why)

    def pin_weights(self, module: str, why: str) -> None:
        """Pins the units of all parameters and buffers in a module."""
        for t in self.parameters.within(module):
            self.pin_tensor(t, why)

    def _pin_parameter(self, t: Tensor, why: str) -> None:
        made = self.parameters.made(t)
        sources = [] if made is None else self.parameters.named(made.sources)
        for name, p in [*self.parameters.owners(t), *sources]:
            if not p.is_floating_point():
                continue
            for dim, size in enumerate(p.shape[:2]):  # the kernel's dimensions hold no units
                self.pin(self.produce(name, dim, size, "each"), why)

    def units_of(self, tensors: Iterable[Tensor]) -> np.ndarray:
        """The ids of the axes of these parameters."""
        names = {name for t in tensors for name, _ in self.parameters.owners(t)}
        axes = (axis.ids() for (name, _), axis in self.units.axes.items() if name in names)
        return np.concatenate([np.zeros(0, dtype=np.int64), *axes])

    def is_parameter(self, t: Tensor) -> bool:
        return t in self.parameters

    def is_counter(self, t: Tensor) -> bool:
        """Whether it is a buffer of integers (of batches, say)."""
        return not t.is_floating_point() and self.is_parameter(t)

    def is_new(self, t: Tensor) -> bool:
        """Whether it is a parameter, or a copy of one, of which nothing is known yet."""
        made = self.parameters.made(t)
        return t not in self.shadows and (t in self.parameters or (made is not None and made.dims is not None))

    def values_in(self, tensors: Iterable[Tensor]) -> np.ndarray:
        """The ids that occur in these tensors, as often as they do: where changes are tried, many are collected, and
        few looked at."""
        known = [self.shadows.get(t) for t in tensors]
        found = [ids_of(compact(k).numpy()).ravel() for k in known if k is not None]
        return np.concatenate([np.zeros(0, dtype=np.int64), *found])

    def where(self) -> str:
        at = f" in {self.module}" if self.module else ""
        return f"{at} ({self.operation})" if self.operation else at

    def mark(self, error: Any) -> tuple[str, list[np.ndarray]]:
        """Keeps with an error, when it is first seen, where it was and what it may be about; returns both."""
        self.failed = True
        if not hasattr(error, "where"):
            with _disable_current_modes():
                error.suspects = [*getattr(error, "suspects", []), *self._suspects(error)]
            error.where = self.reached
        return error.where, error.suspects

    def _suspects(self, error: Any) -> list[np.ndarray]:
        # What flowed into the failing operation is likelier to be at fault than the parameters that it was given.
        flowing = [t for t in self.last if not self.is_parameter(t)]
        near, far = (flowing, self.last), reversed(self.given)
        weights = self.units_of(t for t in self.last if self.is_parameter(t))
        return [*map(self.values_in, near), *self.named_by(error), weights, *map(self.values_in, far)]

    def named_by(self, error: Any) -> list[np.ndarray]:
        """The ids that the text of an error may be about: a student knows which widths are new."""
        return []

    def returned(self, t: Tensor, why: str) -> None:
        """What the network gives away: its values are part of the function."""
        self.pin_tensor(t, why)
        self.outputs += [ids_of(compact(self.of(t)).numpy()), np.array(t.shape, dtype=np.int64)]


#: So many codes without units are kept one by one.
_FEW = 2**12

#: Tensors of more elements than this are not compared by their content: inputs, which are the same in any case.
_CONTENT = 2**22
