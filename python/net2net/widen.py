"""Net2WiderNet (Chen et al., ICLR 2016, section 2.3) for whole models: planning it, and doing it."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from n2n_kernels import gather_scale
from net2net import attributes, mapping
from net2net.check import Check
from net2net.groups import AxisPlan, Group, Piece, Structure, infer, structure
from net2net.plan import GrowthPlan, Inventory, Skipped
from net2net.skeleton import skeleton
from net2net.trace import Inputs, TraceError, walk
from net2net.units import FIXED, Units
from net2net.verify import check_growth

NOISES = {"cancelling": 0.5, "paper": 0.05, "none": 0.0}  # and the default noise_scale of each

Width = float | Mapping[str, float | int]


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

    def _neighbours(self) -> dict[str, str]:
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
        _check_noise(body["noise"], body["noise_scale"])
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
    if not chosen or scale == 0:
        return [0.0] * len(tensors)
    wide = [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in chosen]
    stds = iter(torch.stack([t.std(correction=0).double() for t in wide]).tolist())
    # A tensor that holds an infinity or a NaN has no scale to go by.
    return [scale * s if n and math.isfinite(s := next(stds)) else 0.0 for n in noisy]


def plan_widen(
    model: nn.Module,
    example_inputs: Inputs,
    width: Width,
    layers: str | Sequence[str] | None = None,
    mapping: str = "random",
    split: str = "uniform",
    noise: str = "cancelling",
    noise_scale: float | None = None,
    multiple_of: int = 1,
    seed: int = 0,
    strict: bool = False,
) -> WidenPlan:
    """Plans how to widen `model`; nothing is changed yet.

    Args:
        model: any module; a copy with empty weights is run, the module itself is not touched.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for its forward. Small ones
            suffice.
        width: the factor by which the number of units grows; or a mapping from module names or patterns to factors
            (float) or numbers of units (int), which then names the layers to widen.
        layers: names or shell-style patterns of the layers to widen (with what must be widened along); None: all.
        mapping: how replicas are chosen, `"random"` (the paper) or `"even"`.
        split: how replicas share their unit's outgoing weights, `"uniform"` (1/r, the paper) or `"dyadic"` (powers of
            two, exact in every format).
        noise: `"cancelling"` perturbs the outgoing weights of replicas so that the function stays exactly the same and
            yet replicas learn apart; `"paper"` perturbs the incoming weights of all copies but the first (the function
            changes slightly); `"none"`.
        noise_scale: standard deviation of the noise in units of the teacher tensor's; None: 0.5 for cancelling noise
            (each replica then moves by 0.7 of it), 0.05 for the paper's.
        multiple_of: new numbers of units are rounded up to a multiple of this.
        seed: of maps and noise.
        strict: raise instead of leaving a part alone that cannot be widened.

    Returns:
        A plan. `plan.skipped` lists what is left alone, with reasons.

    Raises:
        ValueError: for a bad argument, by name and value; if a layer that was named cannot be widened, or does not
            exist; if nothing at all can be widened; under `strict`, if anything cannot.
    """
    _check_arguments(width, mapping, split, noise, noise_scale, multiple_of, seed)
    scale = NOISES[noise] if noise_scale is None else float(noise_scale)
    targets = dict(width) if isinstance(width, Mapping) else None
    if targets is not None and layers is not None:
        raise ValueError("layers must be None where width is a mapping, which names the layers itself")
    wanted = [layers] if isinstance(layers, str) else None if layers is None else list(layers)
    factor = None if isinstance(width, Mapping) else float(width)
    chooser = _Chooser(targets, wanted, factor, multiple_of)

    def plan_for(found: Structure) -> WidenPlan:
        rng = np.random.default_rng(seed)
        widths = chooser.widths(found)
        segments = [_segment(len(r), w, mapping, split, rng) for r, w in zip(found.segments, widths, strict=True)]
        return _plan(model, found, segments, noise, scale, seed)

    plan, found = _settle(model, example_inputs, plan_for)
    chooser.complain(found)
    stuck = [g for g in found.groups if g.reason is not None and not g.output]
    if strict and stuck:
        raise ValueError(f"strict: {len(stuck)} groups cannot be widened; the first is {stuck[0]}")
    if not plan.widened:
        raise ValueError("nothing was widened" + (f"; for example, {stuck[0]}" if stuck else ""))
    return plan


def _settle(
    model: nn.Module, example_inputs: Inputs, plan_for: Callable[[Structure], WidenPlan]
) -> tuple[WidenPlan, Structure]:
    """Plans, holds the plan against the student's own forward, pins what they disagree about, and plans again."""
    inference = infer(model, example_inputs)
    while True:
        found = structure(inference.units)
        plan = plan_for(found)
        disagreement = _disagreement(model, example_inputs, plan, found, inference.seen_numbers)
        if disagreement is None:
            return plan, found
        _blame(inference.units, found, plan, disagreement)


def groups(model: nn.Module, example_inputs: Inputs) -> list[Group]:
    """What of `model` can be widened, what not, and why.

    Args:
        model: any module. It is not touched; copies with empty weights are run.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for its forward. Small ones
            suffice.

    Returns:
        Groups of units that must be widened together, in the order in which the forward meets them, as they turn out
        for a widening by a half. `print(group)` reads well.
    """
    return _settle(model, example_inputs, lambda found: _trial(model, found))[1].groups


