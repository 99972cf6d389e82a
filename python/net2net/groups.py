"""Groups of units that are decided together, and the segments that they are cut into.

From the units that a trace collected, this works out *groups* (units that are decided together) and cuts each into
*segments*: the longest runs of units that occur in every axis as a whole and in the same order. A segment is what gets
a map of its own. The axis of a parameter that makes units is a sequence of segments, each unit perhaps several
positions long (a head of attention, whose features are replicated as a whole).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import nn

from net2net import caches
from net2net.context import TraceError
from net2net.echo import repeats, tallied
from net2net.inference import Inference
from net2net.kept_numbers import contents
from net2net.remade import Assigned
from net2net.running import Inputs
from net2net.skeleton import aside, check_model, movable, named_tensors, skeleton
from net2net.tallies import changed, notes
from net2net.trace import OUTPUT, walk
from net2net.units import DisjointSets, Units


@dataclass(frozen=True)
class Piece:
    """A stretch of an axis: segment `segment`, each unit repeated `repeat` times; or, where `segment` is None, `repeat`
    positions that stay as they are."""

    segment: int | None
    repeat: int


@dataclass
class Group:
    """Units that are widened together.

    `layers` are the modules that produce them, `units` is the width of the first of them, `blocks` the number of what
    can be replicated: fewer, where several positions are replicated as a whole, as those of an attention head. `reason`
    says why the group cannot be widened, or is None; `partly` says why a part of it cannot; `output` tells that the
    reason is being the network's output, which is nobody's fault. `readers` are the weights that sum over these units,
    each as (tensor, axis): the layers that the units flow into.
    """

    layers: list[str]
    units: int
    reason: str | None = None
    segments: list[int] = field(default_factory=list)  # indices into Structure.segments
    axes: list[tuple[str, int]] = field(default_factory=list)  # what produces them, one per layer; none: not known
    blocks: int = 0
    partly: str | None = None
    readers: list[tuple[str, int]] = field(default_factory=list)

    @property
    def output(self) -> bool:
        return self.reason is not None and self.reason.startswith(OUTPUT)

    @property
    def left_alone(self) -> str | None:
        """Why the group, or a part of it, stays as it is; None: nothing does, or it is the network's output."""
        return None if self.output else self.reason or self.partly

    @property
    def name(self) -> str:
        return self.layers[0]

    def __str__(self) -> str:
        more = f" (+{len(self.layers) - 1} more)" if len(self.layers) > 1 else ""
        state = self.reason or "can be widened" + (f", but {self.partly}" if self.partly else "")
        return f"{self.name}{more}: {self.units} units, {state}"


@dataclass
class Structure:
    """A model's groups, segments and axes, as inferred.

    `segments[s]` holds the units of segment s (roots, in order); `pieces[name, dim]` says how an axis is made of them,
    if it is; `root_of[name, dim]` gives the unit of each position of an axis, for every axis that was seen; `even[s]`
    tells whether the replicas of segment s must have equal shares.
    """

    groups: list[Group]
    segments: list[np.ndarray]
    pieces: dict[tuple[str, int], tuple[Piece, ...]]
    root_of: dict[tuple[str, int], np.ndarray]
    even: list[bool]


def infer(model: nn.Module, example_inputs: Inputs, alike: bool = True) -> Inference:
    """Traces a copy of `model`, and returns what was found. `model` is not touched.

    Args:
        alike: whether a model that does in train mode what it does in eval mode is walked in eval mode alone.
    """
    check_model(model)
    context = _collect(model, example_inputs, alike)
    remade: Assigned | None = None
    for name, t in named_tensors(model):
        axes = [context.units.axes.get((name, dim)) for dim in range(t.dim())]
        # (Those without a role were of an earlier walk.)
        grown = [dim for dim, axis in enumerate(axes) if axis is not None and axis.roles]
        reason = None
        if not movable(t):
            reason = f"{name} ({t.dtype}, {t.dim()}-D) is not of a kind that the kernels move"
        elif any(dim > 1 for dim in grown) and len(grown) > 1:
            reason = f"{name} has units along its axes {', '.join(map(str, grown))}"
        elif grown and not isinstance(t, nn.Parameter) and name not in context.reassigned and _of_a_user(model, name):
            remade = Assigned(model) if remade is None else remade
            *modules, last = name.split(".")
            if last in remade or not remade.names.isdisjoint(modules):
                reason = f"code may make {name} anew, for another input, of sizes that have grown"
        for dim in grown if reason else []:
            context.units.pin(context.units.axes[name, dim].ids(), str(reason))
    _pin_unread(context.units)
    return context


