"""WidenPlan: a widening step as data, and what it does to each kind of tensor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from n2n_kernels import tensor_moments
from net2net import attributes, mapping
from net2net.groups import AxisPlan, Piece
from net2net.launches import Entry, Law
from net2net.plan import GrowthPlan, Inventory, Skipped

#: The kinds of noise, and the default noise_scale of each.
NOISES = {"cancelling": 0.5, "paper": 0.05, "none": 0.0}


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


@dataclass(frozen=True)
class Widened:
    """A group as the summary shows it."""

    layers: list[str]
    units: int
    width: int


@dataclass(frozen=True, eq=False)
class AxisTables:
    """What the kernel needs of one axis: the map, and each student position's share (of the unit, for splitting)."""

    index: Tensor  # int64
    split: Tensor  # float64
    powers: dict[int, Tensor] = field(default_factory=dict)

    def split_to(self, power: int) -> Tensor:
        """`split ** power`, always the same tensor."""
        return self.powers.setdefault(power, self.split**power)


class WidenPlan(GrowthPlan):
    """A widening step: maps for segments of units, and for each tensor's axes how they are made of segments.

    Attributes:
        widened: the groups that grow, with old and new numbers of units.
        segments: the maps.
        axes: (tensor, axis) -> its pieces.
        noise, noise_scale, seed: as given to `plan_widen`.
    """

    kind = "widen"

    def __init__(
        self,
        inventory: Inventory,
        skipped: list[Skipped],
        widened: list[Widened],
        segments: list[Segment],
        axes: dict[tuple[str, int], AxisPlan],
        noise: str,
        noise_scale: float,
        seed: int,
    ) -> None:
        super().__init__(inventory, skipped)
        self.widened = widened
        self.segments = segments
        self.axes = axes
        self.noise = noise
        self.noise_scale = noise_scale
        self.seed = self._seed = seed
        self._noise = "replicas" if noise == "paper" else "cancelling"
        # Axes made of the same pieces share their tables, and thereby the kernels' tables on the device.
        tables: dict[tuple[Piece, ...], AxisTables] = {}
        self._tables = {}
        for key, axis in axes.items():
            if axis.pieces not in tables:
                tables[axis.pieces] = _tables(axis.pieces, segments)
            self._tables[key] = tables[axis.pieces]

    def student_shape(self, name: str) -> tuple[int, ...]:
        shape = list(self.shapes[name])
        for dim in (0, 1):
            if (name, dim) in self.axes:
                shape[dim] = len(self._tables[name, dim].index)
        return tuple(shape)

    def first_copies(self, name: str, dim: int) -> Tensor | None:
        """int64: for each teacher position of an axis, the first student position that copies it; None: the axis
        stays."""
        if (name, dim) not in self.axes:
            return None
        index = self._tables[name, dim].index.numpy()
        return torch.from_numpy(np.unique(index, return_index=True)[1])

    def summary(self) -> str:
        before = sum(math.prod(s) for s in self.shapes.values())
        after = sum(math.prod(self.student_shape(name)) for name in self.shapes)
        width = max([len(w.layers[0]) for w in self.widened], default=5)
        lines = [f"widen: {before:,} -> {after:,} numbers, noise={self.noise!r}, noise_scale={self.noise_scale:g}"]
        for w in self.widened:
            more = f"  (+{len(w.layers) - 1} more)" if len(w.layers) > 1 else ""
            lines.append(f"  {w.layers[0]:<{width}}  {w.units:>5} -> {w.width:<5}{more}")
        lines += [f"  left alone: {s}" for s in self.skipped]
        return "\n".join(lines)

    # -- the laws ----------------------------------------------------------------------------------------------------

    def _law(self, entry: Entry) -> Law:
        """Weights are divided by the input split. Optimizer state is gathered like them, but scaled by a power of the
        *output* split instead."""
        name, power = entry
        maps: list[Tensor | None] = [None, None]
        scales: list[Tensor | None] = [None, None]
        for dim in (0, 1):
            axis = self.axes.get((name, dim))
            if axis is None:
                continue
            tables = self._tables[name, dim]
            maps[dim] = tables.index
            if power is None and axis.split:
                scales[dim] = tables.split
            elif power and not axis.split:
                scales[dim] = tables.split_to(power)
        return Law(*maps, *scales)

    def _noise_stds(self, names: list[str], tensors: list[Tensor]) -> Tensor | float:
        """Absolute noise: `noise_scale` times the standard deviation of each noisy tensor, which stays on the
        device."""
        noisy = [i for i, name in enumerate(names) if self._noisy(name)]
        if not noisy or self.noise_scale == 0 or tensors[0].is_meta:
            return 0.0
        device = tensors[0].device
        stds = torch.zeros(len(tensors), dtype=torch.float64, device=device)
        stds[torch.tensor(noisy, device=device)] = _stds([tensors[i] for i in noisy]) * self.noise_scale
        return stds

    def _noisy(self, name: str) -> bool:
        """The paper's noise goes on the incoming weights of replicas, cancelling noise on their outgoing weights."""
        if self.noise == "none" or len(self.shapes[name]) < 2:
            return False
        by_row = self._noise == "replicas"
        axis = self.axes.get((name, 0 if by_row else 1))
        return axis is not None and (by_row or axis.split)

    def _finish(self, student: nn.Module) -> None:
        attributes.update(student)

    def _renamed(self, name: str) -> str:
        return name

    def _new_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def _neighbours(self) -> dict[str, list[str]]:
        return {}

    # -- files -------------------------------------------------------------------------------------------------------

    def _body(self) -> dict[str, Any]:
        return {
            "noise": self.noise,
            "noise_scale": self.noise_scale,
            "seed": self.seed,
            "widened": [asdict(w) for w in self.widened],
            "segments": [{"units": s.units, "map": s.index.tolist(), "split": s.split.tolist()} for s in self.segments],
            "axes": [
                {"tensor": name, "dim": dim, "split": a.split, "pieces": [[p.segment, p.repeat] for p in a.pieces]}
                for (name, dim), a in self.axes.items()
            ],
        }

    @classmethod
    def _from_body(cls, body: dict[str, Any], inventory: Inventory, skipped: list[Skipped]) -> WidenPlan:
        segments = []
        for i, s in enumerate(body["segments"]):
            index, split = np.array(s["map"], dtype=np.int64), np.array(s["split"], dtype=np.float64)
            mapping.check_map(f"segments[{i}].map", index, int(s["units"]))
            mapping.check_split(f"segments[{i}].split", split, index)
            segments.append(Segment(int(s["units"]), index, split))
        axes = {}
        for a in body["axes"]:
            axis = AxisPlan(tuple(Piece(s, int(r)) for s, r in a["pieces"]), bool(a["split"]))
            size = sum(p.repeat * (1 if p.segment is None else segments[p.segment].units) for p in axis.pieces)
            if size != inventory.shapes[a["tensor"]][a["dim"]]:
                raise ValueError(f"the pieces of {a['tensor']}, axis {a['dim']}, cover {size} positions, not all")
            axes[a["tensor"], int(a["dim"])] = axis
        check_noise(body["noise"], float(body["noise_scale"]))
        widened = [Widened(**w) for w in body["widened"]]
        return cls(inventory, skipped, widened, segments, axes, body["noise"], body["noise_scale"], int(body["seed"]))


