"""changes: numbers that modules of a user's own keep in attributes, and what they become in a student."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from net2net.kept_numbers import by_name, can_change, holder_of, kept, put
from net2net.plan_parts import module_of

#: Modules of torch that keep a width which no weight of theirs tells.
_ALSO = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.Unflatten)


@dataclass(frozen=True)
class Change:
    """An attribute of a module, and what it becomes."""

    module: str
    name: str
    before: Any
    after: Any

    def check(self, module: nn.Module) -> None:
        """ValueError unless the attribute of `module` is what it was, or (of torch's own) already what it becomes: a
        plan may come from a file, and be applied to another architecture of the same shapes. Nor may what torch's own
        modules know be changed (a stride, say): no plan does that."""
        if not of_users(module):
            raise ValueError(
                f"model is another than the plan was made for: {self} is of torch's {type(module).__name__}"
            )
        numbers = kept(module)
        found = numbers.get(self.name)
        if found is None or tuple(_listed(found)) not in (tuple(_listed(self.before)), tuple(_listed(self.after))):
            held = numbers.get(self.name, vars(module).get(self.name, "nothing"))
            raise ValueError(f"model is another than the plan was made for: it has {held!r} where the plan says {self}")

    def of_record(self) -> bool:
        """Whether it is of a number in a record that the attribute holds."""
        return "." in self.name and not by_name(self.name)

    def __str__(self) -> str:
        between = "." if self.module and not by_name(self.name) else ""
        return f"{self.module}{between}{self.name}: {self.before} -> {self.after}"


class Changes:
    """Those that are made one after the other."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], Change] = {}

    def add(self, changes: Iterable[Change]) -> None:
        for change in changes:
            key = change.module, change.name
            before = self._of[key].before if key in self._of else change.before
            self._of[key] = replace(change, before=before)

    def all(self) -> list[Change]:
        """One of each attribute, from what it was at first to what it is in the end."""
        return [change for change in self._of.values() if change.before != change.after]


#: A change, and the module that it is of.
Edit = tuple[nn.Module, Change]


def make(student: nn.Module, changes: Sequence[Change]) -> list[Any]:
    """Makes them for good. A number of a record changes for all that hold it, if it does for all whose code names it;
    else those that have the change get copies.

    Returns:
        The records of which there are copies now.

    Raises:
        ValueError: `student` does not have what is to change.
    """
    modules = [module_of(student, change.module) for change in changes]
    for change, module in zip(changes, modules, strict=True):
        change.check(module)
    places = [holder_of(module, change.name) for change, module in zip(changes, modules, strict=True)]
    readers = _readers(student) if any(holder is not None for holder, _ in places) else {}
    for_some: list[int] = []
    for i, ((holder, field), change) in enumerate(zip(places, changes, strict=True)):
        alike = {
            id(module)
            for place, module, other in zip(places, modules, changes, strict=True)
            if place[0] is holder and place[1] == field and _listed(other.after) == _listed(change.after)
        }
        if holder is None or alike != readers[id(holder), field] or not can_change(holder):
            for_some.append(i)
        else:
            vars(holder)[field] = _as_it_was(change.after, getattr(holder, field))  # (It may be frozen.)
    for i in for_some:
        put(modules[i], changes[i].name, _as_it_was(changes[i].after, kept(modules[i])[changes[i].name]))
    return [places[i][0] for i in for_some if places[i][0] is not None]


def _as_it_was(after: Any, before: Any) -> Any:
    """A plan from a file has tuples for lists."""
    return list(after) if isinstance(before, list) else after


def _readers(model: nn.Module) -> dict[tuple[int, str], set[int]]:
    """The modules whose code names a number of a record, by the record's address and the number's name."""
    found: dict[tuple[int, str], set[int]] = {}
    for module in model.modules():
        for name in kept(module):
            holder, field = holder_of(module, name)
            if holder is not None:
                found.setdefault((id(holder), field), set()).add(id(module))
    return found


def put_in(edits: list[Edit]) -> None:
    for owner, change in edits:
        put(owner, change.name, change.after)


def take_back(edits: list[Edit]) -> None:
    for owner, change in reversed(edits):
        put(owner, change.name, change.before)


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [value]


def of_users(module: nn.Module) -> bool:
    """Whether a module's attributes may be changed: torch's own modules know what they are about. (A user's class that
    FSDP has made one of its own of is still the user's.)"""
    kinds = itertools.takewhile(lambda kind: kind is not nn.Module, type(module).__mro__)
    return isinstance(module, _ALSO) or not all(kind.__module__.startswith("torch.") for kind in kinds)


def children(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Those of a user's own, also in torch's lists and sequences."""
    for child, m in module.named_children():
        path = f"{name}.{child}" if name else child
        if of_users(m):
            yield path, m
        elif isinstance(m, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            yield from children(m, path)
