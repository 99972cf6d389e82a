"""kept_numbers: the whole numbers that a module keeps beside its parameters, by name, and how they are changed.

An attribute may be a number, a tuple or list of numbers, or have numbers by name: a dict, or pairs of a name and a
number (einops' layers keep the lengths of axes in both). All numbers of one name are one number then, called
`['heads']`. Or it is a record, an object that holds plain values alone (a namespace, a dataclass, a named tuple, a
configuration), whose numbers are called `config.heads`: those that the module's code names.

Modules share dicts and records. A number of a record changes for all that name it; where it changes for some alone,
these get copies, unless code writes to it, for others to read.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
from collections import Counter
from collections.abc import Container, Iterator
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from net2net.outputs import OWN, PLAIN
from net2net.reached_code import asked, names_in, writes

#: Records in records are looked into so far.
_DEEP = 3


def kept(module: nn.Module, but: Container[int] = ()) -> dict[str, Any]:
    """Name -> a positive number, or a tuple or list of such.

    Args:
        but: the addresses of dicts and records that are left out.
    """
    found: dict[str, Any] = {}
    named: dict[str, set[int]] = {}
    for name, value in vars(module).items():
        if name in OWN or id(value) in but:
            continue
        if _is_one_or_several(value):
            found[name] = value
        elif (fields := _fields(value)) is not None:
            found |= dict(_numbers_of(name, value, fields, names_in(type(module)), _DEEP))  # type: ignore[arg-type]
        else:
            for key, number in _pairs(value):
                named.setdefault(f"[{key!r}]", set()).add(number)
    # Of several numbers under one name it is not known which is which.
    return found | {name: next(iter(numbers)) for name, numbers in named.items() if len(numbers) == 1}


def shared(model: nn.Module) -> dict[int, Any]:
    """The dicts and records that several modules of `model` hold, by their addresses."""
    held = {id(v): v for module in model.modules() for v in _holders(module)}
    count = Counter(at for module in model.modules() for at in {id(v) for v in _holders(module)})
    return {at: held[at] for at, n in count.items() if n > 1}


def records_in(model: nn.Module) -> set[int]:
    """The addresses of the records that modules of `model` hold."""
    return {id(v) for module in model.modules() for v in _holders(module) if type(v) is not dict}


def passed_on(model: nn.Module, records: list[Any]) -> bool:
    """Whether code of `model` may write to records that modules share, so that these tell each other something by
    them."""
    kinds = frozenset(map(type, records))
    return any(writes(type(module), kinds) for module in model.modules())  # type: ignore[arg-type]


def contents(model: nn.Module) -> list[str]:
    """What is in the dicts and records that modules hold, to tell whether it has changed."""
    return [repr(v if type(v) is dict else _fields(v)) for module in model.modules() for v in _holders(module)]


def _holders(module: nn.Module) -> list[Any]:
    held = (value for name, value in vars(module).items() if name not in OWN)
    return [v for v in held if (type(v) is dict and dict(_pairs(v))) or _fields(v) is not None]


def by_name(name: str) -> bool:
    """Whether it is not of an attribute, but of names in attributes."""
    return name.startswith("[")


def put(module: nn.Module, name: str, value: Any) -> None:
    """Changes what `kept` has found."""
    if not by_name(name):
        attribute, *path = name.split(".")
        setattr(module, attribute, _with(getattr(module, attribute), path, value) if path else value)
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


def holder_of(module: nn.Module, name: str) -> tuple[Any, str]:
    """The record that has what `kept` has found, and under which name there; None if it is none of a record."""
    if by_name(name) or "." not in name:
        return None, name
    *path, field = name.split(".")
    return functools.reduce(getattr, path, module), field


def can_change(record: Any) -> bool:
    """Whether it is a record that can change, and no other's too (a student's is a copy, as a rule)."""
    return not isinstance(record, tuple) and copy.deepcopy(record) is not record


@contextlib.contextmanager
def without(module: nn.Module, name: str) -> Iterator[bool]:
    """Takes out what `kept` has found, until the context ends; or else yields False."""
    record, field = holder_of(module, name)
    holder = module if record is None else record
    if by_name(name) or hasattr(type(holder), field) or (record is not None and not can_change(record)):
        yield False
        return
    value = vars(holder).pop(field)
    try:
        yield True
    finally:
        vars(holder)[field] = value


def is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_one_or_several(value: Any) -> bool:
    several = isinstance(value, tuple | list) and not hasattr(value, "_fields")
    return is_number(value) or (several and bool(value) and all(map(is_number, value)))


def _fields(value: Any) -> dict[str, Any] | None:
    """What a record holds, by name; None if it is none."""
    if isinstance(value, tuple):
        fields = value._asdict() if hasattr(value, "_asdict") else None
    elif isinstance(value, nn.Module | type | FunctionType | ModuleType | enum.Enum):
        return None
    else:
        fields = getattr(value, "__dict__", None)
        if fields is not None:  # with what instances of its class hold alike
            alike = (vars(kind) for kind in reversed(type(value).__mro__))
            of_all = {k: v for held in alike for k, v in held.items() if k[:2] != "__" and _is_one_or_several(v)}
            fields = of_all | fields
    return fields if fields and _is_plain(fields, _DEEP) else None


def _is_plain(value: Any, deep: int) -> bool:
    if isinstance(value, PLAIN):
        return True
    if isinstance(value, dict):
        return deep > 0 and all(_is_plain(v, deep - 1) for v in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return deep > 0 and all(_is_plain(v, deep - 1) for v in value)
    return deep > 0 and not isinstance(value, type) and _fields(value) is not None


def _numbers_of(
    name: str, record: Any, fields: dict[str, Any], named: frozenset[str], deep: int
) -> Iterator[tuple[str, Any]]:
    named = asked(named, type(record))  # type: ignore[arg-type]
    for field, value in fields.items():
        if field not in named:
            continue
        if _is_one_or_several(value):
            yield f"{name}.{field}", value
        elif deep and (inner := _fields(value)) is not None:
            yield from _numbers_of(f"{name}.{field}", value, inner, named, deep - 1)


def _with(record: Any, path: list[str], value: Any) -> Any:
    """A copy of a record whose field, by its path, is another."""
    field, *inner = path
    after = _with(getattr(record, field), inner, value) if inner else value
    if isinstance(record, tuple):
        return record._replace(**{field: after})  # type: ignore[attr-defined]
    made = copy.copy(record)
    if made is record:  # (A class may say so of its instances.)
        made = object.__new__(type(record))
        vars(made).update(vars(record))
    vars(made)[field] = after  # (It may be frozen.)
    return made


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
