"""A student's state dict as streams, from that of a teacher that lies in files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from net2net.checkpoints.moving import Moved, check_movable
from net2net.checkpoints.stored import Stored
from net2net.checkpoints.streams import Stream, known, unchanged, zeros
from net2net.launches import Entry
from net2net.plan import GrowthPlan
from net2net.plan_parts import Fresh


def grown_weights(plan: GrowthPlan, stored: Mapping[str, Stored]) -> dict[str, Stream]:
    """The streams of the student's state dict; what there is in the teacher's comes first, in its order.

    Each name that the teacher has is there, be it another one of a tied weight.

    Raises:
        ValueError: if keys or shapes do not fit the plan, or a tensor that is to grow has a dtype that cannot.
    """
    plan.inventory.check_state_dict({name: s.meta() for name, s in stored.items()})
    student = {}
    for name, s in stored.items():
        first = plan.inventory.aliases.get(name, name)
        moves = check_movable(name, s, plan.student_shape(first))
        student[plan._renamed(name)] = (
            _crossed(plan, Moved(plan, Entry(first, None), s), first) if moves else unchanged(s)
        )
    for name, needed in plan._mended().items():
        parts = {n: student[_any_name(plan, n, stored)] for n in needed}
        for key in stored:
            if plan.inventory.aliases.get(key, key) == name:
                student[key] = _mended(plan, name, parts)
    everything = dict(stored)  # with all names of tied weights, of which a file may have one alone
    for name, first in plan.inventory.aliases.items():
        if (known_as := name if name in stored else first) in stored:
            everything |= {name: stored[known_as], first: stored[known_as]}
    for name, copied in plan._copies(everything).items():
        again = (zeros if copied.zero else unchanged)(everything[copied.of])
        student[name] = replace(again, tied=None)  # alike today, and another one tomorrow
    together = _Together()
    for fresh in plan._fresh({name: torch.empty((), dtype=s.dtype) for name, s in stored.items()}):
        for name, like in fresh.like.items():
            student[name] = together.stream(fresh, name, like)
    return student


def _crossed(plan: GrowthPlan, moved: Moved, name: str) -> Stream:
    """With the noise along its first axis, if there is any: which takes the whole tensor."""
    stream = moved.stream()
    if (scale := plan._crossing_noise_of(name)) == 0:
        return stream

    def make() -> Tensor:
        std = moved.std(scale)
        whole = stream.whole()
        plan._cross_part(name, float(std), whole)
        return whole

    return _at_once(stream, make)


def _at_once(like: Stream, make: Callable[[], Tensor]) -> Stream:
    """A tensor that is made as a whole, when it is first wanted."""
    flat: list[Tensor] = []

    def piece(begin: int, end: int) -> Tensor:
        if not flat:
            flat.append(make().view(-1))
        return flat[0][begin:end]

    return Stream(like.dtype, like.shape, math.prod(like.shape), piece, drop=flat.clear, tied=like.tied)


def _any_name(plan: GrowthPlan, name: str, stored: Mapping[str, Stored]) -> str:
    """Under which a tensor is stored."""
    return name if name in stored else next(k for k, first in plan.inventory.aliases.items() if first == name)


def _mended(plan: GrowthPlan, name: str, parts: dict[str, Stream]) -> Stream:
    """A tensor that others must be known for, all of them as wholes."""

    def make() -> Tensor:
        tensors = {part: stream.whole() for part, stream in parts.items()}
        plan._mend(tensors)
        return tensors[name]

    return _at_once(parts[name], make)


class _Together:
    """Tensors that are made together: the last ones are kept, until others are wanted."""

    def __init__(self) -> None:
        self._of: Fresh | None = None
        self._made: dict[str, Stream] = {}

    def stream(self, fresh: Fresh, name: str, like: Tensor) -> Stream:
        return Stream(like.dtype, tuple(like.shape), like.numel(), partial(self._make, fresh, name))

    def _make(self, fresh: Fresh, name: str, begin: int, end: int) -> Tensor:
        if self._of is not fresh:
            self._made.clear()
            self._made = {key: known(t) for key, t in fresh.make().items()}
            self._of = fresh
        return self._made[name].make(begin, end)
