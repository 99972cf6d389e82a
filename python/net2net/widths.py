"""Widths: which groups grow, and to how many units."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from net2net import mapping
from net2net.groups import Group, Structure

Width = float | Mapping[str, float | int]


class Widths:
    """Which groups grow, and by how much."""

    def __init__(
        self, targets: dict[str, float | int] | None, layers: list[str] | None, factor: float | None, multiple_of: int
    ) -> None:
        self._targets = targets
        self._layers = layers
        self._factor = factor
        self._multiple_of = multiple_of

    def widths(self, found: Structure) -> list[int]:
        """The new number of units of each segment."""
        widths = [len(roots) for roots in found.segments]
        for group in found.groups:
            if group.segments and (total := self._total(group, found)) > 0:
                sizes = [widths[s] for s in group.segments]
                for s, w in zip(group.segments, mapping.share_out(sizes, total), strict=True):
                    widths[s] = w
        return widths

    def _total(self, group: Group, found: Structure) -> int:
        free = sum(len(found.segments[s]) for s in group.segments)
        factor = None
        if self._targets is not None:
            for pattern, target in self._targets.items():
                for layer, axis in zip(group.layers, group.axes, strict=True):
                    if not fnmatch.fnmatchcase(layer, pattern):
                        continue
                    units = len(found.root_of[axis])
                    asked = target / units if isinstance(target, int) else target
                    if asked < 1:
                        raise ValueError(f"width[{pattern!r}] (={target}) is less than the {units} units of {layer}")
                    if factor is not None and round(factor * free) != round(asked * free):
                        raise ValueError(
                            f"width[{pattern!r}] (={target}) contradicts another entry: {layer} grows with it"
                        )
                    factor = asked
        elif self._layers is None or any(fnmatch.fnmatchcase(x, p) for x in group.layers for p in self._layers):
            factor = self._factor
        if factor is None:
            return 0
        total = max(free, round(free * factor))
        return -(-total // self._multiple_of) * self._multiple_of if total > free else total

    def complain(self, found: Structure) -> None:
        """Raises if a layer that was named cannot be widened or does not exist."""
        for pattern in self._targets if self._targets is not None else self._layers or []:
            named = [g for g in found.groups if any(fnmatch.fnmatchcase(x, pattern) for x in g.layers)]
            if not named:
                raise ValueError(f"no layer that could be widened matches {pattern!r}")
            literal = not any(c in pattern for c in "*?[")
            stuck = [g for g in named if g.reason is not None]
            if stuck and (literal or len(stuck) == len(named)):
                raise ValueError(f"{pattern} cannot be widened: {stuck[0].reason}")
