"""kept_numbers: the whole numbers that a module keeps beside its parameters, by name, and how they are changed.

An attribute may be a number, a tuple or list of numbers, or have numbers by name: a dict, or pairs of a name and a
number (einops' layers keep the lengths of axes in both). All numbers of one name are one number then, called
`['heads']`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from net2net.outputs import OWN


def kept(module: nn.Module) -> dict[str, Any]:
    """Name -> a positive number, or a tuple or list of such."""
    found: dict[str, Any] = {}
    named: dict[str, set[int]] = {}
    for name, value in vars(module).items():
        if name in OWN:
            continue
        if is_number(value) or (isinstance(value, tuple | list) and value and all(map(is_number, value))):
            found[name] = value
        else:
            for key, number in _pairs(value):
                named.setdefault(f"[{key!r}]", set()).add(number)
    # Of several numbers under one name it is not known which is which.
    return found | {name: next(iter(numbers)) for name, numbers in named.items() if len(numbers) == 1}


def by_name(name: str) -> bool:
    """Whether it is not an attribute itself, but in attributes."""
    return name.startswith("[")


def put(module: nn.Module, name: str, value: Any) -> None:
    """Changes what `kept` has found."""
    if not by_name(name):
        setattr(module, name, value)
        return
    for attribute, holder in list(vars(module).items()):
        if attribute in OWN:
            continue
        if isinstance(holder, dict) and any(f"[{key!r}]" == name for key, _ in _pairs(holder)):
            changed: Any = {k: value if f"[{k!r}]" == name else v for k, v in holder.items()}
        elif isinstance(holder, tuple | list) and any(f"[{key!r}]" == name for key, _ in _pairs(holder)):
            changed = type(holder)((k, value if f"[{k!r}]" == name else v) for k, v in holder)
        else:
            continue
        setattr(module, attribute, changed)


def is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _pairs(value: Any) -> Iterator[tuple[str, int]]:
    """The numbers that have names."""
    items: Any = ()
    if type(value) is dict:
        items = value.items()
    elif type(value) in (tuple, list) and all(type(v) is tuple and len(v) == 2 for v in value):
        items = value
    for key, number in items:
        if isinstance(key, str) and is_number(number):
            yield key, number
