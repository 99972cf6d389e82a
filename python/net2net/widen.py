"""Net2WiderNet (Chen et al., ICLR 2016, section 2.3) for whole models: planning it, and doing it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from net2net import attributes, mapping, repair
from net2net.blame import Blame
from net2net.changes import Change, Changes, make
from net2net.choices import Choices, How, Width
from net2net.computed_weights import Computed
from net2net.context import TraceError
from net2net.echo import repeats, tallied
from net2net.groups import Group, Structure, infer, structure
from net2net.importance import IMPORTANCE, scores
from net2net.inference import Inference
from net2net.kept_numbers import passed_on, shared
from net2net.layout import Segment, Shares, layouts
from net2net.plan_parts import Inventory, Skipped
from net2net.running import Inputs, sealed
from net2net.scalars import plain
from net2net.skeleton import check_model, skeleton
from net2net.student import Laid, Layouts, Student
from net2net.tallies import changed, notes
from net2net.trace import walk
from net2net.tree import no_collections
from net2net.units import Units
from net2net.verify import check_growth
from net2net.widen_plan import AxisPlan, Widened, WidenPlan
from net2net.widths import Widths


def plan_widen(
    model: nn.Module,
    example_inputs: Inputs,
    width: Width,
    layers: str | Sequence[str] | None = None,
    mapping: How = "random",
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
            suffice; of several samples, and with lengths that are no widths, nothing is alike by chance.
        width: the factor by which the number of units grows; or a mapping from module names or patterns to factors
            (float) or numbers of units (int), which then names the layers to widen.
        layers: names or shell-style patterns of the layers to widen (with what must be widened along); None: all.
        mapping: how replicas are chosen: `"random"` (the paper), `"balanced"` (all units equally often, as far as
            possible), `"importance"` (those with the largest activations on `example_inputs` first) or `"gradient"`
            (those whose weights have the largest gradients: call `backward` on the model before); or a mapping from
            names of layers to maps, each a list of the teacher's units that the student's are copies of, which begins
            with all of them in order (of heads, where attention is replicated by heads). These decide the widths of
            their layers; other layers get random maps.
        split: how replicas share their unit's outgoing weights: `"uniform"` (1/r, the paper), `"dyadic"` (powers of
            two, exact in every format) or `"random"` (convex). What a norm averages over is shared uniformly.
        noise: `"cancelling"` perturbs the outgoing weights of replicas so that the function stays exactly the same and
            yet replicas learn apart; `"paper"` perturbs the incoming weights of all copies but the first (the function
            changes slightly); `"none"`.
        noise_scale: standard deviation of the noise in units of the teacher tensor's; None: 0.5 for cancelling noise
            (each replica then moves by 0.7 of it), 0.05 for the paper's. Cancelling noise magnifies what replicas
            differ by through rounding: above about 0.7 (each moves by its tensor's standard deviation) the more, the
            deeper the network, until it is no longer the same function in float32.
        multiple_of: new numbers of units are rounded up to a multiple of this.
        seed: of maps and noise.
        strict: raise instead of leaving a part alone that cannot be widened.

    Returns:
        A plan. `plan.skipped` lists what is left alone, with reasons.

    Raises:
        ValueError: for a bad argument, by name and value; if a layer that was named cannot be widened, or does not
            exist; if nothing at all can be widened; under `strict`, if anything cannot.
    """
    choices = Choices(
        plain(width), layers, mapping, split, noise, plain(noise_scale), plain(multiple_of), plain(seed), strict
    )
    return plan_and_groups(model, example_inputs, choices)[0]


def plan_and_groups(model: nn.Module, example_inputs: Inputs, choices: Choices) -> tuple[WidenPlan, list[Group]]:
    """`plan_widen`, and the groups that it found."""
    choices.check()
    chooser = Widths(choices.targets, choices.wanted, choices.factor, choices.multiple_of, choices.given)

    known = None
    if choices.how in IMPORTANCE:
        known = IMPORTANCE[choices.how](model, example_inputs)

    def choose(found: Structure, whole: set[int]) -> list[Segment]:
        return _segments(found, chooser, whole, choices, known)

    settled = _settle(model, example_inputs, choose)
    plan, found = _plan(model, settled, choices), settled.found
    chooser.complain(found)
    stuck = [g for g in found.groups if g.left_alone]
    if choices.strict and stuck:
        raise ValueError(f"strict: {len(stuck)} groups cannot be widened; the first is {stuck[0]}")
    if not plan.widened:
        could = any(g.reason is None for g in found.groups)
        example = next(iter([*stuck, *found.groups]), "the forward uses no weights that could be")
        raise ValueError(
            "nothing was widened: "
            + (f"width (={choices.width!r}) adds no unit" if could else f"for example, {example}")
        )
    return plan, found.groups


