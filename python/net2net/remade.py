"""remade: tensors that code may make anew: a table of positions that is kept until an input is longer than it.

What such a tensor holds in a student would be made of the student's numbers then. It shows in a walk if the example
makes it anew; if it does not, only the code tells.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

#: What can assign an attribute by a text, which may be any, or change a tensor that has another name there.
_ANY = {
    "setattr", "__setattr__", "register_buffer", "_buffers", "__dict__", "vars", "set_", "resize_", "resize_as_",
    "_apply",
}  # fmt: skip

#: Packages whose code assigns nothing of a user's.
_FOREIGN = {"builtins", "torch", "numpy", "math", "functools", "itertools", "einops", "typing"}


class Assigned:
    """Which attributes any code may assign that a forward of `model` reaches. What it reaches is told by names alone,
    so that it may be more than there really is; but what is put together while it runs is not seen."""

    def __init__(self, model: nn.Module) -> None:
        self._names: set[str] = set()
        self._any = False
        self._methods: dict[str, list[FunctionType]] = {}
        self._left: list[FunctionType] = []
        self._known: set[Any] = set()
        for module in model.modules():
            self._learn(type(module))
            held = vars(module)
            hooks = [*held["_forward_pre_hooks"].values(), *held["_forward_hooks"].values()]
            own = (value for name, value in held.items() if name not in nn.Module().__dict__)
            for value in (type(module).forward, type(module).__call__, *hooks, *own):
                self._reach(value)
        seen: set[CodeType] = set()
        while self._left:
            function = self._left.pop()
            for value in (*map(_held, function.__closure__ or ()), *(function.__defaults__ or ())):
                self._reach(value)
            for code in codes(function.__code__):
                if code not in seen:
                    seen.add(code)
                    self._look(code, function.__globals__)

    def __contains__(self, name: str) -> bool:
        return self._any or name in self._names

    def _look(self, code: CodeType, names: dict[str, Any]) -> None:
        before: list[dis.Instruction] = []
        for step in dis.get_instructions(code):
            if step.opname in ("STORE_ATTR", "DELETE_ATTR"):
                self._names.add(str(step.argval))
                # (`mask.data *= 2` leaves it what it is.)
                if step.argval == "data" and not _in_place(before):  # of an attribute, or of what came from anywhere
                    by_name = before[-1].opname == "LOAD_ATTR"
                    self._names |= {str(before[-1].argval)} if by_name else set()
                    self._any = self._any or not by_name
            before = [*before[-1:], step]
        self._any = self._any or bool(_ANY & set(code.co_names))
        for name in code.co_names:
            self._left += self._methods.get(name, [])
            found = names.get(name)
            self._reach(found)
            if isinstance(found, ModuleType) and not _is_foreign(found.__name__):
                for inner in code.co_names:
                    self._reach(vars(found).get(inner))

    def _learn(self, kind: type) -> None:
        """The methods of a class can be reached by their names."""
        for each in kind.__mro__:
            if each in self._known or _is_foreign(each.__module__):
                continue
            self._known.add(each)
            for name, member in vars(each).items():
                functions = _functions(member)
                self._methods.setdefault(name, []).extend(functions)
                if name.startswith("__") and not issubclass(each, nn.Module):
                    self._left += functions  # of descriptors and decorators of one's own, say
                if not functions and not name.startswith("__"):
                    self._reach(member)

    def _reach(self, value: Any) -> None:
        """What is at hand: functions are called, objects' methods can be."""
        if value is None or isinstance(value, nn.Module | str | int | float):
            return
        if isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                if not isinstance(item, dict | list | tuple):
                    self._reach(item)
            return
        functions = [f for f in _functions(value) if not _is_foreign(f.__module__)]
        if functions:
            self._left += functions
        elif not isinstance(value, ModuleType | FunctionType):
            self._learn(value if isinstance(value, type) else type(value))


def _in_place(before: list[dis.Instruction]) -> bool:
    """Whether an assignment after these two is an augmented one, such as `*=`."""
    operation = before[0]
    return operation.opname.startswith("INPLACE_") or (operation.opname == "BINARY_OP" and "=" in operation.argrepr)


def _is_foreign(module: str | None) -> bool:
    return (module or "builtins").partition(".")[0] in _FOREIGN


def _functions(member: Any) -> list[FunctionType]:
    """The functions that something stands for: a method, a property, a function that is wrapped or partly applied."""
    if isinstance(member, property):
        inner: list[Any] = [member.fget, member.fset]
    elif isinstance(member, FunctionType):
        wrapped = getattr(member, "__wrapped__", None)
        return ([] if member.__name__ == "__init__" else [member]) + (_functions(wrapped) if wrapped else [])
    elif isinstance(member, staticmethod | classmethod | MethodType):
        inner = [member.__func__]
    elif isinstance(member, functools.partial | functools.partialmethod):
        inner = [member.func]
    elif isinstance(member, functools.singledispatchmethod):
        inner = list(member.dispatcher.registry.values())
    elif hasattr(member, "__wrapped__") and not isinstance(member, type):
        inner = [member.__wrapped__]
    else:
        return []
    return [f for each in inner for f in _functions(each)]


def _held(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)
