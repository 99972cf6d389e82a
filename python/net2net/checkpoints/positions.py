"""Which parameters an optimizer's state dict is of: it may know them by their names, or by their positions alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from net2net.checkpoints.architecture import architecture
from net2net.checkpoints.prefixes import common_prefix
from net2net.checkpoints.stored import Stored
from net2net.optimizer import LAWS
from net2net.plan import GrowthPlan
from net2net.skeleton import Tensors

#: A state dict: `state` by parameter, and `param_groups` with the parameters of each, as names or positions.
State = Mapping[str, Any]

#: So many ways to hand parameters out are kept in mind at a time; more are not told apart in reasonable time.
_MOST_WAYS = 20_000


#: How the parameters of an optimizer that knows them by position follow each other in each of its groups: as in
#: `model.parameters()`, or sorted by name; or the names themselves, group after group.
ORDERS = ("model", "names")
Order = str | Sequence[str]
#: The same for some of a checkpoint's optimizers, by their names in it; the others are left alone.
Orders = Order | Mapping[str, Order]


def check_order(order: Orders | None) -> None:
    """ValueError or TypeError if it is none."""
    if isinstance(order, Mapping):
        for each in order.values():
            check_order(each)
        return
    if order is None or order in ORDERS:
        return
    if isinstance(order, str):
        raise ValueError(f"order (={order!r}) must be {' or '.join(map(repr, ORDERS))}, or the names themselves")
    if not isinstance(order, Sequence) or not all(isinstance(name, str) for name in order):
        raise TypeError(f"order must be {' or '.join(map(repr, ORDERS))}, or a list of names, not {order!r:.80}")
    if len(set(order)) < len(order):
        twice = next(name for i, name in enumerate(order) if name in order[:i])
        raise ValueError(f"order has {twice!r} twice")


def has_names(given: State, where: str) -> bool:
    """Whether a state dict says which parameters it is of. ValueError if it does so for some of them."""
    groups = given["param_groups"]
    for group in groups:
        if "param_names" in group and len(group["param_names"]) != len(group["params"]):
            raise ValueError(
                f"{where} has a group of {len(group['params'])} params and {len(group['param_names'])} param_names"
            )
    return all(isinstance(p, str) for group in groups for p in group["params"]) or all(
        "param_names" in group for group in groups
    )


def names_of(
    plan: GrowthPlan, given: State, model: nn.Module | None, order: Order | None, where: str
) -> tuple[dict[Any, str], str]:
    """For each parameter of the groups its name in the plan; and what is before these names in the state dict.

    Positions are those of the parameters in the groups. What shapes the state has must tell which group has which of
    the parameters, in the given order. If none is given it is the model's; but then, of several groups, their shapes
    must not allow for the names' order as well.

    Raises:
        ValueError: parameters that the plan does not know, or positions of which this cannot be told.
    """
    groups = given["param_groups"]
    listed = [p for group in groups for p in group["params"]]
    if not has_names(given, where):
        names = _handed_out(plan, given, model, order, where)
    elif all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    else:
        names = list(listed)
    prefix = common_prefix(names, plan.inventory.aliases, plan.shapes) or ""
    own = (name.removeprefix(prefix) for name in names)
    found = dict(zip(listed, (plan.inventory.aliases.get(name, name) for name in own), strict=True))
    for name in found.values():
        if name not in plan.shapes:
            raise ValueError(f"{where} has {name}, which this plan does not know")
    if len(set(found.values())) < len(found):
        twice = next(name for name, count in Counter(found.values()).items() if count > 1)
        raise ValueError(f"{where} has {twice} twice (a tied weight has one state, by whichever of its names)")
    return found, prefix


def _handed_out(plan: GrowthPlan, given: State, model: nn.Module | None, order: Order | None, where: str) -> list[str]:
    """The names of the parameters at the positions 0, 1, ..., which count through all groups."""
    sizes = [len(group["params"]) for group in given["param_groups"]]
    listed = [p for group in given["param_groups"] for p in group["params"]]
    own = list(Tensors.of(model).by_name) if model is not None else list(plan.shapes)
    count = len({id(p) for p in model.parameters()}) if model is not None else plan.inventory.parameters
    by_list = order is not None and order not in ORDERS
    own = list(order or ()) if by_list else own[:count]
    if listed != list(range(len(listed))) or len(listed) != len(own):
        whose = "order" if by_list else "the model"
        raise ValueError(
            f"{where} knows {len(listed)} parameters by their positions, and {whose} has {len(own)}, so that nothing "
            f"says which: {_REMEDY}"
        )
    shapes = {int(p): _shapes(kept) for p, kept in given.get("state", {}).items()}
    states = [shapes.get(p, set()) for p in listed]
    if by_list:
        for name, seen in zip(own, states, strict=True):
            known = plan.shapes.get(plan.inventory.aliases.get(name, name))
            if known is not None and not seen <= {tuple(known)}:
                raise ValueError(f"{where} has state of shape {seen.pop()} where order has {name}, of shape {known}")
        return own
    ways: list[list[str]] = []
    # Of several groups, which may have been put together in whatever way, the shapes must tell more.
    for each in [order or "model", *(["names"] if order is None and len(sizes) > 1 else [])]:
        candidates = sorted(own) if each == "names" else own
        found = _ways(sizes, states, [plan.shapes[name] for name in candidates])
        if not found and each != "names":
            break
        ways += [names for way in found if (names := [candidates[i] for i in way]) not in ways]
    if len(ways) != 1:
        if ways:
            raise ambiguous(where, len(sizes))
        raise ValueError(
            f"{where} knows parameters by their positions, and the shapes of their states are not those of "
            f"{'sorted names' if order == 'names' else 'the model'} in that order: {_REMEDY}"
        )
    return ways[0]


_REMEDY = (
    "give order= (--order): 'model' or 'names' if each group has them in the order of model.parameters() or sorted by "
    "name, or else their names; or make the optimizer of model.named_parameters(), so that its state dict has them"
)


def ambiguous(where: str, groups: int) -> ValueError:
    """Nothing says which of its parameters are which."""
    return ValueError(
        f"{where} knows parameters by their positions in {groups} groups, and which these are cannot be told from the "
        f"shapes of their states: {_REMEDY}"
    )


def _shapes(kept: Mapping[str, Any]) -> set[tuple[int, ...]]:
    """Of a parameter's state; step counts apart."""
    return {
        value.shape for key, value in kept.items() if isinstance(value, Stored) and (value.shape or _of_elements(key))
    }


