"""WidenPlan: a widening step as data, and what it does to each kind of tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from n2n_kernels import tensor_moments
from net2net import attributes, computed_weights, map_runs, mapping, plan_fields
from net2net.caches import Caches, Place
from net2net.changes import Change, make
from net2net.computed_weights import Computed, Standardised
from net2net.dynamics import GrownAxis
from net2net.launches import Entry, Law
from net2net.plan import GrowthPlan
from net2net.plan_parts import Inventory, Skipped
from net2net.skeleton import Tensors

#: The kinds of noise, and the default noise_scale of each.
NOISES = {"cancelling": 0.5, "paper": 0.05, "none": 0.0}

#: The largest noise_scale, far above all that is of use: weights drown in it, but stay finite.
LOUDEST = 1000


@dataclass(frozen=True, eq=False)
class AxisPlan:
    """An axis of a parameter: for each position of the student's the teacher's position that it copies, and the share
    that it has of its unit's outgoing weights. `split`: a sum runs over this axis, so its weights are these outgoing
    ones."""

    index: np.ndarray  # int64 [width]
    share: np.ndarray  # float64 [width]
    split: bool


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
    """A widening step: for each axis of each tensor, what its positions are copies of.

    Attributes:
        widened: the groups that grow, with the old and new width of their first layer.
        axes: (tensor, axis) -> its map and shares, for every axis that grows.
        changes: attributes of the user's own modules that grow along.
        computed: weights that layers compute from their parameters, and that grow.
        multipliers: what weights are multiplied by (masks): no noise is added to these.
        caches: dicts in which modules keep what they have computed, which the student's fill anew.
        noise, noise_scale, seed: as given to `plan_widen`.
    """

    kind = "widen"

    def __init__(
        self,
        inventory: Inventory,
        skipped: list[Skipped],
        widened: list[Widened],
        axes: dict[tuple[str, int], AxisPlan],
        changes: list[Change],
        caches: list[Place],
        computed: list[Computed],
        multipliers: list[str],
        noise: str,
        noise_scale: float,
        seed: int,
    ) -> None:
        super().__init__(inventory, skipped)
        self.widened = widened
        self.axes = axes
        self.changes = changes
        self.caches = caches
        self.computed = computed
        self.multipliers = multipliers
        self._standardised = {how.weight for how in computed if isinstance(how, Standardised)}
        self.noise = noise
        self.noise_scale = noise_scale
        self.seed = self._seed = seed
        self._noise = "replicas" if noise == "paper" else "cancelling"
        # Axes with the same map share their tables, and thereby the kernels' tables on the device.
        tables: dict[tuple[bytes, bytes], AxisTables] = {}
        self._tables = {}
        for key, axis in axes.items():
            content = axis.index.tobytes(), axis.share.tobytes()
            if content not in tables:
                tables[content] = AxisTables(torch.from_numpy(axis.index), torch.from_numpy(axis.share))
            self._tables[key] = tables[content]
        self._noisy = frozenset(filter(self._is_noisy, self.shapes))
        self._crossing = frozenset(filter(self._is_crossing, self.shapes))

    def student_shape(self, name: str) -> tuple[int, ...]:
        shape = list(self.shapes[name])
        for dim in range(len(shape)):
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
        lines += [f"  attribute {c}" for c in self.changes]
        lines += [f"  left alone: {s}" for s in self.skipped]
        return "\n".join(lines)

    # -- the laws ----------------------------------------------------------------------------------------------------

    def _law(self, entry: Entry) -> Law:
        """Weights are divided by the input split. Optimizer state is gathered like them, but scaled by a power of the
        *output* split instead."""
        name, power = entry
        maps: list[Tensor | None] = [None, None]
        scales: list[Tensor | None] = [None, None]
        late = 0
        for dim in range(len(self.shapes[name])):
            axis = self.axes.get((name, dim))
            if axis is None:
                continue
            tables = self._tables[name, dim]
            at = min(dim, 1)
            late = dim if dim > 1 else 0
            maps[at] = tables.index
            if power is None and axis.split:
                scales[at] = tables.split
            elif power and not axis.split:
                scales[at] = tables.split_to(power)
        return Law(maps[0], maps[1], scales[0], scales[1], late)

    def _grown_axes(self, name: str) -> list[GrownAxis]:
        dims = [dim for dim in range(len(self.shapes[name])) if (name, dim) in self.axes]
        tables = [self._tables[name, dim] for dim in dims]
        return [
            GrownAxis(dim, t.index, t.split, self.axes[name, dim].split) for dim, t in zip(dims, tables, strict=True)
        ]

    def _noise_of(self, name: str) -> float:
        return self.noise_scale if name in self._noisy else 0.0

    def _crossing_noise_of(self, name: str) -> float:
        return self.noise_scale if name in self._crossing else 0.0

    def _noise_stds(self, names: list[str], tensors: list[Tensor]) -> Tensor | float:
        """Absolute noise: `noise_scale` times the standard deviation of each noisy tensor, which stays on the
        device."""
        if self.noise == "none" or self.noise_scale == 0 or tensors[0].is_meta:
            return 0.0
        noisy = [i for i, name in enumerate(names) if name in self._noisy]
        if not noisy:
            return 0.0
        device = tensors[0].device
        stds = torch.zeros(len(tensors), dtype=torch.float64, device=device)
        stds[torch.tensor(noisy, device=device)] = _stds([tensors[i] for i in noisy]) * self.noise_scale
        return stds

    def _is_noisy(self, name: str) -> bool:
        """The paper's noise goes on the incoming weights of replicas, cancelling noise on their outgoing weights."""
        if self.noise == "none" or len(self.shapes[name]) < 2 or name in self.multipliers:
            return False
        by_row = self._noise == "replicas"
        axis = self.axes.get((name, 0 if by_row else 1))
        return axis is not None and (by_row or axis.split)

    def _is_crossing(self, name: str) -> bool:
        """Whether its outgoing weights are along its first axis, and none along its second."""
        if self.noise != "cancelling" or len(self.shapes[name]) < 2 or name in self._standardised:
            return False
        first, second = self.axes.get((name, 0)), self.axes.get((name, 1))
        return first is not None and first.split and not (second is not None and second.split)

    def _finish(self, student: nn.Module) -> None:
        attributes.update(student)
        make(student, self.changes)
        Caches(student, self.caches).clear()

    def _fill(self, student: nn.Module) -> None:
        if self.computed:
            self._mend(Tensors.of(student).by_name)

    def _mended(self) -> dict[str, tuple[str, ...]]:
        return {how.mended: how.needed for how in self.computed}

    def _mend(self, tensors: Mapping[str, Tensor]) -> None:
        for how in self.computed:
            if all(name in tensors for name in how.needed):
                how.mend(tensors, self._grown_axes(how.weight))

    def _renamed(self, name: str) -> str:
        return name

    def _neighbours(self) -> dict[str, list[str]]:
        return {}

    # -- files -------------------------------------------------------------------------------------------------------

    def _body(self) -> dict[str, Any]:
        distinct = {id(self._tables[key]): axis for key, axis in self.axes.items()}
        number = {table: i for i, table in enumerate(distinct)}
        return {
            "noise": self.noise,
            "noise_scale": self.noise_scale,
            "seed": self.seed,
            "widened": [asdict(w) for w in self.widened],
            "changes": [asdict(c) for c in self.changes],
            "caches": [list(place) for place in self.caches],
            "computed": computed_weights.to_json(self.computed),
            "multipliers": self.multipliers,
            "maps": [map_runs.written(a.index, a.share) for a in distinct.values()],
            "axes": [
                {"tensor": name, "dim": dim, "split": a.split, "map": number[id(self._tables[name, dim])]}
                for (name, dim), a in self.axes.items()
            ],
        }

    @classmethod
    def _from_body(cls, body: dict[str, Any], inventory: Inventory, skipped: list[Skipped]) -> WidenPlan:
        axes = _axes_from_json(body["axes"], map_runs.read(body["maps"]), inventory)
        check_noise(plan_fields.text("noise", body["noise"]), plan_fields.number("noise_scale", body["noise_scale"]))
        widened = [
            Widened(
                plan_fields.texts("layers of widened", w["layers"], 1),
                plan_fields.whole("units of widened", w["units"]),
                plan_fields.whole("width of widened", w["width"]),
            )
            for w in body["widened"]
        ]
        changes = [_change(c) for c in body["changes"]]
        caches = [
            Place(plan_fields.text("module of caches", module), plan_fields.name("name of caches", name))
            for module, name in body.get("caches", [])
        ]
        computed = computed_weights.from_json(body.get("computed", []), inventory)
        multipliers = plan_fields.texts("multipliers", body.get("multipliers", []))
        for name in multipliers:
            inventory.shape(name)
        seed = plan_fields.whole("seed", body["seed"])
        return cls(
            inventory, skipped, widened, axes, changes, caches, computed, multipliers,
            body["noise"], body["noise_scale"], seed,
        )  # fmt: skip


