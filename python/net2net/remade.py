"""remade: tensors that code may make anew: a table of positions that is kept until an input is longer than it.

What such a tensor holds in a student would be made of the student's numbers then. It shows in a walk if the example
makes it anew; if it does not, only the code tells.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType
from typing import Any

from torch import nn

#: What can assign an attribute by a text.
_BY_TEXT = {"setattr", "__setattr__", "register_buffer", "__dict__", "vars"}


def assigned(model: nn.Module) -> set[str]:
    """The names of attributes that any code which a forward of `model` may reach assigns. What it reaches is told by
    names alone, so that it may be more than there really is."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__ if not _of_torch(kind)}
    methods: dict[str, list[FunctionType]] = {}
    for kind in classes:
        for name, member in vars(kind).items():
            methods.setdefault(name, []).extend(_functions(member))
    forwards = [vars(module).get("forward", type(module).forward) for module in model.modules()]
    left = [f for forward in forwards for f in _functions(forward) if not _of_torch(f)]
    found: set[str] = set()
    seen: set[CodeType] = set()
    while left:
        function = left.pop()
        left += [f for cell in function.__closure__ or () for f in _functions(_held(cell))]
        for code in _codes(function.__code__):
            if code in seen:
                continue
            seen.add(code)
            found |= _stored(code)
            for name in code.co_names:
                left += methods.get(name, [])
                left += [f for f in _functions(function.__globals__.get(name)) if not _of_torch(f)]
    return found


def _of_torch(x: Any) -> bool:
    module = x.__module__ or ""
    return module == "builtins" or module.partition(".")[0] in {"torch", "numpy"}


def _functions(member: Any) -> list[FunctionType]:
    """The functions that an attribute stands for: of a method, a property, a wrapped function."""
    if isinstance(member, property):
        return [f for f in (member.fget, member.fset) if isinstance(f, FunctionType)]
    member = getattr(member, "__func__", member)
    inner = getattr(member, "__wrapped__", None)
    return [f for f in (member, inner) if isinstance(f, FunctionType) and f.__name__ != "__init__"]


def _held(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _stored(code: CodeType) -> set[str]:
    found, before = set(), ""
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_ATTR", "DELETE_ATTR"):
            found |= {str(step.argval), before if step.argval == "data" else ""}
        before = str(step.argval)
    if _BY_TEXT & set(code.co_names):
        found |= {text for text in code.co_consts if isinstance(text, str)}
    return found
