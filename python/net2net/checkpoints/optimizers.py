"""A student's optimizer state as streams, from a state dict of the teacher's whose tensors lie in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from net2net import dynamics
from net2net.checkpoints.moving import Moved, check_movable
from net2net.checkpoints.positions import Order, State, ambiguous, by_position, has_names, names_of
from net2net.checkpoints.stored import Stored
from net2net.checkpoints.streams import Stream, unchanged
from net2net.launches import Entry
from net2net.optimizer import LAWS, MOMENTA, NORMALISED, check_state, mend
from net2net.plan import GrowthPlan

#: The optimizer's class, where a state dict says it.
CLASS = "class"


def kind_of(name: str) -> type[Optimizer]:
    """The class of an optimizer whose state has known laws. ValueError, by name, for others."""
    for known in LAWS:
        if known.__name__ == name:
            return known
    raise ValueError(f"optimizer (={name!r}) has no known laws; known are {', '.join(c.__name__ for c in LAWS)}")


def grown_optimizer(
    plan: GrowthPlan,
    given: State,
    kind: str | None,
    state: str,
    model: nn.Module | None,
    order: Order | None,
    where: str,
) -> tuple[dict[str, Any], list[str] | None]:
    """The student's state dict, with streams for tensors; and, if it knows parameters by their positions, their names
    in that order.

    Args:
        plan: of the growth.
        given: the teacher's.
        kind: the optimizer's class; None: as `given` says.
        state: what becomes of it, see `GrowthPlan.grow_optimizer`.
        model: the teacher's architecture, for positions; its values do not count.
        order: of its parameters, likewise (positions.py).
        where: what the state dict is called in errors.

    Raises:
        ValueError: an unknown optimizer, or state that does not fit the plan.
    """
    check_state(state)
    name = kind if kind is not None else given.get(CLASS)
    reset = state == "reset"
    if name is None and not reset:
        raise ValueError(f"{where} does not say of which optimizer it is: give optimizer=, such as 'AdamW'")
    if kind is not None and kind != given.get(CLASS, kind):
        raise ValueError(f"optimizer (={name!r}) contradicts {where}, which is of {given[CLASS]!r}")
    names, prefix = names_of(plan, given, model, order, where)
    groups: list[dict[str, Any]] = []
    for group in given["param_groups"]:
        if dynamics.KEY in group:
            raise ValueError(f"{where} keeps its teacher's dynamics, which only `grow_optimizer` carries along")
        # Learning rates may be tensors.
        options = {key: unchanged(value) if isinstance(value, Stored) else value for key, value in group.items()}
        groups.append({**options, "params": [names[p] for p in group["params"]]})
    group_of = {first: group for group in groups for first in group["params"]}
    states: dict[str, dict[str, Any]] = {}
    for place, kept in given.get("state", {}).items() if not reset else ():
        # DCP makes texts of positions.
        p = int(place) if place not in names and str(place).isdecimal() else place
        if p not in names:
            raise ValueError(f"{where} has state of {p}, which is in none of its groups")
        one = _Parameter(plan, names[p], kept, kind_of(str(name)), group_of[names[p]], state, where)
        states[plan._renamed(names[p])] = one.streams()
    _add_new(plan, groups, group_of)
    result = {**given, "state": states, "param_groups": groups}
    if any(not isinstance(p, str) for group in given["param_groups"] for p in group["params"]):
        positional = not has_names(given, where)
        done, numbered = by_position(plan, result, model, prefix, order, where)
        unsure = positional and order is None and len(groups) > 1 and _sorted_too(given, names)
        # New and renamed parameters may follow each other otherwise, where the teacher's did not.
        if unsure and by_position(plan, result, model, prefix, "names", where)[1] != numbered:
            raise ambiguous(where, len(groups))
        return done, numbered if positional else None
    for group in groups:
        group["params"] = [prefix + name for name in group["params"]]
    return {**result, "state": {prefix + name: kept for name, kept in states.items()}}, None


def _sorted_too(given: State, names: Mapping[Any, str]) -> bool:
    """Whether the groups may be sorted by name."""
    return all((own := [names[p] for p in group["params"]]) == sorted(own) for group in given["param_groups"])


class _Parameter:
    """The state of one parameter."""

    def __init__(
        self,
        plan: GrowthPlan,
        name: str,
        kept: Mapping[str, Any],
        kind: type[Optimizer],
        group: Mapping[str, Any],
        state: str,
        where: str,
    ) -> None:
        self.plan, self.name, self.kept, self.kind, self.group, self.state = plan, name, kept, kind, group, state
        self.moved: dict[str, Moved] = {}
        laws = LAWS[kind]
        for key, value in kept.items():
            if not isinstance(value, Stored) or (not value.shape and key not in laws):
                continue  # a step count
            if key not in laws or value.shape != plan.shapes[name]:
                raise ValueError(
                    f"{where} has state {key!r} of shape {value.shape} for {name}, whose law under growth is not known"
                )
            if check_movable(f"{where}: {key} of {name}", value, plan.student_shape(name)):
                self.moved[key] = Moved(plan, Entry(name, laws[key]), value, key)
        self.axes = plan._grown_axes(name)

    def streams(self) -> dict[str, Any]:
        result = {}
        for key, value in self.kept.items():
            if key in self.moved:
                result[key] = self._stream(key)
            else:
                result[key] = unchanged(value) if isinstance(value, Stored) else value
        return result

    def _stream(self, key: str) -> Stream:
        moved = self.moved[key]
        make = self._after(key, moved)
        if make is None:
            return moved.stream()

        def drop() -> None:
            for each in self.moved.values():
                each.drop()

        def release() -> None:
            for each in self.moved.values():
                each.stored.release()

        return replace(moved.stream(make), release=release, drop=drop)

    def _after(self, key: str, moved: Moved) -> Callable[[int, int], Tensor] | None:
        """What makes rows of it, if more has to be done than to move them."""
        units = [axis for axis in self.axes if not axis.split]
        mends = self.kind in NORMALISED and key == "momentum_buffer" and units
        resets = self.state == "replicas_reset" and key in MOMENTA and self.axes
        if not mends and not resets:
            return None

        def make(begin: int, end: int) -> Tensor:
            rows = moved.make(begin, end)
            if resets:
                for axis in self.axes:
                    copies = torch.bincount(axis.index)[axis.index]
                    rows.masked_fill_(self._along(moved, axis, copies > 1, begin, end), 0)
            if mends:
                dtype = torch.promote_types(rows.dtype, torch.float32)
                share: Tensor | float = 1.0
                for axis in units:
                    share = share * self._along(moved, axis, axis.share.to(dtype), begin, end)
                mean = self.moved["grad_avg"].make(begin, end) if self.group.get("centered") else None
                mend(self.kind, rows, self.moved["square_avg"].make(begin, end), mean, share, self.group["eps"])
            return rows

        return make

    def _along(self, moved: Moved, axis: dynamics.GrownAxis, values: Tensor, begin: int, end: int) -> Tensor:
        """Values of an axis, for these rows as the kernels see them, in a shape that is broadcast to theirs."""
        dims = len(moved.flat_shape)
        dim = 1 if moved.law.late else axis.dim
        return (values[begin:end] if dim == 0 else values).reshape([-1 if d == dim else 1 for d in range(dims)])


def _add_new(plan: GrowthPlan, groups: list[dict[str, Any]], group_of: dict[str, dict[str, Any]]) -> None:
    """Gives the groups the student's names, and new parameters a place beside their neighbours."""
    more: dict[int, list[str]] = {}
    for new, neighbours in plan._neighbours().items():
        near = next((group_of[name] for name in neighbours if name in group_of), None)
        if near is not None:
            more.setdefault(id(near), []).append(new)
    for group in groups:
        group["params"] = [plan._renamed(name) for name in group["params"]] + more.get(id(group), [])