def _tables(pieces: tuple[Piece, ...], segments: list[Segment]) -> AxisTables:
    indices, splits = [], []
    at = 0
    for piece in pieces:
        if piece.segment is None:
            indices.append(np.arange(at, at + piece.repeat))
            splits.append(np.ones(piece.repeat))
            at += piece.repeat
        else:
            s = segments[piece.segment]
            repeats = np.arange(piece.repeat)
            indices.append((at + s.index[:, None] * piece.repeat + repeats).ravel())
            splits.append(np.repeat(s.split, piece.repeat))
            at += s.units * piece.repeat
    return AxisTables(torch.from_numpy(np.concatenate(indices)), torch.from_numpy(np.concatenate(splits)))


def _stds(tensors: list[Tensor]) -> Tensor:
    """float64 [n]: the standard deviation of each tensor's elements, on their device, with the same bits on any."""
    return tensor_moments(tensors)[1].sqrt()


def check_noise(noise: str, noise_scale: float | None) -> None:
    if noise not in NOISES:
        raise ValueError(f"noise (={noise!r}) must be one of {', '.join(map(repr, NOISES))}")
    if noise_scale is None:
        return
    if isinstance(noise_scale, bool) or not isinstance(noise_scale, int | float):
        raise TypeError(f"noise_scale (={noise_scale!r}) must be a number")
    if not (math.isfinite(noise_scale) and noise_scale >= 0):
        raise ValueError(f"noise_scale (={noise_scale}) must be finite and not negative")
    if noise == "none" and noise_scale != 0:
        raise ValueError(f"noise_scale (={noise_scale}) has no meaning where noise is 'none'")
