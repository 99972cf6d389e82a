"""remade: tensors that code may make anew: a table of positions that is kept until an input is longer than it.

What such a tensor holds in a student would be made of the student's numbers then. It shows in a walk if the example
makes it anew; if it does not, only the code tells.
"""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
import sys
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from net2net.reached_code import codes, in_cell

#: What can assign an attribute by a text, which may be any, or change a tensor that has another name there.
_ANY = {
    "__setattr__", "_buffers", "_modules", "__dict__", "vars", "set_", "resize_", "resize_as_", "_apply",
    "swap_tensors",
}  # fmt: skip

#: What assigns an attribute by a text, which most often stands there.
_BY_TEXT = {"setattr", "register_buffer", "register_module", "add_module"}

#: What loads an object by its name.
_LOADING = ("LOAD_FAST", "LOAD_ATTR", "LOAD_DEREF", "LOAD_GLOBAL", "PUSH_NULL")

#: Packages whose code assigns nothing of a user's.
_FOREIGN = {"torch", "numpy", "einops", *sys.stdlib_module_names}

#: So many functions are looked into; where a forward may reach more, any attribute may be assigned.
_MOST = 1000

#: Containers in containers, and objects in objects, are looked into so far.
_DEEP = 4


class Assigned:
    """Which attributes any code may assign that a forward of `model` reaches. What it reaches is told by names alone,
    so that it may be more than there really is; but what is put together while it runs is not seen."""

    def __init__(self, model: nn.Module) -> None:
        #: Those whose names stand in the code.
        self.names: set[str] = set()
        self._any = False
        self._methods: dict[str, list[FunctionType]] = {}
        self._left: list[FunctionType] = []
        self._known: set[Any] = set()
        self._opened: dict[int, Any] = {}  # containers, which live as long as their addresses count
        for module in model.modules():
            self._learn(type(module))
            held = vars(module)
            hooks = [*held["_forward_pre_hooks"].values(), *held["_forward_hooks"].values()]
            own = (value for name, value in held.items() if name not in nn.Module().__dict__)
            for value in (type(module).forward, type(module).__call__, *hooks, *own):
                self._reach(value)
        seen: set[CodeType] = set()
        asked: set[FunctionType] = set()
        while self._left and not self._any:
            function = self._left.pop()
            if function in asked:
                continue
            asked.add(function)
            for value in (*map(in_cell, function.__closure__ or ()), *(function.__defaults__ or ())):
                self._reach(value)
            for code in codes(function.__code__):
                if code not in seen:
                    seen.add(code)
                    self._any = self._any or len(seen) > _MOST
                    self._look(code, function.__globals__)

    def __contains__(self, name: str) -> bool:
        return self._any or name in self.names

    def _look(self, code: CodeType, names: dict[str, Any]) -> None:
        before: list[dis.Instruction] = []
        steps = list(dis.get_instructions(code))
        for i, step in enumerate(steps):
            # (`self.mask *= 2`, or `mask.data *= 2`, leaves it what it is.)
            if step.opname in ("STORE_ATTR", "DELETE_ATTR") and not _in_place(before):
                self.names.add(str(step.argval))
                if step.argval == "data":  # of an attribute, or of what came from anywhere
                    by_name = before[-1].opname == "LOAD_ATTR"
                    self.names |= {str(before[-1].argval)} if by_name else set()
                    self._any = self._any or not by_name
            elif step.argval in _BY_TEXT:
                text = _text_after(steps[i + 1 :])
                self.names |= set() if text is None else {text}
                self._any = self._any or text is None
            elif step.opname == "IMPORT_NAME":
                self._reach_package(sys.modules.get(step.argval), code.co_names)
                self._any = self._any or not (step.argval in sys.modules or _is_foreign(step.argval))
            before = [*before[-1:], step]
        self._any = self._any or bool(_ANY & set(code.co_names))
        for name in code.co_names:
            self._left += self._methods.get(name, [])
            self._reach(names.get(name), deep=1)
            self._reach_package(names.get(name), code.co_names)

    def _reach_package(self, package: Any, names: tuple[str, ...], deep: int = _DEEP) -> None:
        if isinstance(package, ModuleType) and deep and not _is_foreign(package.__name__):
            for name in names:
                self._reach(vars(package).get(name), deep=1)
                self._reach_package(vars(package).get(name), names, deep - 1)

    def _learn(self, kind: type) -> None:
        """The methods of a class can be reached by their names."""
        for each in kind.__mro__:
            if each in self._known or _is_foreign(each.__module__):
                continue
            self._known.add(each)
            for name, member in vars(each).items():
                functions = _functions(member, made=not issubclass(each, nn.Module))
                self._methods.setdefault(name, []).extend(functions)
                if name.startswith("__") and not issubclass(each, nn.Module):
                    self._left += functions  # of descriptors and decorators of one's own, say
                if not functions and not name.startswith("__"):
                    self._reach(member)

    def _reach(self, value: Any, deep: int = _DEEP) -> None:
        """What is at hand: functions are called, objects' methods can be."""
        if value is None or isinstance(value, nn.Module | str | int | float) or not deep:
            return
        if isinstance(value, dict | list | tuple):
            if id(value) not in self._opened:
                self._opened[id(value)] = value
                for item in list(value.values() if isinstance(value, dict) else value):
                    self._reach(item, deep - 1)
            return
        functions = [f for f in _functions(value) if not _is_foreign(f.__module__)]
        if functions:
            self._left += functions
        elif not isinstance(value, ModuleType | FunctionType):
            kind = value if isinstance(value, type) else type(value)
            self._learn(kind)
            if kind is not value and deep > 1 and not _is_foreign(kind.__module__):
                self._reach(getattr(value, "__dict__", None), deep - 1)