_T = TypeVar("_T")


@dataclass(frozen=True)
class _Settled:
    """What teacher and student agree on."""

    inference: Inference
    found: Structure
    segments: list[Segment]
    planned: Layouts
    laid: dict[tuple[str, int], Laid]
    changes: list[Change]


@no_collections()
def _settle(
    model: nn.Module, example_inputs: Inputs, choose: Callable[[Structure, set[int]], list[Segment]]
) -> _Settled:
    """Chooses maps, and runs the student's own forward on what comes of them. The groups that this fails on are
    replicated as a whole instead, and if it fails again, not at all."""
    check_model(model)
    with sealed(model):
        try:
            return _settle_by(infer(model, example_inputs), model, example_inputs, choose)
        except _NotAlikeError:
            return _settle_by(infer(model, example_inputs, alike=False), model, example_inputs, choose)


class _NotAlikeError(Exception):
    """A student does something else in train mode than in eval mode, or than its teacher, which does not."""


def _settle_by(
    inference: Inference,
    model: nn.Module,
    example_inputs: Inputs,
    choose: Callable[[Structure, set[int]], list[Segment]],
) -> _Settled:
    blame = Blame(inference.units)
    known = len(inference.units)
    records = True

    def run(
        planned: Layouts, prepare: Callable[[nn.Module, Student], _T]
    ) -> tuple[_T, dict[tuple[str, int], Laid], set[str]]:
        student = _empty(model, planned)
        noted = notes(student)
        context = Student(student, planned, known, inference.runs, inference.places)
        context.whole = inference.whole
        prepared = prepare(student, context)
        for teachers in inference.runs:
            trail = walk(student, example_inputs, context, teachers.training)
        if inference.left_out is not None:
            repair.detach(student)
            mine = repeats(student, example_inputs, trail if trail.complete else None, context.reassigned)
            if mine != inference.left_out:
                raise _NotAlikeError
        return prepared, context.laid, set(changed(noted, notes(student)))

    def attach(student: nn.Module, context: Student) -> Changes:
        return repair.attach(student, context, records)

    while True:
        found = structure(inference.units)
        segments = choose(found, blame.whole(found))
        planned = layouts(inference.units, found, segments)
        if not any(s.width > s.units for s in segments):
            return _Settled(inference, found, segments, planned, {}, [])
        try:
            mended, laid, noted = run(planned, attach)
        except TraceError as error:
            blame.take(found, segments, error)
            continue
        changes = mended.all()
        if any(change.of_record() for change in changes):
            # Until here each module had records of its own.
            made = functools.partial(_made, changes, inference.written)
            try:
                _, laid, _ = run(planned, made)
            except (TraceError, ValueError):
                records = False
                continue
        if inference.tallies or not all(_by_repair(name, changes) for name in noted):
            student = _empty(model, planned)
            make(student, changes)
            if (wrong := _miscounted(student, example_inputs, inference)) is not None:
                blame.take(found, segments, wrong)
                continue
        return _Settled(inference, found, segments, planned, laid, changes)


def _by_repair(name: str, changes: list[Change]) -> bool:
    """Whether what a student's modules hold there is what was changed to let it run."""
    return any(name.startswith(f"{c.module}.{c.name}" if c.module else c.name) for c in changes)


def _miscounted(student: nn.Module, example_inputs: Inputs, inference: Inference) -> TraceError | None:
    """What is wrong if a student notes down something else than its teacher."""
    try:
        mine = tallied(student, example_inputs, inference.modes)
    except Exception as error:
        return TraceError(f"the student is run again, and fails: {error}", [])
    for theirs, its in zip(inference.tallies or [{} for _ in mine], mine, strict=True):
        for name in {**theirs, **its}:
            other, number = its.get(name), theirs.get(name, "")
            if number is not None and other != number:
                near = {m for m, _ in student.named_modules() if name.startswith(f"{m}." if m else "")}
                axes = [axis.ids() for (t, _), axis in inference.units.axes.items() if t.startswith(max(near, key=len))]
                return TraceError(f"the student changes {name} to {other}, and its teacher to {number}", axes)
    return None


