"""Units: which positions of which parameter axes must be widened alike.

Every position of every parameter axis that takes part in the computation gets an id. Rules join ids as they walk the
graph; what is joined in the end is one *unit*, which has one number of replicas wherever it occurs.
"""

from dataclasses import dataclass, field

import numpy as np

#: A tensor element that was filled with a constant: agrees with any unit.
CONSTANT = 0
#: A tensor element whose place is fixed: the network's input, a buffer, the result of an operation without a rule.
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

    def ids(self) -> np.ndarray:
        return np.arange(self.first, self.first + self.size)


class DisjointSets:
    """A union-find over consecutive integers, on whole arrays at once."""

    def __init__(self, size: int = 0) -> None:
        self._parent = np.arange(size)

    def __len__(self) -> int:
        return len(self._parent)

    def add(self, count: int) -> int:
        """Adds `count` elements, each a set of its own; returns the first."""
        first = len(self._parent)
        self._parent = np.concatenate([self._parent, np.arange(first, first + count)])
        return first

    def roots(self, ids: np.ndarray) -> np.ndarray:
        """The representative of each id's set, by pointer jumping."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                self._parent[ids] = roots
                return roots
            roots = above

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Unites the sets of a[i] and b[i], for each i."""
        pairs = np.stack([a.ravel(), b.ravel()], 1)
        while len(pairs):
            pairs = np.unique(np.stack([self.roots(pairs[:, 0]), self.roots(pairs[:, 1])], 1), axis=0)
            pairs = pairs[pairs[:, 0] != pairs[:, 1]]
            # Where several pairs name the same root, the smallest wins; the others get their turn in the next round.
            np.minimum.at(self._parent, pairs.max(1), pairs.min(1))


class Units:
    """The units of a model: sets of ids, the axes that the ids belong to, and why some must keep one replica."""

    def __init__(self) -> None:
        self.sets = DisjointSets(2)  # CONSTANT and FIXED
        self.axes: dict[tuple[str, int], Axis] = {}
        self._pins: list[tuple[np.ndarray, str]] = []

    def axis(self, tensor: str, dim: int, size: int) -> Axis:
        if (tensor, dim) not in self.axes:
            self.axes[tensor, dim] = Axis(tensor, dim, self.sets.add(size), size)
        return self.axes[tensor, dim]

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        self.sets.join(a, b)

    def pin(self, ids: np.ndarray, reason: str) -> None:
        """These units keep one replica."""
        ids = np.unique(ids[ids > FIXED])
        if len(ids):
            self._pins.append((ids, reason))

    def pinned(self) -> dict[int, str]:
        """Root -> the first reason given for it."""
        reasons: dict[int, str] = {}
        for ids, reason in self._pins:
            for root in self.sets.roots(ids).tolist():
                reasons.setdefault(root, reason)
        return reasons
