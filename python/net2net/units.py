"""Units: the values that flow through a forward pass, and which of them must be replicated alike.

Every element of every tensor has a *value id*. Equal ids mean equal values: an id stands for an expression over
parameters and inputs, and whoever computes the same expression, teacher or student, gets the same id. (Elements that
differ only in their place in an image or a sequence may share one id. How many places there are does not depend on any
width.)

Ids are joined in two steps. A *place* is what element-wise operations join: the same channel, seen before and after an
activation. A *block* is what is replicated as a whole, in the order in which it stands: a channel, an attention head,
all that a layer norm averages over. A block is one *unit* of growth: one number of replicas, wherever it occurs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from net2net.computed_weights import Computed, Normalised
from net2net.hashes import Table

#: The block of elements filled with a constant or with random numbers: they agree with any unit.
CONSTANT = 0
#: The block of elements whose number is fixed: the network's input, the result of an operation without a rule.
FIXED = 1


@dataclass(eq=False)
class Axis:
    """One axis of a parameter or buffer: `size` consecutive ids from `first`."""

    tensor: str
    dim: int
    first: int
    size: int
    #: "out": its positions are new units; "in": a sum runs over it, so weights are split among replicas; "each":
    #: applied unit by unit (a bias, a norm's parameter, a depthwise kernel).
    roles: set[str] = field(default_factory=set)
    #: int64 [size]: what the positions met first in the teacher, by which a student's positions are recognised.
    met: np.ndarray | None = None

    def ids(self) -> np.ndarray:
        return np.arange(self.first, self.first + self.size)


class DisjointSets:
    """A union-find over consecutive integers, on whole arrays at once. The smallest member represents a set."""

    def __init__(self, size: int = 0) -> None:
        self._parents = np.arange(max(size, 1024))
        self._size = size
        self._flat = True  # whether the parent of each is its representative

    def __len__(self) -> int:
        return self._size

    def add(self, count: int) -> int:
        """Adds `count` elements, each a set of its own; returns the first."""
        first, self._size = self._size, self._size + count
        if self._size > (have := len(self._parents)):
            parents = np.empty(2 * self._size, dtype=np.int64)
            parents[:have] = self._parents
            parents[have:] = np.arange(have, len(parents))
            self._parents = parents
        return first

    def roots(self, ids: np.ndarray) -> np.ndarray:
        """The representative of each id's set, by pointer jumping."""
        roots = self._parents.take(ids)
        if self._flat:
            return roots
        above = self._parents.take(roots)
        if (above == roots).all():
            return roots
        while (above != roots).any():
            roots, above = above, self._parents.take(above)
        self._parents[ids] = roots
        return roots

    def are_one(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether a[i] and b[i] are known to be in one set, for each i; if not, they may be nevertheless."""
        return bool((self._parents.take(a) == self._parents.take(b)).all())

    def flatten(self) -> None:
        """From here on, until sets are joined, representatives are found in one step."""
        if not self._flat:
            self.roots(np.arange(self._size))
            self._flat = True

    def put(self, ids: np.ndarray, roots: np.ndarray) -> None:
        """Puts new elements, each still a set of its own, into the sets with these representatives."""
        self._parents[ids] = roots

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Unites the sets of a[i] and b[i], for each i."""
        a, b = self.roots(a.ravel()), self.roots(b.ravel())
        while (a != b).any():
            apart = a != b
            low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
            self._flat = False
            # Where several pairs name the same root, the smallest wins; the others get their turn in the next round.
            np.minimum.at(self._parents, high, low)
            a, b = self.roots(low), self.roots(high)


class Marks:
    """A set of ids."""

    def __init__(self) -> None:
        self._is_in = np.zeros(1024, dtype=bool)

    def add(self, ids: np.ndarray) -> None:
        size = int(ids.max(initial=-1)) + 1
        if size > (have := len(self._is_in)):
            larger = np.zeros(2 * size, dtype=bool)
            larger[:have] = self._is_in
            self._is_in = larger
        self._is_in[ids] = True

    def any_of(self, ids: np.ndarray) -> bool:
        return bool(self._is_in[ids[ids < len(self._is_in)]].any())

    def ids(self) -> np.ndarray:
        """int64: all of them, in order."""
        return np.flatnonzero(self._is_in)


class Units:
    """The values of a model: their ids, the sets that these are in, the axes, and why some must keep one replica."""

    def __init__(self) -> None:
        self.blocks, self.places = DisjointSets(2), DisjointSets(2)
        self.axes: dict[tuple[str, int], Axis] = {}
        self._known = Table()
        #: What `Context.make` has made in walks over the teacher: all that it joins stays joined.
        self.made: dict[bytes, np.ndarray] = {}
        self.fresh = 0  # ids from here on were made by the last `intern`
        self._pins: list[tuple[np.ndarray, str]] = []
        #: Layers that make units of which nothing is known: how many, and why.
        self.unknown: dict[str, tuple[int, str]] = {}
        #: What rules decided by what was known of the teacher at that time: the same must hold for students.
        self.decisions: dict[tuple[str, str], bool] = {}
        self._even, self._heads, self._read = Marks(), Marks(), Marks()
        #: How layers' weights are computed from parameters (None: they are these parameters).
        self._used_as: dict[str, set[Computed | None]] = {}
        #: Slices that end beyond the end: the module, and the number that they are given.
        self.cuts: set[tuple[str, int]] = set()
        #: Parameters whose values are used as such, and the axis that has units then.
        self.values: set[tuple[str, int]] = set()
        #: Tables of which rows are taken by their number.
        self.looked_up: set[str] = set()
        #: Parameters and buffers by which weights are multiplied.
        self.multipliers: set[str] = set()
        self._varied = Marks()
        self._starts: tuple[np.ndarray, np.ndarray] | None = None
        # For each axis that a sum runs over, the vectors that may have its shares in its stead (carriers.py); and the
        # parameters that take part in anything else.
        self._carriers: dict[tuple[str, int], set[tuple[str, int]] | None] = {}
        self._elsewhere: set[str] = set()

    def start_over(self) -> None:
        """Forgets all but what is joined."""
        self._pins = []
        self.unknown = {}
        self._used_as = {}
        self.multipliers, self.looked_up = set(), set()
        self._even, self._heads, self._read = Marks(), Marks(), Marks()
        self.decisions = {}
        self._carriers, self._elsewhere = {}, set()
        for axis in self.axes.values():
            axis.met = None
            axis.roles = set()

    def __len__(self) -> int:
        return len(self.blocks)

    def add(self, count: int) -> int:
        self.places.add(count)
        return self.blocks.add(count)

    def axis(self, tensor: str, dim: int, size: int) -> Axis:
        if (tensor, dim) not in self.axes:
            self.axes[tensor, dim] = Axis(tensor, dim, self.add(size), size)
        return self.axes[tensor, dim]

    def intern(self, hashes: np.ndarray) -> np.ndarray:
        """int64: the ids of expressions, given by their hashes."""
        self.fresh = len(self)
        ids = self._known.numbers(hashes.ravel(), self.add)
        return ids.reshape(hashes.shape)

    def flatten(self) -> None:
        self.blocks.flatten()
        self.places.flatten()

    def begin(self, axis: Axis, values: np.ndarray) -> None:
        """The positions of a new axis begin in the sets of the ids `values` [size] that they meet. Values without a
        unit are left out."""
        blocks = self.blocks.roots(values)
        units = blocks > FIXED
        ids = axis.ids()
        self.places.put(ids[units], self.places.roots(values[units]))
        self.blocks.put(ids[units], blocks[units])

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """The same place: replicated together, and standing at the same place in their block. Values without a unit are
        left out."""
        a, b = a.ravel(), b.ravel()
        if self.blocks.are_one(a, b) and self.places.are_one(a, b):  # most often, and soon seen
            return
        x, y = self.blocks.roots(a), self.blocks.roots(b)
        both = (x > FIXED) & (y > FIXED)
        if not both.all():
            a, b, x, y = a[both], b[both], x[both], y[both]
        self.places.join(a, b)
        if (x != y).any():
            self.blocks.join(x, y)

    def adopt(self, made: np.ndarray, root: int) -> None:
        """Values without a unit: CONSTANT or FIXED. Those that have one keep it."""
        made = made[self.blocks.roots(made) == made]
        if not len(made):
            return
        new = made >= self.fresh
        self.blocks.put(made[new], np.full(1, root))
        self.blocks.join(made[~new], np.full(int((~new).sum()), root))

    def fuse(self, rows: np.ndarray) -> None:
        """One block of the units in each row of ids [n, m]: replicated together, as a whole."""
        roots = self.blocks.roots(rows)
        units = roots > FIXED
        first = np.take_along_axis(roots, np.argmax(units, axis=-1)[:, None], -1)
        self.blocks.join(roots[units], np.broadcast_to(first, roots.shape)[units])

    def vary(self, ids: np.ndarray) -> None:
        """Each of these stands for several values, of different places."""
        self._varied.add(ids)

    def varied(self, ids: np.ndarray) -> bool:
        return self._varied.any_of(ids)

    def even(self, ids: np.ndarray) -> None:
        """A norm averages over the replicas of these: only equal shares keep the law of the gradients."""
        self._even.add(ids)

    def head(self, ids: np.ndarray) -> None:
        """These are heads of attention. Code tells their width from their number and that of all features, so that all
        of them are replicated equally often."""
        self._heads.add(ids)

    def read(self, ids: np.ndarray) -> None:
        """Something is made of these that does not have their units any more: a weighted sum, a reduction."""
        self._read.add(ids)

    def were_read(self) -> np.ndarray:
        """bool [len(self)]: of each root, whether something was made of its unit."""
        found = np.zeros(len(self), dtype=bool)
        found[self.blocks.roots(self._read.ids())] = True
        return found

    def heads(self) -> np.ndarray:
        """The ids of such units."""
        return self._heads.ids()

    def evened(self) -> np.ndarray:
        """The roots of such blocks."""
        return np.unique(self.blocks.roots(self._even.ids()))

    def carry(self, found: Mapping[tuple[str, int], tuple[tuple[str, int], ...] | None], read: set[str]) -> None:
        """What a walk found of vectors that may have shares, and which parameters took part in it."""
        for axis, vectors in found.items():
            before = self._carriers.get(axis, set())
            self._carriers[axis] = None if vectors is None or before is None else {*before, *vectors}
        self._elsewhere |= read - {name for vectors in found.values() for name, _ in vectors or ()}

    def hand_over(self, axis: Axis) -> bool:
        """Hands the shares of an axis to the vectors that may have them: these are "in" then, in its place. False, if
        there are none."""
        vectors = self._carriers.get((axis.tensor, axis.dim)) or set()
        carriers = [self.axes.get(v) for v in vectors]
        roots = self.blocks.roots(axis.ids())
        for c in carriers:
            if c is None or c.tensor in self._elsewhere or not c.roles <= {"each", "in"}:
                return False
            if c.size != axis.size or (self.blocks.roots(c.ids()) != roots).any():
                return False
        for c in carriers:
            assert c is not None
            c.roles = {"in"}
        axis.roles.discard("in")
        return bool(carriers)

    def used_as(self, name: str, how: Computed | None) -> None:
        """A layer's weight is this parameter, or is computed from it."""
        self._used_as.setdefault(name, set()).add(how)

    def computed(self) -> list[Computed]:
        """How the weights are computed that are."""
        return [how for hows in self._used_as.values() for how in hows if how is not None]

    def settle_computed(self) -> None:
        """Pins what cannot grow as a computed weight is asked to; a gain grows as its weight does."""
        for how in self.computed():
            roles = [self.axes[how.weight, d].roles if (how.weight, d) in self.axes else set() for d in range(2)]
            why = ""
            if len(self._used_as[how.weight] - {None}) > 1:
                why = f"{how.weight} is normalised in two ways"
            elif isinstance(how, Normalised):
                if (axis := self.axes.get((how.weight, how.dim))) is not None:
                    if (how.gain, how.dim) in self.values:
                        why = f"{how.gain} is used beside the layer that it belongs to"
                    gain = self.axis(how.gain, how.dim, axis.size)
                    gain.roles.add("each")
                    self.join(gain.ids(), axis.ids())
            elif None in self._used_as[how.weight]:
                why = f"{how.weight} is used both standardised and as it is"
            elif not (roles[0] <= {"out", "each"} and roles[1] <= {"in"}):
                why = f"{how.weight} is standardised along another axis than the one that it sums over"
            for dim in range(2) if why else ():
                if (how.weight, dim) in self.axes:
                    self.pin(self.axes[how.weight, dim].ids(), why)

    def multiply(self, name: str, dim: int, size: int, weight: str, of: int) -> None:
        """A weight is multiplied, along its axis `of`, by what stands along the axis `dim` of `name`."""
        mine, axis = self.axis(name, dim, size), self.axes.get((weight, of))
        mine.roles.add("each")
        self.multipliers.add(name)
        if axis is not None:
            self.join(mine.ids(), axis.ids())
        if axis is None or "in" in mine.roles:
            self.pin(mine.ids(), f"{weight} times {name} is not used as a weight, or {name} is one itself")

    def left_alone(self, layer: str, units: int, reason: str) -> None:
        """A layer that makes so many units, of which nothing is known."""
        self.unknown.setdefault(layer, (units, reason))

    def pin(self, ids: np.ndarray, reason: str) -> None:
        """These units keep one replica."""
        ids = ids[self.blocks.roots(ids) > FIXED]
        if len(ids):
            self._pins.append((np.unique(ids), reason))

    def pinned(self) -> dict[int, str]:
        """Root of a block -> the first reason given for it."""
        reasons: dict[int, str] = {}
        for ids, reason in self._pins:
            for root in np.unique(self.blocks.roots(ids)).tolist():
                reasons.setdefault(root, reason)
        return reasons

    def axes_at(self, ids: np.ndarray) -> np.ndarray:
        """For each id, the first id of the axis that it belongs to, or -1."""
        if self._starts is None or len(self._starts[0]) != len(self.axes):
            axes = sorted(self.axes.values(), key=lambda a: a.first)
            self._starts = np.array([a.first for a in axes]), np.array([a.first + a.size for a in axes])
        starts, ends = self._starts
        if not len(starts):
            return np.full(ids.shape, -1)
        at = np.searchsorted(starts, ids, side="right") - 1
        inside = (at >= 0) & (ids < ends[np.maximum(at, 0)])
        return np.where(inside, starts[np.maximum(at, 0)], -1)

    def crossing(self, rows: np.ndarray) -> bool:
        """Whether units lie across the rows of ids [rows, n] too (the heads of attention, beside the features of
        each), so that nothing can be applied to all rows alike without treating several units alike.

        Units of different origin (a class token and patches) do not: they are replicated alike. Those of one
        parameter's axis are different units.
        """
        if len(rows) < 2:
            return False
        roots = self.blocks.roots(rows)
        origins = self.axes_at(roots)
        several = roots.min(0) != roots.max(0)
        if not several.any():
            return False
        column = int(np.argmax(several))
        here, seen = np.unique(roots[:, column], return_index=True)
        here, seen = here[here > FIXED], seen[here > FIXED]
        origin = origins[seen, column]
        return len(np.unique(origin)) < len(origin)
