"""blame: what becomes of the groups on which a student's forward fails. What stays in doubt is never widened."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from net2net.context import TraceError
from net2net.groups import Group, Structure
from net2net.layout import Segment
from net2net.units import Units

#: After so many groups of a kind could not be widened, the rest of the kind is not tried.
_ENOUGH = 4


class Blame:
    """Groups are first replicated as a whole (all units in order, and again, which is what shuffles and hard-wired
    ratios can bear), then not at all."""

    def __init__(self, units: Units) -> None:
        self._units = units
        self._whole = set(units.heads().tolist())  # ids of units
        self._pinned: Counter[str] = Counter()  # by pattern
        #: Groups that failed as a whole, and how near is beside them -> the units there that are replicated as a whole
        #: for their sake.
        self._hopes: dict[tuple[frozenset[str], int], set[int]] = {}

    def whole(self, found: Structure) -> set[int]:
        """The segments that may only be replicated as a whole."""
        roots = set(self._units.blocks.roots(np.array(sorted(self._whole), dtype=np.int64)).tolist())
        together: set[int] = set()
        for group in found.groups:
            if any(not roots.isdisjoint(found.segments[s].tolist()) for s in group.segments):
                together.update(group.segments)
        return together

    def take(self, found: Structure, segments: list[Segment], error: TraceError) -> None:
        """Finds the groups that an error is about."""
        group_of: dict[int, Group] = {}
        for group in found.groups:
            if any(segments[s].width > segments[s].units for s in group.segments):
                for s in group.segments:
                    group_of.update(dict.fromkeys(found.segments[s].tolist(), group))
        if not group_of:
            raise ValueError(f"an empty copy of the model does not run as inferred: {error}")
        # Last of all, an error that tells of no units: nothing may be assumed of any of them.
        everyone = np.array(sorted(group_of))
        blamed: dict[str, Group] = {}
        for suspects in [*error.suspects, everyone]:
            known = suspects[(suspects >= 0) & (suspects < len(self._units))]  # numbers that are returned have no unit
            roots = np.unique(self._units.blocks.roots(known)).tolist()
            blamed = {group_of[root].name: group_of[root] for root in roots if root in group_of}
            if blamed:
                break
        whole = self.whole(found)
        stuck = frozenset(name for name, g in blamed.items() if not whole.isdisjoint(g.segments))
        for distance in (1, 2) if stuck and error.__cause__ is not None else ():
            if (stuck, distance) in self._hopes:
                continue
            # Sizes do not fit, perhaps since code takes a width from what stands beside these units in the same module
            # (or in one beside them: attention, and its projections, which may be wrapped), and was not replicated as
            # a whole.
            modules = {m for name in stuck for layer in blamed[name].layers for m in _around(layer, distance)}
            near = {
                g.name: g
                for g in group_of.values()
                if not modules.isdisjoint(m for layer in g.layers for m in _around(layer, 2))
            }
            units = [found.segments[s] for g in near.values() if whole.isdisjoint(g.segments) for s in g.segments]
            self._hopes[stuck, distance] = set(np.concatenate([np.zeros(0, dtype=np.int64), *units]).tolist())
            if units:
                self._whole |= self._hopes[stuck, distance]
                return
        free = {_pattern(g) for g in blamed.values() if whole.isdisjoint(g.segments)}
        # What happens to one block of a network will happen to those like it.
        for group in {g.name: g for g in group_of.values() if g.name in blamed or _pattern(g) in free}.values():
            ids = np.concatenate([found.segments[s] for s in group.segments])
            if whole.isdisjoint(group.segments):
                self._whole.update(ids.tolist())
            elif group.name in blamed:
                for distance in (1, 2):
                    self._whole -= self._hopes.get((stuck, distance), set())
                self._units.pin(ids, f"a wider copy of the model does not run as inferred: {error}")
                self._pinned[_pattern(group)] += 1
        for pattern in {_pattern(g) for g in blamed.values() if self._pinned[_pattern(g)] == _ENOUGH}:
            for group in {g.name: g for g in group_of.values() if _pattern(g) == pattern}.values():
                if group.name not in blamed:
                    ids = np.concatenate([found.segments[s] for s in group.segments])
                    self._units.pin(ids, f"{_ENOUGH} others like it cannot be widened, the last because {error}")


def _around(layer: str, distance: int) -> set[str]:
    """The modules that a layer is in, so many of them."""
    found = set()
    for _ in range(distance):
        layer = layer.rpartition(".")[0]
        found.add(layer)
    return found


def _pattern(group: Group) -> str:
    """The same for the same layer of several blocks."""
    block, _, layer = group.name.rpartition(".")
    return f"{re.sub(r'[0-9]+', '*', block)}.{layer}"
