"""student: holds a student to what was inferred about its teacher, by running the student's own forward.

Which units have how many replicas is decided beforehand, and with it the shapes of all parameters. How a parameter that
takes units in is laid out, the student's own forward tells: its positions are those of the values that they meet, each
known by what it is (its id) and which replica. A value that the teacher does not have, a replica too many or too few, a
number that depends on a width: all that a hard-coded size, a slice at a fixed place or an attribute can do ends in an
error here, which names the values that it is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from net2net import trail
from net2net.caches import Place
from net2net.computed_weights import Normalised
from net2net.context import Context, TraceError
from net2net.hashes import digest, mix, seed, total
from net2net.inference import Left, Run, row_keys
from net2net.mapping import ranks
from net2net.shadows import codes, compact, ids_of, replicas_of
from net2net.skeleton import named_tensors
from net2net.units import CONSTANT, FIXED, Axis, Units


@dataclass(frozen=True, eq=False)
class Laid:
    """How a student's axis is made: for each of its positions the teacher's position [width], and which replica of
    it."""

    index: np.ndarray
    replica: np.ndarray


class Saved(NamedTuple):
    """What running a module again must find as it was."""

    laid: dict[tuple[str, int], Laid]
    outputs: int
    given: list[tuple[Tensor, Tensor]]
    failed: bool
    way: trail.Saved | None
    touched: dict[str, list[np.ndarray]]
    buffers: list[tuple[Tensor, Tensor]]


class Layouts:
    """The number of replicas of each unit, and the layout of the axes that make units."""

    def __init__(
        self, units: Units, counts: np.ndarray, growth: np.ndarray, canonical: dict[tuple[str, int], Laid]
    ) -> None:
        self.units = units
        # By root; the last one stands for values that came later.
        self.counts = counts
        self.growth = growth  # by how much all the units grow that stand together
        self.canonical = canonical

    def count(self, ids: np.ndarray) -> np.ndarray:
        return self.counts.take(self.units.blocks.roots(ids), mode="clip")

    def factors(self, ids: np.ndarray) -> list[float]:
        """By how much the widths have grown that these are units of."""
        return np.unique(self.growth.take(self.units.blocks.roots(ids), mode="clip")).tolist()

    def width(self, axis: Axis) -> int:
        return int(self.count(axis.ids()).sum())


class Student(Context):
    """Compares instead of joining."""

    def __init__(
        self,
        model: nn.Module,
        layouts: Layouts,
        known: int,
        runs: Sequence[Run],
        caches: Sequence[Place] = (),
    ) -> None:
        super().__init__(model, layouts.units, caches)
        self.layouts = layouts
        self.laid: dict[tuple[str, int], Laid] = {}
        self._tensors = [t for _, t in named_tensors(model)]
        self._known = known  # ids below are the teacher's
        self._laid_before: dict[bytes, Laid] = {}
        self._beside: list[tuple[np.ndarray, str, int]] = []
        self._along: list[tuple[str, int, str, int]] = []
        self._runs = iter(runs)  # its teacher's, which it is to repeat
        self._left: dict[str, Left] = {}
        #: The addresses of dicts and records that keep their numbers.
        self.fixed = set[int]()

    def saved(self, arguments: Any) -> Saved:
        """What running a module again must find as it was."""
        given = [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]
        with _disable_current_modes():  # what is done with codes is not part of the forward
            known = [(t, self.shadows.get(t)) for t in given]
            values = [(t, compact(k).clone().expand(t.shape)) for t, k in known if k is not None]
            written = [(t, self.shadows.get(t)) for _, t in self.parameters.named([*self.touched])]
            buffers = [(t, compact(k).clone().expand(t.shape)) for t, k in written if k is not None]
        way = None if self.trail is None else self.trail.saved()
        return Saved(dict(self.laid), len(self.outputs), values, self.failed, way, dict(self.touched), buffers)

    def codes_in(self, state: Saved) -> list[np.ndarray]:
        """What was given."""
        with _disable_current_modes():
            return [compact(known).numpy() for _, known in state.given]

    def grown_sizes(self, state: Saved) -> list[tuple[int, int]]:
        """The sizes of what was given that have grown: as the teacher's were, and as they are."""
        found = []
        for values in self.codes_in(state):
            more = self._widened(values) & (replicas_of(values) > 0)
            for dim, size in enumerate(values.shape):
                extra = int(np.moveaxis(more, dim, 0).reshape(size, -1).all(1).sum()) if values.size else 0
                if extra:
                    found.append((size - extra, size))
        return list(dict.fromkeys(found))

    def restore(self, state: Saved) -> None:
        self.laid = dict(state.laid)
        del self.outputs[state.outputs :]
        self.failed, self.touched = state.failed, dict(state.touched)
        if self.trail is not None and state.way is not None:
            self.trail.restore(state.way)
        self.caches.clear()
        # Parameters first met in the failed attempt may have been laid out wrongly.
        with _disable_current_modes():
            self.shadows.forget(self._tensors)
            for t, known in (*state.buffers, *state.given):
                self.shadows.set(t, known)

    def _widened(self, values: np.ndarray) -> np.ndarray:
        return self.layouts.count(ids_of(values)) > 1

    def named_by(self, error: Any) -> list[np.ndarray]:
        """The axis last met that is as wide as a number in the text, and was not in the teacher."""
        numbers = set(map(int, re.findall(r"\d+", str(error))))
        for key, laid in reversed(self.laid.items()):
            axis = self.units.axes[key]
            if len(laid.index) in numbers and len(laid.index) != axis.size:
                return [axis.ids()]
        return []

    def _failed(self, why: str, *about: np.ndarray) -> TraceError:
        return TraceError(why + self.where(), [np.concatenate([ids_of(np.asarray(a)).ravel() for a in about])])

    # -- axes --------------------------------------------------------------------------------------------------------

    def produce(self, name: str, dim: int, size: int, role: str = "out") -> np.ndarray:
        axis = self.units.axes.get((name, dim))
        if axis is None:
            return np.full(size, FIXED)
        if (name, dim) not in self.laid:
            self.laid[name, dim] = self.layouts.canonical[name, dim]
        return self._codes(axis, size)

    def meet(self, name: str, dim: int, size: int, role: str, rows: np.ndarray, why: str) -> np.ndarray:
        axis = self.units.axes.get((name, dim))
        if axis is None:
            raise self._failed(f"{name} is used in another way than by the teacher", rows)
        if (name, dim) not in self.laid:
            self.laid[name, dim] = self._recognised(axis, size, rows)
        mine = self._codes(axis, size)
        for row in rows:
            self._same_replicas(mine, row)
        return mine

    def _codes(self, axis: Axis, size: int) -> np.ndarray:
        laid = self.laid[axis.tensor, axis.dim]
        if len(laid.index) != size:
            raise self._failed(
                f"{axis.tensor} has {size} positions on axis {axis.dim}, not {len(laid.index)}", axis.ids()
            )
        return self._codes_of(axis, laid)

    @staticmethod
    def _codes_of(axis: Axis, laid: Laid) -> np.ndarray:
        return codes(axis.first + laid.index, laid.replica)

    def _recognised(self, axis: Axis, size: int, rows: np.ndarray) -> Laid:
        """The teacher's position of each position, by the values that it meets."""
        counts = self.layouts.count(axis.ids())
        if axis.met is None or (counts == 1).all():
            return self.layouts.canonical[axis.tensor, axis.dim]
        # Mostly they are in the order in which they are made. (Where they meet constants, nothing else tells.)
        usual = self.layouts.canonical[axis.tensor, axis.dim]
        if size == len(usual.index) == rows.shape[1] and (row_keys(rows) == axis.met[usual.index]).all():
            widened = self._widened(rows)
            if (np.where(widened, replicas_of(rows), usual.replica) == usual.replica).all():
                return usual
        # The parameters of a norm meet the same values.
        same = digest(axis.met, counts, size, rows)
        if same not in self._laid_before:
            self._laid_before[same] = self._matched(axis, counts, size, rows)
        return self._laid_before[same]

    def _matched(self, axis: Axis, counts: np.ndarray, size: int, rows: np.ndarray) -> Laid:
        assert axis.met is not None
        if rows.shape[1] != counts.sum() or size != counts.sum():
            raise self._failed(f"{axis.tensor} has {size} positions, but meets {rows.shape[1]} values", rows)
        replicas = np.max(np.where(self._widened(rows), replicas_of(rows), 0), axis=0)
        _, number = np.unique(np.concatenate([axis.met, row_keys(rows)]), return_inverse=True)
        theirs, mine = number[: axis.size], number[axis.size :]
        # Where several positions of the teacher meet the same value, it does not matter which is which.
        order = np.argsort(theirs, kind="stable")
        have = np.bincount(theirs, minlength=number.max(initial=0) + 1)
        nth = ranks(mine * (replicas.max(initial=0) + 1) + replicas)
        if (nth >= have[mine]).any():
            raise self._failed(f"the input of {axis.tensor} has values that the teacher's has not", rows)
        index = order[np.cumsum(have)[mine] - have[mine] + nth]
        if (np.bincount(index, minlength=axis.size) != counts).any():
            raise self._failed(
                f"the input of {axis.tensor} has too many replicas of some unit, and too few of another", rows
            )
        if (replicas >= counts[index]).any() or len(np.unique(index * (replicas.max() + 1) + replicas)) != size:
            raise self._failed(f"the input of {axis.tensor} has a replica twice", rows)
        return Laid(index, replicas)

    def _same_replicas(self, a: np.ndarray, b: np.ndarray) -> None:
        a, b = np.broadcast_arrays(a, b)
        both = self._widened(a) & self._widened(b)
        if (replicas_of(a)[both] != replicas_of(b)[both]).any():
            raise self._failed(_ANOTHER_ORDER, a, b)

    # -- values ------------------------------------------------------------------------------------------------------

    def check_known(self, made: np.ndarray, about: Iterable[np.ndarray]) -> None:
        if (made >= self._known).any() and (about := list(about)):
            new = np.broadcast_to(made, np.broadcast_shapes(made.shape, *[a.shape for a in about])) >= self._known
            raise self._failed(
                "the student has a value here that the teacher has not", *[a[_cut(new, a)] for a in about]
            )

    def tie(self, made: np.ndarray, operands: Sequence[np.ndarray]) -> np.ndarray:
        replica, known = np.zeros(made.shape, dtype=np.int64), np.zeros(made.shape, dtype=bool)
        for i, operand in enumerate(operands):
            widened, mine = self._widened(operand), replicas_of(operand)
            if (known & widened & (replica != mine)).any():
                raise self._failed(_ANOTHER_ORDER, *operands[: i + 1])
            replica, known = np.where(widened, mine, replica), known | widened
        return codes(made, replica)

    def grow_with(self, made: np.ndarray, units: np.ndarray) -> None:
        pass

    def fuse(self, rows: np.ndarray) -> np.ndarray:
        widened, replicas = self._widened(rows), replicas_of(rows)
        most = np.where(widened, replicas, 0).max(axis=-1)
        # Several replicas of a whole block: a layer norm over all of them, say. What this does to the values, their
        # signature tells.
        return np.where((~widened | (replicas == most[:, None])).all(axis=-1), most, 0)

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        self._same_replicas(a, b)

    def cut(self, end: int) -> None:
        if (self.module, end) not in self.units.cuts:
            raise TraceError(f"the student would cut a longer input at {end}, where the teacher does not", [])

    def crossing(self, rows: np.ndarray, what: str) -> bool:
        return self.units.decisions.get((self.module, what), False)

    def agree(self, a: np.ndarray, b: np.ndarray) -> None:
        self._same_replicas(a, b)

    def pin(self, values: np.ndarray, why: str) -> None:
        if self._widened(values).any():
            raise self._failed(why, values)

    def taken(self, of: np.ndarray, part: np.ndarray) -> np.ndarray:
        """All replicas of a unit, or none: else they would not share its gradient as their weights say."""
        ids = super().taken(of, part)
        if (ids >= self._known).any():
            raise self._failed("the student takes other values here than the teacher", part, of)
        mine, every = (np.unique(v[self._widened(v)]) for v in (part, of))
        missed = every[np.isin(ids_of(every), ids_of(mine)) & ~np.isin(every, mine)]
        if len(missed):
            raise self._failed("some replicas of a unit are taken here, and others left", missed)
        return ids

    def signature(self, hashes: np.ndarray, about: np.ndarray) -> np.ndarray:
        ids = self.units.intern(hashes)
        if (ids >= self._known).any() and self.has_units(about):
            raise self._failed("the student sums up other values here than the teacher", about)
        self.units.adopt(ids, CONSTANT)
        return ids

    def contracted(self, axis: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
        ids = ids_of(axis)
        if (ids[1:] > ids[:-1]).all():  # none is replicated
            return total(mix(mix(seed("term"), ids), ids_of(rows)))
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        values = ids_of(rows)
        if (values != values[:, first[inverse]]).any():
            raise self._failed(f"{name} does not meet equal values at all replicas of a unit", rows)
        return total(mix(mix(seed("term"), ids[first]), values[:, first]))

    def leave(self, name: str, values: np.ndarray | None, shape: tuple[int, ...], like_before: bool) -> None:
        self._left[name] = Left(values, shape)

    def _check_left(self, expected: dict[str, Left]) -> None:
        for name in {**expected, **self._left}:
            mine, theirs = self._left.get(name), expected.get(name)
            if mine is None or theirs is None or not self._is_left(name, mine, theirs):
                near = self.touched.get(name) or [self.units_of(self.parameters.within(name.rpartition(".")[0]))]
                raise TraceError(f"the student leaves other values in {name} than its teacher", near)

    def _is_left(self, name: str, mine: Left, theirs: Left) -> bool:
        """Whether what this student leaves there is what its teacher does."""
        a, b = theirs.values, mine.values
        if a is None or b is None or len(theirs.shape) != len(mine.shape):
            return a is b
        for dim, n in enumerate(theirs.shape):
            axis = self.units.axes.get((name, dim))
            if axis is not None and axis.size == n:
                laid = self.laid.get((name, dim), self.layouts.canonical[name, dim])
                n = len(laid.index)
                if a.shape[dim] > 1:
                    a = a.take(laid.index, dim)
                if b.shape[dim] == n > 1:
                    self._same_replicas(np.moveaxis(b, dim, -1), self._codes_of(axis, laid))
            elif a.shape[dim] > 1 and a.ndim == b.ndim == 1:  # another tensor was put in its place
                a, b = np.unique(a), np.unique(ids_of(b))
                n = mine.shape[dim]
            if n != mine.shape[dim]:
                return False
        return _alike(ids_of(a), ids_of(b))

    def beside(self, values: np.ndarray, name: str, dim: int) -> None:
        self._beside.append((values, name, dim))

    def along(self, name: str, dim: int, size: int, weight: str, of: int) -> None:
        self._along.append((name, dim, weight, of))

    def _places(self, values: np.ndarray) -> np.ndarray:
        return self.units.places.roots(ids_of(values))

    def finished(self, training: bool) -> None:
        for values, name, dim in self._beside:
            if (axis := self.units.axes.get((name, dim))) is not None and (name, dim) in self.laid:
                theirs = self._codes(axis, len(values))
                self._same_replicas(values, theirs)
                if (self._places(values) != self._places(theirs)).any():
                    raise self._failed(_ANOTHER_ORDER, values, theirs)
        self._beside = []
        for name, dim, weight, of in reversed(self._along):
            if (wanted := self.laid.get((weight, of))) is not None:
                laid = self.laid.setdefault((name, dim), wanted)
                if not np.array_equal([laid.index, laid.replica], [wanted.index, wanted.replica]):
                    raise self._failed(_ANOTHER_ORDER, self.units.axes[name, dim].ids())
        self._along = []
        for how in self.units.computed():
            if isinstance(how, Normalised) and (how.weight, how.dim) in self.laid:
                self.laid[how.gain, how.dim] = self.laid[how.weight, how.dim]
        run = next(self._runs)
        self._check_left(run.left)
        self._left = {}
        expected, mine, self.outputs = run.returned, self.outputs, []
        if len(expected) != len(mine):
            raise self._failed("the student returns other tensors", *mine)
        for a, b in zip(expected, mine, strict=True):
            if a.shape != b.shape or (a != b).any():
                raise self._failed("the student's outputs are not the teacher's", a, b)


_ANOTHER_ORDER = "replicas stand in another order here than was planned"


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether these ids, of size 1 along dimensions along which they are all the same, are the same."""
    sizes = zip(a.shape, b.shape, strict=True) if a.ndim == b.ndim else [(0, 1)]
    return all(n == m or 1 in (n, m) for n, m in sizes) and bool((a == b).all())


def _cut(new: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`new`, reduced to the dimensions in which `like` is not broadcast."""
    for dim in range(new.ndim - like.ndim):
        new = np.asarray(new.any(axis=dim, keepdims=True))
    new = new.reshape(new.shape[new.ndim - like.ndim :])
    for dim, n in enumerate(like.shape):
        if n == 1:
            new = np.asarray(new.any(axis=dim, keepdims=True))
    return np.asarray(new)
