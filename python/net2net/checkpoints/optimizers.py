"""A student's optimizer state as streams, from a state dict of the teacher's whose tensors lie in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from net2net import dynamics
from net2net.checkpoints.architecture import architecture
from net2net.checkpoints.moving import Moved, check_movable
from net2net.checkpoints.stored import Stored
from net2net.checkpoints.streams import Stream, unchanged
from net2net.launches import Entry
from net2net.optimizer import LAWS, MOMENTA, NORMALISED, check_state, mend
from net2net.plan import GrowthPlan
from net2net.skeleton import Tensors

#: A state dict: `state` by parameter, and `param_groups` with the parameters of each, as names or positions.
State = Mapping[str, Any]

#: The optimizer's class, where a state dict says it.
CLASS = "class"


def kind_of(name: str) -> type[Optimizer]:
    """The class of an optimizer whose state has known laws. ValueError, by name, for others."""
    for known in LAWS:
        if known.__name__ == name:
            return known
    raise ValueError(f"optimizer (={name!r}) has no known laws; known are {', '.join(c.__name__ for c in LAWS)}")


def grown_optimizer(
    plan: GrowthPlan, given: State, kind: str | None, state: str, model: nn.Module | None, where: str
) -> dict[str, Any]:
    """The student's state dict, with streams for tensors.

    Args:
        plan: of the growth.
        given: the teacher's.
        kind: the optimizer's class; None: as `given` says.
        state: what becomes of it, see `GrowthPlan.grow_optimizer`.
        model: the teacher's architecture, for positions; its values do not count.
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
    names = _names(plan, given, model, where)
    groups = []
    for group in given["param_groups"]:
        if dynamics.KEY in group:
            raise ValueError(f"{where} keeps its teacher's dynamics, which only `grow_optimizer` carries along")
        groups.append({**group, "params": [names[p] for p in group["params"]]})
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
    positional = any(not isinstance(p, str) for group in given["param_groups"] for p in group["params"])
    result = {**given, "state": states, "param_groups": groups}
    return _by_position(plan, result, given, model, where) if positional else result


def _names(plan: GrowthPlan, given: State, model: nn.Module | None, where: str) -> dict[Any, str]:
    """For each parameter of the groups its name in the plan."""
    groups = given["param_groups"]
    listed = [p for group in groups for p in group["params"]]
    if all(isinstance(p, str) for p in listed):
        names = list(listed)
    elif all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    else:
        own = list(Tensors.of(model).by_name) if model is not None else list(plan.shapes)
        count = len({id(p) for p in model.parameters()}) if model is not None else plan.inventory.parameters
        if len(groups) > 1 or listed != list(range(len(listed))) or len(listed) != count:
            raise ValueError(
                f"{where} knows parameters by their positions, and they are not those of the model in its order "
                f"({len(listed)} in {len(groups)} groups): make the optimizer of model.named_parameters(), so that its "
                "state dict has names"
            )
        names = own[: len(listed)]
    found = dict(zip(listed, (plan.inventory.aliases.get(name, name) for name in names), strict=True))
    for name in found.values():
        if name not in plan.shapes:
            raise ValueError(f"{where} has {name}, which this plan does not know")
    return found


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
            if not isinstance(value, Stored) or not value.shape:
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


def _by_position(
    plan: GrowthPlan, student: dict[str, Any], given: State, model: nn.Module | None, where: str
) -> dict[str, Any]:
    """The same with positions for names; groups that were in the model's order are so again."""
    if plan._neighbours():
        if model is None:
            raise ValueError(
                f"{where} knows parameters by their positions, and the plan adds some: only the model knows where; "
                "give model= (on the meta device will do)"
            )
        order = {name: i for i, name in enumerate(Tensors.of(architecture(plan, model)).parameters)}
    else:
        order = {plan._renamed(name): i for i, name in enumerate(plan.shapes)}
    before = {plan._renamed(name): i for i, name in enumerate(plan.shapes)}
    groups = []
    number: dict[str, int] = {}
    for group in student["param_groups"]:
        names = group["params"]
        old = [before[name] for name in names if name in before]
        if old == sorted(old):
            names = sorted(names, key=order.__getitem__)
        number.update({name: len(number) + i for i, name in enumerate(names)})
        group = {**group, "params": [number[name] for name in names]}
        if "param_names" in group:
            group["param_names"] = names
        groups.append(group)
    state = {number[name]: kept for name, kept in student["state"].items()}
    return {**student, "state": dict(sorted(state.items())), "param_groups": groups}