def _text_after(steps: list[dis.Instruction]) -> str | None:
    """The text that a call is given, after an object whose name stands there; None if it is not told by the code."""
    at = next((i for i, step in enumerate(steps) if not step.opname.startswith(_LOADING)), len(steps))
    call = list(itertools.takewhile(lambda step: step.opname != "POP_TOP", steps[at:]))
    if len(call) < 2 or call[0].opname != "LOAD_CONST" or not isinstance(call[0].argval, str):
        return None
    # It may be a part of what is put together.
    together = call[1].opname.startswith(("LOAD_ATTR", "LOAD_METHOD")) or any(
        step.opname.startswith(("BINARY", "FORMAT", "BUILD_STRING")) for step in call
    )
    return None if together else call[0].argval


def _in_place(before: list[dis.Instruction]) -> bool:
    """Whether an assignment after these two is an augmented one, such as `*=`, which tensors do in place (but `@=`)."""
    operation = before[0]
    if operation.opname.startswith("INPLACE_"):
        return operation.opname != "INPLACE_MATRIX_MULTIPLY"
    return operation.opname == "BINARY_OP" and "=" in operation.argrepr and operation.argrepr != "@="


def _is_foreign(module: str | None) -> bool:
    return (module or "builtins").partition(".")[0] in _FOREIGN


def _functions(member: Any, made: bool = False) -> list[FunctionType]:
    """The functions that something stands for: a method, a property, a function that is wrapped or partly applied.

    Args:
        made: also what makes an object, but for what a dataclass does by itself.
    """
    if isinstance(member, property):
        inner: list[Any] = [member.fget, member.fset]
    elif isinstance(member, FunctionType):
        itself = [] if member.__name__ == "__init__" and not made else [member]
        wrapped = getattr(member, "__wrapped__", None)
        return [f for f in itself if f.__code__.co_filename != "<string>"] + (_functions(wrapped) if wrapped else [])
    elif isinstance(member, staticmethod | classmethod | MethodType):
        inner = [member.__func__]
    elif isinstance(member, functools.partial | functools.partialmethod):
        inner = [member.func]
    elif isinstance(member, functools.singledispatchmethod):
        inner = list(member.dispatcher.registry.values())
    elif not isinstance(member, type):
        inner = [inspect.getattr_static(member, "__wrapped__", None)]
    else:
        return []
    return [f for each in inner for f in _functions(each)] if inner != [None] else []