def _of_a_user(model: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to a module that is not one of torch's own."""
    kind = type(model.get_submodule(name.rpartition(".")[0]))
    return kind is nn.Module or not kind.__module__.startswith("torch.")


def _pin_unread(units: Units) -> None:
    """What is made and then not used may be what the network returns for other inputs (an early exit)."""
    read = units.were_read()
    for (name, _dim), axis in units.axes.items():
        if "out" in axis.roles:
            ids = axis.ids()
            units.pin(ids[~read[units.blocks.roots(ids)]], f"nothing that was run reads what {layer_of(name)} makes")


#: How often a teacher is walked until nothing would be decided otherwise than it was.
_WALKS = 16


def _collect(model: nn.Module, example_inputs: Inputs, alike: bool) -> Inference:
    try:
        return _settled(model, example_inputs, True, alike)
    except TraceError as error:
        try:
            return _settled(model, example_inputs, False, alike)
        except TraceError:
            raise ValueError(f"the model does not run on example_inputs: {error}") from error


def _settled(model: nn.Module, example_inputs: Inputs, whole: bool, alike: bool) -> Inference:
    """Raises TraceError if the model does not run; it may be since selections are taken as a `whole`."""
    units, places = Units(), caches.find(model, example_inputs)
    for _ in range(_WALKS):
        # What rules decide by what is joined already must be decided in the light of what is joined later, as it will
        # be for students. Each time with a fresh copy, as theirs will be: code may keep what it made in its first run.
        copy = _empty(model)
        units.start_over()
        context = Inference(copy, units, places)
        context.whole = whole
        if _walk_all(copy, example_inputs, context, alike):
            context.tallies = _steady(*(tallied(_empty(model), example_inputs, context.modes) for _ in range(2)))
        if context.settled():
            break
    return context


def _steady(once: list[dict[str, str]], again: list[dict[str, str]]) -> list[dict[str, str | None]]:
    """What was noted down, twice; None for what is another each time (how long it took)."""
    names = [{*a, *b} for a, b in zip(once, again, strict=True)]
    return [
        {name: a.get(name) if a.get(name) == b.get(name) else None for name in sorted(every)}
        for every, a, b in zip(names, once, again, strict=True)
    ]


def _empty(model: nn.Module) -> nn.Module:
    """A copy without weights."""
    return skeleton(model, lambda _name, t: t.shape)


def _walk_all(copy: nn.Module, example_inputs: Inputs, context: Inference, alike: bool) -> bool:
    """Walks a copy in eval mode and, if that is not found to do the same, in train mode; and where a forward leaves
    something for the next one, this one too. Returns whether it notes something down."""
    before, noted = contents(copy), notes(copy)

    def hands_on(of: nn.Module = copy) -> bool:
        return bool(context.handed_on) or notes(of) != noted

    trail = walk(copy, example_inputs, context, training=False)
    if not context.settled():
        return False
    other = aside(copy)
    if alike:
        context.left_out = repeats(other, example_inputs, trail, context.reassigned)
    if hands_on() or hands_on(other):
        context.left_out = None
        walk(copy, example_inputs, context, training=False)
    # In train mode a network may have parts of its own (auxiliary heads). Not every input will do for it: batch
    # normalisation refuses a single value per channel, for example.
    if context.left_out is None:
        try:
            walk(copy, example_inputs, context, training=True)
            if hands_on():
                walk(copy, example_inputs, context, training=True)
                walk(copy, example_inputs, context, training=False)
        except TraceError:
            context.outputs = []
    context.written, context.not_run = contents(copy) != before, context.idle(copy)
    return any(changed(noted, notes(each)) for each in (copy, other))


def structure(units: Units) -> Structure:
    """Works out groups and segments. Units pinned since the last call are honoured."""
    units.flatten()
    _pin_contradictions(units)
    pinned = units.pinned()
    root_of = {key: units.blocks.roots(axis.ids()) for key, axis in units.axes.items()}
    together = DisjointSets(len(units))
    for key, axis in units.axes.items():
        if "out" in axis.roles and axis.size > 1:
            together.join(root_of[key][1:], np.broadcast_to(root_of[key][:1], axis.size - 1))
    together.flatten()
    free = _free_roots(units, root_of, together, pinned)
    heads = np.zeros(len(units), dtype=bool)
    heads[units.blocks.roots(units.heads())] = True
    # Most axes have the units of others (a norm's, say), which are looked at once.
    content: dict[tuple[str, int], bytes] = {}
    runs: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    for key, roots in root_of.items():
        places = units.places.roots(units.axes[key].ids())
        content[key] = roots.tobytes() + places.tobytes()
        if content[key] not in runs:
            runs[content[key]] = _runs(roots, places, heads)
    segments = _segments(list(runs.values()), together, free)
    segment_of = {int(root): s for s, roots in enumerate(segments) for root in roots[:1]}
    parsed = {of: _parse(order, lengths, free, segments, segment_of) for of, (order, lengths) in runs.items()}
    pieces = {key: parsed[of] for key, of in content.items() if any(p.segment is not None for p in parsed[of])}
    groups = _groups(units, root_of, together, pinned, segments, pieces)
    evened = set(units.evened().tolist())
    return Structure(groups, segments, pieces, root_of, [not evened.isdisjoint(s.tolist()) for s in segments])


def _pin_contradictions(units: Units) -> None:
    """An axis whose weights would have to be both divided among replicas and not (tied, transposed weights) stays."""
    for name, dim in units.values:
        for other in range(5):
            axis = units.axes.get((name, other))
            if other != dim and axis is not None and axis.roles:
                units.pin(axis.ids(), f"the values of {name} are used beside the layer that it belongs to")
    for name in units.looked_up:
        if (rows := units.axes.get((name, 0))) is not None:
            units.pin(rows.ids(), f"rows of {name} are looked up by their number")
    for (name, _dim), axis in units.axes.items():
        if "in" in axis.roles and len(axis.roles) > 1 and not units.hand_over(axis):
            units.pin(axis.ids(), f"{name} is used both as a consumer and as a producer of the same units")


def _free_roots(
    units: Units, root_of: dict[tuple[str, int], np.ndarray], together: DisjointSets, pinned: dict[int, str]
) -> np.ndarray:
    """bool per id: it is the root of a unit that some layer produces and that nothing pins."""
    produced = np.zeros(len(units), dtype=bool)
    for key, axis in units.axes.items():
        if "out" in axis.roles:
            produced[root_of[key]] = True
    produced[np.array(sorted(pinned), dtype=np.int64)] = False
    return produced


def _runs(roots: np.ndarray, places: np.ndarray, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The units along an axis in order, and how many positions each has there. A unit begins anew where its first place
    comes again (a block that stands there twice, side by side). Not so within one of several heads of attention, whose
    features a rotary embedding may have joined; a single one may well stand beside itself, as queries and keys."""
    change = np.diff(roots, prepend=-1) != 0
    first = places[change][np.cumsum(change) - 1]
    again = (places == first) & (np.concatenate([first[:1], places[:-1]]) != first)
    head = heads[roots]
    if head.any() and np.ptp(roots[head]):
        again &= ~head
    starts = np.flatnonzero(change | again)
    return roots[starts], np.diff(starts, append=len(roots))


def _segments(runs: list[tuple[np.ndarray, np.ndarray]], together: DisjointSets, free: np.ndarray) -> list[np.ndarray]:
    """Chains of units in which each is always followed by the next one, in every axis, and the next always preceded by
    it."""
    end = len(free)  # stands for "nothing that may be in the same segment"
    if not runs:
        return []
    order, lengths = (np.concatenate(of_all) for of_all in zip(*runs, strict=True))
    same = free[order[:-1]] & free[order[1:]] & (lengths[:-1] == lengths[1:])
    same[np.cumsum([len(of_one) for of_one, _ in runs])[:-1] - 1] = False  # the next is of another axis
    group = together.roots(order)
    same &= group[:-1] == group[1:]
    after = np.append(np.where(same, order[1:], end), end)
    before = np.append(end, np.where(same, order[:-1], end))
    links = np.stack([order, before, after], 1)[free[order]]
    units, first_seen, number = np.unique(links[:, 0], return_index=True, return_inverse=True)
    # From here on, units are numbers in the order in which they are met first; `none` stands for `end`.
    met, none = np.argsort(first_seen), len(units)
    if not none:
        return []
    number_of = np.full(end + 1, none)
    number_of[units[met]] = np.arange(none)
    following = number_of[_only(number, links[:, 2], end)[met]]
    preceding = np.append(number_of[_only(number, links[:, 1], end)[met]], none)
    follows = np.where(preceding[following] == np.arange(none), following, none)
    # Nearly all follow those that they are met after, so whole runs of them are taken at once.
    starts = np.flatnonzero(np.append(True, follows[:-1] != np.arange(1, none)))
    parts = np.split(units[met], starts[1:])
    part_at = dict(zip(starts.tolist(), parts, strict=True))
    next_at = dict(zip(starts.tolist(), follows[[*(starts[1:] - 1), none - 1]].tolist(), strict=True))
    segments = []
    for start in sorted(next_at.keys() - set(next_at.values())):
        chain = [start]
        while next_at[chain[-1]] != none:
            chain.append(next_at[chain[-1]])
        segments.append(np.concatenate([part_at[at] for at in chain]))
    return segments


def _only(number: np.ndarray, neighbour: np.ndarray, end: int) -> np.ndarray:
    """For each of the units 0, 1, ... its neighbour, if it has the same one everywhere; else `end`."""
    count = int(number.max(initial=-1)) + 1
    least, most = np.full(count, end), np.full(count, -1)
    np.minimum.at(least, number, neighbour)
    np.maximum.at(most, number, neighbour)
    return np.where(least == most, least, end)


def _parse(
    order: np.ndarray, lengths: np.ndarray, free: np.ndarray, segments: list[np.ndarray], segment_of: dict[int, int]
) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    at = 0
    while at < len(order):
        root, repeat = int(order[at]), int(lengths[at])
        if not free[root]:
            if pieces and pieces[-1].segment is None:
                pieces[-1] = Piece(None, pieces[-1].repeat + repeat)
            else:
                pieces.append(Piece(None, repeat))
            at += 1
            continue
        segment = segment_of[root]
        at += len(segments[segment])
        pieces.append(Piece(segment, repeat))
    return tuple(pieces)


def _groups(
    units: Units,
    root_of: dict[tuple[str, int], np.ndarray],
    together: DisjointSets,
    pinned: dict[int, str],
    segments: list[np.ndarray],
    pieces: dict[tuple[str, int], tuple[Piece, ...]],
) -> list[Group]:
    reasons: dict[int, str] = {}
    for root, reason in pinned.items():
        at = int(together.roots(np.array([root]))[0])
        # Being an output is the better explanation where there are several: it is by design.
        if at not in reasons or reason.startswith(OUTPUT):
            reasons[at] = reason
    found: dict[int, Group] = {}
    members: dict[int, set[int]] = {}
    for key, axis in units.axes.items():
        if "out" not in axis.roles or axis.size == 0:
            continue
        at = int(together.roots(root_of[key][:1])[0])
        group = found.setdefault(at, Group([], 0, reasons.get(at)))
        group.layers.append(layer_of(key[0]))
        group.axes.append(key)
        members.setdefault(at, set()).update(root_of[key].tolist())
    for key, axis in units.axes.items():
        if "in" in axis.roles:
            for at in np.unique(together.roots(root_of[key])).tolist():
                if at in found:
                    found[at].readers.append(key)
    for at, group in found.items():
        group.units = len(root_of[group.axes[0]])
        group.blocks = len(members[at])
    for s, roots in enumerate(segments):
        found[int(together.roots(roots[:1])[0])].segments.append(s)
    for group in found.values():
        if group.segments and group.reason is not None:
            # The units that can be widened may all be of other layers.
            first = pieces.get(group.axes[0], (Piece(None, group.units),))
            fixed = sum(p.repeat for p in first if p.segment is None)
            group.partly = None if group.output else f"{fixed} of {group.units} units stay: {group.reason}"
            group.reason = None
    layers = {layer for group in found.values() for layer in group.layers}
    others = [Group([layer], n, why, blocks=n) for layer, (n, why) in units.unknown.items() if layer not in layers]
    return [*found.values(), *others]


def layer_of(tensor: str) -> str:
    """The module that a parameter belongs to; of the model's own parameters the name."""
    if ".parametrizations." in tensor:
        return tensor.partition(".parametrizations.")[0]
    return tensor.rpartition(".")[0] or tensor