def _change(c: dict[str, Any]) -> Change:
    """JSON knows no tuples."""
    module, name = plan_fields.text("module of changes", c["module"]), plan_fields.name("name of changes", c["name"])
    what = f"the change of {module + '.' if module else ''}{name}"
    if isinstance(c["before"], list | tuple) or isinstance(c["after"], list | tuple):
        before, after = (plan_fields.wholes(what, c[key], 1) for key in ("before", "after"))
        if len(before) != len(after):
            raise ValueError(f"{what} is from {len(before)} numbers to {len(after)}")
        return Change(module, name, before, after)
    return Change(module, name, *(plan_fields.whole(what, c[key], 1) for key in ("before", "after")))


def _axes_from_json(
    given: list[dict[str, Any]], maps: list[tuple[np.ndarray, np.ndarray]], inventory: Inventory
) -> dict[tuple[str, int], AxisPlan]:
    axes: dict[tuple[str, int], AxisPlan] = {}
    grown: dict[str, set[int]] = {}
    for a in given:
        name = plan_fields.text("tensor of axes", a["tensor"])
        shape = inventory.shape(name)
        dim = plan_fields.whole(f"dim of {name}", a["dim"], 0, len(shape) - 1)
        split = plan_fields.flag(f"split of {name}, axis {dim},", a["split"])
        index, share = maps[plan_fields.whole(f"map of {name}, axis {dim},", a["map"], 0, len(maps) - 1)]
        mapping.check_map(f"the map of {name}, axis {dim},", index, shape[dim])
        mapping.check_split(f"the shares of {name}, axis {dim},", share, index)
        if (name, dim) in axes:
            raise ValueError(f"axis {dim} of {name} grows twice")
        axes[name, dim] = AxisPlan(index, share, split)
        dims = grown.setdefault(name, set())
        dims.add(dim)
        if len(dims) > 1 and dims != {0, 1}:
            raise ValueError(f"{name} grows along axes {sorted(dims)}: only the first two can grow together")
    return axes


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
    if not 0 <= noise_scale <= LOUDEST:
        raise ValueError(f"noise_scale (={noise_scale}) must be in [0, {LOUDEST}]: standard deviations of the weights")
    if noise == "none" and noise_scale != 0:
        raise ValueError(f"noise_scale (={noise_scale}) has no meaning where noise is 'none'")
