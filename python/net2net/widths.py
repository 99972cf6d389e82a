"""Widths: which groups grow, and to how many units."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping

import numpy as np

from net2net import mapping
from net2net.groups import Group, Structure


class Widths:
    """Which groups grow, and by how much."""

    def __init__(
        self,
        targets: dict[str, float | int] | None,
        layers: list[str] | None,
        factor: float | None,
        multiple_of: int,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._targets = targets
        self._layers = layers
        self._factor = factor
        self._multiple_of = multiple_of
        self._given = given or {}

    def widths(self, found: Structure, whole: set[int]) -> list[int]:
        """The new number of units of each segment; a multiple of the old one for the segments `whole`."""
        widths = [len(roots) for roots in found.segments]
        for group in found.groups:
            if not group.segments or (total := self._total(group, found)) <= 0:
                continue
            sizes = [widths[s] for s in group.segments]
            if whole.isdisjoint(group.segments):
                grown = mapping.share_out(sizes, total)
            else:
                times = max(1, math.floor(total / sum(sizes) + 0.5))
                grown = [times * n for n in sizes]
            for s, w in zip(group.segments, grown, strict=True):
                widths[s] = w
        return widths

    def maps(self, found: Structure, whole: set[int]) -> dict[int, np.ndarray]:
        """The maps that were given, by segment. ValueError, by name, for one that cannot be had."""
        maps: dict[int, np.ndarray] = {}
        for layer, index in self._given.items():
            # A table that is also the output layer has two, one of them the outputs.
            named = sorted((g for g in found.groups if layer in g.layers), key=lambda g: g.reason is not None)
            group = named[0] if named else None
            what = f"mapping[{layer!r}]"
            if group is None or group.reason is not None:
                raise ValueError(f"{what}: {group or 'there is no such layer that could be widened'}")
            if len(group.segments) != 1:
                raise ValueError(f"{what}: the units of {layer} are used in {len(group.segments)} parts; give a width")
            (s,) = group.segments
            units = len(found.segments[s])
            if index.max(initial=-1) + 1 != units:
                kind = "heads or other blocks" if units < group.units else "units"
                raise ValueError(f"{what} is of {index.max(initial=-1) + 1} units, but {layer} has {units} {kind}")
            if s in whole and (len(index) % units or (index.reshape(-1, units) != np.arange(units)).any()):
                raise ValueError(f"{what}: the units of {layer} can only be replicated all together, in order")
            if s in maps and not np.array_equal(maps[s], index):
                raise ValueError(f"{what} contradicts another entry: {layer} grows with it")
            maps[s] = index
        return maps

    def _total(self, group: Group, found: Structure) -> int:
        free = sum(len(found.segments[s]) for s in group.segments)
        factor = None
        if self._targets is not None:
            for pattern, target in self._targets.items():
                for layer, axis in zip(group.layers, group.axes, strict=True):
                    if not fnmatch.fnmatchcase(layer, pattern):
                        continue
                    units = len(found.root_of[axis])
                    if target < (units if isinstance(target, int) else 1):
                        raise ValueError(f"width[{pattern!r}] (={target}) is less than the {units} units of {layer}")
                    fixed = sum(piece.repeat for piece in found.pieces[axis] if piece.segment is None)
                    asked = (target - fixed) / (units - fixed) if isinstance(target, int) else target
                    if factor is not None and round(factor * free) != round(asked * free):
                        raise ValueError(
                            f"width[{pattern!r}] (={target}) contradicts another entry: {layer} grows with it"
                        )
                    factor = asked
        elif self._layers is None or any(fnmatch.fnmatchcase(x, p) for x in group.layers for p in self._layers):
            factor = self._factor
        if factor is None:
            return 0
        total = max(free, math.floor(free * factor + 0.5))
        if total == free:
            return total
        # A unit may be several positions wide.
        step = self._multiple_of // math.gcd(self._multiple_of, max(1, group.units // max(1, group.blocks)))
        return -(-total // step) * step

    def complain(self, found: Structure) -> None:
        """Raises if a layer that was named cannot be widened or does not exist."""
        for pattern in self._targets if self._targets is not None else self._layers or []:
            named = [g for g in found.groups if any(fnmatch.fnmatchcase(x, pattern) for x in g.layers)]
            if not named:
                raise ValueError(f"no layer that could be widened matches {pattern!r}{_suggestion(pattern, found)}")
            literal = not any(c in pattern for c in "*?[")
            stuck = sorted((g for g in named if g.reason is not None), key=lambda g: g.output)
            if stuck and (len(stuck) == len(named) or (literal and not stuck[0].output)):
                raise ValueError(f"{pattern} cannot be widened: {stuck[0].reason}")


def _suggestion(pattern: str, found: Structure) -> str:
    layers = list(dict.fromkeys(x for g in found.groups for x in g.layers))
    near = difflib.get_close_matches(pattern, layers, 3, 0.0)
    if not near:
        return ""
    names = ", ".join(map(repr, near))
    return f"; of the {len(layers)} layers with units of their own, those named most like it are {names}"
