"""WidenPlan: a widening step as data, and what it does to each kind of tensor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from n2n_kernels import gather_scale
from net2net import attributes, mapping
from net2net.groups import AxisPlan, Piece
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
        self.seed = seed
        # Axes made of the same pieces share their tables, and thereby the kernels' tables on the device.
        tables: dict[tuple[Piece, ...], AxisTables] = {}
        self._tables = {}
        for key, axis in axes.items():
            if axis.pieces not in tables:
                tables[axis.pieces] = _tables(axis.pieces, segments)
            self._tables[key] = tables[axis.pieces]
        self._ids = {name: i for i, name in enumerate(self.shapes)}

    def student_shape(self, name: str) -> tuple[int, ...]:
        """The student's shape of a teacher tensor."""
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

    def _index(self, name: str, dim: int) -> Tensor | None:
        return self._tables[name, dim].index if (name, dim) in self.axes else None

    def _grown(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        names = list(tensors)
        flat = [t.reshape(1) if t.dim() == 0 else t for t in tensors.values()]
        split = [self._split_scale(name) for name in names]
        by_row = self.noise == "paper"
        noisy = [self._noisy(name, by_row) for name in names]
        grown = gather_scale(
            flat,
            [self._index(name, 0) for name in names],
            [self._index(name, 1) for name in names],
            out_scales=[s if axis == 0 else None for axis, s in split],
            in_scales=[s if axis == 1 else None for axis, s in split],
            noise_std=_stds(flat, noisy, self.noise_scale),
            noise="replicas" if by_row else "cancelling",
            seed=self.seed,
            tensor_ids=[self._ids[name] for name in names],
        )
        return {
            name: g.view(tensors[name].shape) if tensors[name].dim() == 0 else g
            for name, g in zip(names, grown, strict=True)
        }

    def _split_scale(self, name: str) -> tuple[int | None, Tensor | None]:
        for dim in (0, 1):
            axis = self.axes.get((name, dim))
            if axis is not None and axis.split:
                return dim, self._tables[name, dim].split
        return None, None

    def _noisy(self, name: str, by_row: bool) -> bool:
        """The paper's noise goes on the incoming weights of replicas, cancelling noise on their outgoing weights."""
        if self.noise == "none" or len(self.shapes[name]) < 2:
            return False
        axis = self.axes.get((name, 0 if by_row else 1))
        return axis is not None and (by_row or axis.split)

    def _grown_state(self, states: list[tuple[str, Tensor, int]]) -> list[Tensor]:
        """Gathered like the weights, but scaled by a power of the *output* split instead of the input split."""
        scales: list[list[Tensor | None]] = [[None] * len(states), [None] * len(states)]
        for i, (name, _, power) in enumerate(states):
            for dim in (0, 1):
                axis = self.axes.get((name, dim))
                if axis is not None and not axis.split and power:
                    scales[dim][i] = self._tables[name, dim].split ** power
        return gather_scale(
            [value for _, value, _ in states],
            [self._index(name, 0) for name, _, _ in states],
            [self._index(name, 1) for name, _, _ in states],
            out_scales=scales[0],
            in_scales=scales[1],
        )

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


def _stds(tensors: list[Tensor], noisy: list[bool], scale: float) -> list[float]:
    """Absolute noise: `scale` times each noisy tensor's standard deviation, read back from the device once."""
    chosen = [t for t, n in zip(tensors, noisy, strict=True) if n]
    if not chosen or scale == 0 or chosen[0].is_meta:
        return [0.0] * len(tensors)
    wide = [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in chosen]
    stds = iter(torch.stack([t.std(correction=0).double() for t in wide]).tolist())
    # A tensor that holds an infinity or a NaN has no scale to go by.
    return [scale * s if n and math.isfinite(s := next(stds)) else 0.0 for n in noisy]


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