def _of_elements(key: str) -> bool:
    """Whether this state, of whatever optimizer, has its parameter's shape."""
    return any(key in laws for laws in LAWS.values())


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
    plan: GrowthPlan,
    student: dict[str, Any],
    model: nn.Module | None,
    prefix: str,
    order: Order | None,
    where: str,
) -> tuple[dict[str, Any], list[str]]:
    """The same with positions for names, and these names in their order. Groups that were in the given order are so
    again."""
    if order == "names":
        place: dict[str, Any] = {name: name for group in student["param_groups"] for name in group["params"]}
    elif plan._neighbours():
        if model is None:
            raise ValueError(
                f"{where} knows parameters by their positions, and the plan adds some: only the model knows where; "
                "give model= (on the meta device will do)"
            )
        place = {name: i for i, name in enumerate(Tensors.of(architecture(plan, model)).parameters)}
    else:
        place = {plan._renamed(name): i for i, name in enumerate(plan.shapes)}
    teachers = sorted(plan.shapes) if order == "names" else list(plan.shapes)
    before = {plan._renamed(name): i for i, name in enumerate(teachers)}
    groups = []
    number: dict[str, int] = {}
    for group in student["param_groups"]:
        names = group["params"]
        old = [before[name] for name in names if name in before]
        if old == sorted(old):
            names = sorted(names, key=place.__getitem__)
        number.update({name: len(number) + i for i, name in enumerate(names)})
        group = {**group, "params": [number[name] for name in names]}
        if "param_names" in group:
            group["param_names"] = [prefix + name for name in names]
        groups.append(group)
    state = {number[name]: kept for name, kept in student["state"].items()}
    return {**student, "state": dict(sorted(state.items())), "param_groups": groups}, list(number)
