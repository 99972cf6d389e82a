"""Growth schedules: which growths of a network are due, in the course of its training. It knows of no training loop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from net2net.growth_text import AtEpoch, AtStep, Growth, OnPlateau, When, parse


class GrowthSchedule:
    """Tells a training loop when to grow.

    Ask `due` after each step, each epoch and each evaluation; do what it returns at once, in that order. Every entry is
    returned once. Plateaus are waited for one after the other: only the first of those still to come counts
    evaluations, and any growth starts its patience anew, since what has been added needs time to show.

    Args:
        entries: a text for `parse`, or what it returns.
    """

    def __init__(self, entries: str | Iterable[str] | Iterable[Growth]) -> None:
        listed: list[Any] = [entries] if isinstance(entries, str) else list(entries)
        self.entries: list[Growth] = listed if all(isinstance(e, Growth) for e in listed) else parse(listed)
        modes = {e.when.mode for e in self.entries if isinstance(e.when, OnPlateau)}
        if len(modes) > 1:
            raise ValueError("plateaus of one schedule are of one metric, so their mode must be the same")
        self._done = [False] * len(self.entries)
        self._best: float | None = None
        self._waited = 0

    @property
    def pending(self) -> list[Growth]:
        """The entries that have not been due yet."""
        return [entry for entry, done in zip(self.entries, self._done, strict=True) if not done]

    def due(self, *, step: int | None = None, epoch: int | None = None, metric: float | None = None) -> list[Growth]:
        """The growths that are due now.

        Args:
            step: how many optimizer steps have been done, if it is to be looked at.
            epoch: how many epochs have been done, likewise.
            metric: what an evaluation has just given, if there was one. NaN counts as no improvement.
        """
        found = []
        plateau = None if metric is None else self._passed(float(metric))
        for i, entry in enumerate(self.entries):
            if not self._done[i] and (i == plateau or _is_due(entry.when, step, epoch)):
                self._done[i] = True
                found.append(entry)
        if found:
            self._waited = 0
        return found

    def _passed(self, metric: float) -> int | None:
        """The number of the plateau that is waited for, if it has lasted long enough with this evaluation."""
        for number, entry in enumerate(self.entries):
            if isinstance(entry.when, OnPlateau) and not self._done[number]:
                return number if self._lasted(entry.when, metric) else None
        return None

    def _lasted(self, plateau: OnPlateau, metric: float) -> bool:
        sign = 1.0 if plateau.mode == "min" else -1.0
        best = math.inf if self._best is None else sign * self._best
        if sign * metric < best - plateau.delta:
            self._best = metric
            self._waited = 0
        else:
            self._waited += 1
        return self._waited >= plateau.patience

    def state_dict(self) -> dict[str, Any]:
        """What has been done, and what plateaus are measured against: plain values, that go into JSON too."""
        return {
            "entries": [entry.text for entry in self.entries],
            "done": list(self._done),
            "best": self._best,
            "waited": self._waited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where another run of the same schedule was.

        Raises:
            ValueError: if it is the state of another schedule.
        """
        mine = [entry.text for entry in self.entries]
        if list(state["entries"]) != mine:
            theirs = "; ".join(state["entries"])
            raise ValueError(f"this is the state of another growth schedule ({theirs!r}, not {'; '.join(mine)!r})")
        self._done = [bool(done) for done in state["done"]]
        self._best = None if state["best"] is None else float(state["best"])
        self._waited = int(state["waited"])


def _is_due(when: When, step: int | None, epoch: int | None) -> bool:
    if isinstance(when, AtStep):
        return step is not None and step >= when.step
    return isinstance(when, AtEpoch) and epoch is not None and epoch >= when.epoch
