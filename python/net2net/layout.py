"""layout: where a student's axes have which replica of which unit, and what share of its unit's outgoing weights it
has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from net2net.groups import Piece, Structure
from net2net.mapping import ranks
from net2net.student import Laid, Layouts
from net2net.units import Units


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive units with one map: `index` [width] names the teacher unit of each student unit, `split` their
    shares."""

    units: int
    index: np.ndarray
    split: np.ndarray

    @property
    def width(self) -> int:
        return len(self.index)

    @cached_property
    def replica(self) -> np.ndarray:
        """int64 [width]: how many earlier entries copy the same unit."""
        # Of a single unit, as after a shuffle there are thousands, it is plain.
        return ranks(self.index) if self.units > 1 else np.arange(self.width)


def lay_out(pieces: tuple[Piece, ...], segments: list[Segment]) -> Laid:
    """An axis as a sequence of pieces: each segment by its map, unit by unit."""
    indices, replicas = [], []
    at = 0
    for piece in pieces:
        if piece.segment is None:
            indices.append(np.arange(at, at + piece.repeat))
            replicas.append(np.zeros(piece.repeat, dtype=np.int64))
            at += piece.repeat
        else:
            s = segments[piece.segment]
            indices.append((at + s.index[:, None] * piece.repeat + np.arange(piece.repeat)).ravel())
            replicas.append(np.repeat(s.replica, piece.repeat))
            at += s.units * piece.repeat
    return Laid(np.concatenate(indices), np.concatenate(replicas))


def layouts(units: Units, found: Structure, segments: list[Segment]) -> Layouts:
    """What a student is to look like."""
    counts, growth = np.ones(len(units) + 1, dtype=np.int64), np.ones(len(units) + 1)
    for roots, segment in zip(found.segments, segments, strict=True):
        counts[roots] = np.bincount(segment.index, minlength=segment.units)
        growth[roots] = segment.width / segment.units
    known: dict[tuple[Piece, ...], Laid] = {}
    canonical = {}
    for key, axis in units.axes.items():
        pieces = found.pieces.get(key, (Piece(None, axis.size),))
        if pieces not in known:
            known[pieces] = lay_out(pieces, segments)
        canonical[key] = known[pieces]
    return Layouts(units, counts, growth, canonical)


class Shares:
    """The share of each replica of each unit."""

    def __init__(self, units: Units, found: Structure, segments: list[Segment]) -> None:
        self._roots = found.root_of
        self._start = np.full(len(units), -1, dtype=np.int64)
        tables = [np.ones(1)]
        at = 1
        for roots, segment in zip(found.segments, segments, strict=True):
            order = np.argsort(segment.index, kind="stable")
            first = np.searchsorted(segment.index[order], np.arange(segment.units))
            self._start[roots] = at + first
            tables.append(segment.split[order])
            at += segment.width
        self._table = np.concatenate(tables)

    def along(self, key: tuple[str, int], laid: Laid) -> np.ndarray:
        """float64 [width]: the share of each position of an axis."""
        start = self._start[self._roots[key]][laid.index]
        return np.asarray(
            np.where(start < 0, 1.0, self._table[np.maximum(start, 0) + np.where(start < 0, 0, laid.replica)])
        )