def _made(changes: list[Change], written: bool, student: nn.Module, context: Student) -> None:
    """Makes changes as they are made in the end; TraceError if modules would not tell each other something any more."""
    held = shared(student)
    copied = [record for record in make(student, changes) if id(record) in held]
    if copied and (written or passed_on(student, copied)):
        raise TraceError("copies of what modules share, and write to", [])


def _empty(model: nn.Module, planned: Layouts) -> nn.Module:
    """The student without its weights."""
    axes = planned.units.axes

    def shape_of(name: str, t: Tensor) -> torch.Size:
        return torch.Size(planned.width(axes[name, d]) if (name, d) in axes else n for d, n in enumerate(t.shape))

    student = skeleton(model, shape_of)
    attributes.update(student)
    return student


def groups(model: nn.Module, example_inputs: Inputs) -> list[Group]:
    """What of `model` can be widened, what not, and why.

    Args:
        model: any module. It is not touched; copies with empty weights are run.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for its forward. Small ones
            suffice.

    Returns:
        Groups of units that must be widened together, in the order in which the forward meets them, as they turn out
        for a widening by a half. `print(group)` reads well, and `net2net.picture` draws them all.
    """
    half_more = Choices(1.5)
    chooser = Widths(None, None, half_more.factor, 1)

    def choose(found: Structure, whole: set[int]) -> list[Segment]:
        return _segments(found, chooser, whole, half_more)

    return _settle(model, example_inputs, choose).found.groups


def widen(
    model: nn.Module,
    example_inputs: Inputs,
    width: Width,
    layers: str | Sequence[str] | None = None,
    mapping: How = "random",
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


def _segments(
    found: Structure,
    chooser: Widths,
    whole: set[int],
    choices: Choices,
    layers: dict[str, np.ndarray] | None = None,
) -> list[Segment]:
    rng = np.random.default_rng(choices.seed)
    by_root = scores(found, layers) if layers is not None else None
    given = chooser.maps(found, whole)
    segments = []
    for s, (roots, width) in enumerate(zip(found.segments, chooser.widths(found, whole), strict=True)):
        mine = None if by_root is None else by_root[roots]
        how = mapping.WHOLE if s in whole else choices.how
        index = given[s] if s in given else mapping.make_map(len(roots), width, how, rng, mine)
        shares = mapping.make_split(index, "uniform" if found.even[s] else choices.split, rng)
        segments.append(Segment(len(roots), index, shares))
    return segments


def _computed(units: Units, axes: dict[tuple[str, int], AxisPlan]) -> list[Computed]:
    """The computed weights that grow."""
    return [how for how in units.computed() if any(name == how.weight for name, _ in axes)]


def _not_run(model: nn.Module, names: Sequence[str]) -> list[Skipped]:
    """The layers that have these parameters (or the parameters, where a layer has others)."""
    layers: dict[str, int] = {}
    for name in names:
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        idle = owner and {f"{owner}.{k}" for k, _ in module.named_parameters(recurse=False)} <= set(names)
        t = getattr(module, own)
        layers.setdefault(owner if idle else name, t.shape[0] if t.dim() else 1)
    why = "the example does not run it: what it would be given may be wider now"
    return [Skipped(list(layers), sum(layers.values()), why)] if layers else []


def _plan(model: nn.Module, settled: _Settled, choices: Choices) -> WidenPlan:
    found, segments, units = settled.found, settled.segments, settled.inference.units
    shares = Shares(units, found, segments)
    axes = {}
    for key, axis in units.axes.items():
        if settled.planned.width(axis) > axis.size:
            laid = settled.laid.get(key, settled.planned.canonical[key])
            axes[key] = AxisPlan(laid.index, shares.along(key, laid), "in" in axis.roles)
    widened = [
        Widened(g.layers, g.units, settled.planned.width(units.axes[g.axes[0]]))
        for g in found.groups
        if any(segments[s].width > segments[s].units for s in g.segments)
    ]
    skipped = [Skipped(g.layers, g.units, g.left_alone) for g in found.groups if g.left_alone]
    skipped += _not_run(model, settled.inference.not_run) if widened else []
    grown = {name for name, _ in axes}
    multipliers = sorted(units.multipliers & grown)
    return WidenPlan(
        Inventory.of(model, grown), skipped, widened, axes, settled.changes, settled.inference.places,
        _computed(units, axes), multipliers, choices.noise, choices.scale, choices.seed,
    )  # fmt: skip
