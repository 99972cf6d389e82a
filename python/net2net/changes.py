"""changes: numbers that modules of a user's own keep in attributes, and what they become in a student."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from net2net.kept_numbers import by_name, kept, put

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

    def __str__(self) -> str:
        between = "." if self.module and not by_name(self.name) else ""
        return f"{self.module}{between}{self.name}: {self.before} -> {self.after}"


#: A change, and the module that it is of.
Edit = tuple[nn.Module, Change]


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
