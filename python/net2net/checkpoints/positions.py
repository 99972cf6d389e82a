"""Which parameters an optimizer's state dict is of: it may know them by their names, or by their positions alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from net2net.checkpoints.architecture import architecture
from net2net.checkpoints.prefixes import common_prefix
from net2net.checkpoints.stored import Stored
from net2net.plan import GrowthPlan
from net2net.skeleton import Tensors

#: A state dict: `state` by parameter, and `param_groups` with the parameters of each, as names or positions.
State = Mapping[str, Any]

#: So many ways to hand parameters out are kept in mind at a time; more are not told apart in reasonable time.
_MOST_WAYS = 20_000


def names_of(plan: GrowthPlan, given: State, model: nn.Module | None, where: str) -> tuple[dict[Any, str], str]:
    """For each parameter of the groups its name in the plan; and what is before these names in the state dict.

    Positions are those of the parameters in the groups. Each group is taken to have its parameters in the model's order
    (`model.parameters()`, or those of them that meet a condition, as weights with and without decay): what shapes the
    state has must then tell which group has which.

    Raises:
        ValueError: parameters that the plan does not know, or positions of which this cannot be told.
    """
    groups = given["param_groups"]
    listed = [p for group in groups for p in group["params"]]
    prefix = ""
    if all(isinstance(p, str) for p in listed):
        names = list(listed)
    elif all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    else:
        names = _handed_out(plan, given, model, where)
    prefix = common_prefix(names, plan.inventory.aliases, plan.shapes) or ""
    own = (name.removeprefix(prefix) for name in names)
    found = dict(zip(listed, (plan.inventory.aliases.get(name, name) for name in own), strict=True))
    for name in found.values():
        if name not in plan.shapes:
            raise ValueError(f"{where} has {name}, which this plan does not know")
    return found, prefix


def _handed_out(plan: GrowthPlan, given: State, model: nn.Module | None, where: str) -> list[str]:
    """The names of the parameters at the positions 0, 1, ..., which count through all groups."""
    sizes = [len(group["params"]) for group in given["param_groups"]]
    listed = [p for group in given["param_groups"] for p in group["params"]]
    own = list(Tensors.of(model).by_name) if model is not None else list(plan.shapes)
    count = len({id(p) for p in model.parameters()}) if model is not None else plan.inventory.parameters
    remedy = "make the optimizer of model.named_parameters(), so that its state dict has names"
    if listed != list(range(len(listed))) or len(listed) != count:
        raise ValueError(
            f"{where} knows {len(listed)} parameters by their positions, and the model has {count}, so that nothing "
            f"says which: {remedy}"
        )
    shapes = {int(p): _shapes(kept) for p, kept in given.get("state", {}).items()}
    ways = _ways(sizes, [shapes.get(p, set()) for p in listed], [plan.shapes[name] for name in own[:count]])
    if len(ways) != 1:
        how = "cannot be told from" if ways else "are not the model's by"
        raise ValueError(
            f"{where} knows parameters by their positions in {len(sizes)} groups, and which these are {how} the shapes "
            f"of their states: {remedy}"
        )
    return [own[i] for i in ways[0]]


def _shapes(kept: Mapping[str, Any]) -> set[tuple[int, ...]]:
    """Of a parameter's state; step counts apart."""
    return {value.shape for value in kept.values() if isinstance(value, Stored) and value.shape}


def _ways(
    sizes: Sequence[int], states: Sequence[set[tuple[int, ...]]], shapes: Sequence[tuple[int, ...]]
) -> list[list[int]]:
    """The ways in which parameters of these shapes, in order, can be handed out to groups of these sizes, so that each
    gets them in order and those with the shapes of its states (which go through the groups, one after the other).

    Returns:
        For each way, the parameters of the first group, then of the second, and so on. At most two ways, which are
        enough to know that there are several.
    """
    starts = [sum(sizes[:g]) for g in range(len(sizes))]
    # How many each group has got -> the ways (at most two) to come to that: the groups that have got them in turn.
    reached: dict[tuple[int, ...], list[tuple[Any, ...]]] = {(0,) * len(sizes): [()]}
    for shape in shapes:
        after: dict[tuple[int, ...], list[tuple[Any, ...]]] = {}
        for got, ways in reached.items():
            for g, n in enumerate(got):
                if n < sizes[g] and states[starts[g] + n] <= {tuple(shape)}:
                    now = (*got[:g], n + 1, *got[g + 1 :])
                    # A way is a chain of its steps, the last one first.
                    after[now] = [*after.get(now, []), *((g, way) for way in ways)][:2]
        if len(after) > _MOST_WAYS:
            return [[], []]
        reached = after
    return [_unrolled(way, starts, len(shapes)) for way in reached.get(tuple(sizes), [])]


def _unrolled(way: tuple[Any, ...], starts: Sequence[int], count: int) -> list[int]:
    taken = []
    while way:
        g, way = way
        taken.append(g)
    at, order = list(starts), [0] * count
    for parameter, g in enumerate(reversed(taken)):
        order[at[g]] = parameter
        at[g] += 1
    return order


def by_position(
    plan: GrowthPlan, student: dict[str, Any], model: nn.Module | None, prefix: str, where: str
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
            group["param_names"] = [prefix + name for name in names]
        groups.append(group)
    state = {number[name]: kept for name, kept in student["state"].items()}
    return {**student, "state": dict(sorted(state.items())), "param_groups": groups}