def _trial(model: nn.Module, found: Structure) -> WidenPlan:
    widths = _Chooser(None, None, 1.5, 1).widths(found)
    rng = np.random.default_rng(0)
    segments = [_segment(len(r), w, "random", "uniform", rng) for r, w in zip(found.segments, widths, strict=True)]
    return _plan(model, found, segments, "none", 0.0, 0)


def widen(
    model: nn.Module,
    example_inputs: Inputs,
    width: Width,
    layers: str | Sequence[str] | None = None,
    mapping: str = "random",
    split: str = "uniform",
    noise: str = "cancelling",
    noise_scale: float | None = None,
    multiple_of: int = 1,
    seed: int = 0,
    strict: bool = False,
) -> nn.Module:
    """A wider model that computes the same function (with the paper's noise: nearly the same).

    The arguments are those of `plan_widen`, of which this is the short form: plan, apply, and compare teacher and
    student on `example_inputs` before the student is handed out.

    Returns:
        A new module of the same class. `model` is not touched.

    Raises:
        ValueError: as `plan_widen`.
        RuntimeError: if the student's outputs differ from the teacher's by more than rounding explains.
    """
    plan = plan_widen(
        model, example_inputs, width, layers, mapping, split, noise, noise_scale, multiple_of, seed, strict
    )  # fmt: skip
    student = plan.apply(model)
    if noise != "paper":
        check_growth(model, student, example_inputs)
    return student


def _check_noise(noise: str, noise_scale: float | None) -> None:
    if noise not in NOISES:
        raise ValueError(f"noise (={noise!r}) must be one of {', '.join(map(repr, NOISES))}")
    if noise_scale is not None and not (math.isfinite(noise_scale) and noise_scale >= 0):
        raise ValueError(f"noise_scale (={noise_scale}) must be finite and not negative")


def _check_arguments(
    width: Width, how: str, split: str, noise: str, noise_scale: float | None, multiple_of: int, seed: int
) -> None:
    for name, value in width.items() if isinstance(width, Mapping) else [("", width)]:
        what = f"width[{name!r}]" if name else "width"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{what} (={value!r}) must be a finite number")
        if value < 1:
            raise ValueError(f"{what} (={value!r}) must be at least 1: every unit must be kept")
    if isinstance(width, Mapping) and not width:
        raise ValueError("width (={}) names no layers")
    if how not in mapping.MAPPINGS:
        raise ValueError(f"mapping (={how!r}) must be one of {', '.join(map(repr, mapping.MAPPINGS))}")
    if split not in mapping.SPLITS:
        raise ValueError(f"split (={split!r}) must be one of {', '.join(map(repr, mapping.SPLITS))}")
    _check_noise(noise, noise_scale)
    if not isinstance(multiple_of, int) or multiple_of < 1:
        raise ValueError(f"multiple_of (={multiple_of!r}) must be a positive integer")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed (={seed!r}) must be an integer in [0, 2**63)")


class _Chooser:
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


def _segment(units: int, width: int, how: str, split: str, rng: np.random.Generator) -> Segment:
    index = mapping.make_map(units, width, how, rng)
    return Segment(units, index, mapping.make_split(index, split))


def _plan(
    model: nn.Module, found: Structure, segments: list[Segment], noise: str, scale: float, seed: int
) -> WidenPlan:
    grows = [s.width > s.units for s in segments]
    axes = {
        key: axis
        for key, axis in found.axes.items()
        if any(p.segment is not None and grows[p.segment] for p in axis.pieces)
    }
    widened = [
        Widened(g.layers, g.units, sum(segments[s].width for s in g.segments))
        for g in found.groups
        if any(grows[s] for s in g.segments)
    ]
    skipped = [Skipped(g.layers, g.units, g.reason) for g in found.groups if g.reason is not None and not g.output]
    return WidenPlan(Inventory.of(model), skipped, widened, segments, axes, noise, scale, seed)


def _disagreement(
    model: nn.Module,
    example_inputs: Inputs,
    plan: WidenPlan,
    found: Structure,
    numbers: list[tuple[str, tuple[str, ...]]],
) -> TraceError | None:
    """What the student's own forward says against the plan, if anything."""
    student = skeleton(model, lambda name, _t: torch.Size(plan.student_shape(name)))
    attributes.update(student)
    unit_of = {
        key: roots[plan._tables[key].index.numpy()] if key in plan.axes else roots
        for key, roots in found.root_of.items()
    }
    widened = np.zeros(max((int(r.max(initial=0)) for r in found.root_of.values()), default=0) + 1, dtype=bool)
    for roots, segment in zip(found.segments, plan.segments, strict=True):
        widened[roots] = segment.width > segment.units
    widened[: FIXED + 1] = False
    try:
        walk(student, example_inputs, Check(student, unit_of, widened, numbers))
    except TraceError as error:
        return error
    return None


def _blame(units: Units, found: Structure, plan: WidenPlan, error: TraceError) -> None:
    """Pins the groups that a disagreement is about. What stays in doubt is never widened."""
    group_of: dict[int, Group] = {}
    for group in found.groups:
        for s in group.segments:
            group_of.update(dict.fromkeys(found.segments[s].tolist(), group))
    growing = {w.layers[0] for w in plan.widened}
    # Last of all, an error that tells of no units: nothing may be assumed of any of them.
    everyone = np.array(sorted(group_of))
    for suspects in [*error.suspects, everyone]:
        blamed = {g.name: g for u in suspects.tolist() if (g := group_of.get(u)) and g.name in growing}
        if blamed:
            break
    if not blamed:
        raise error
    for group in blamed.values():
        for s in group.segments:
            units.pin(found.segments[s], f"a wider copy of the model does not run as inferred: {error}")
