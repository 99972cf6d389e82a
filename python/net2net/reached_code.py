"""reached_code: what the code that a forward reaches names, and whether it writes to what is not its module's own.

It is read, not run: a branch that an example does not take counts, too.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType
from typing import Any

#: What assigns an attribute by a text.
_BY_TEXT = {"setattr", "__setattr__", "__dict__", "vars"}

_ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)

#: Functions that go by the least of several, or by where a sequence ends.
_CHOOSING = {"min", "max", "sorted", "islice", "clip", "clamp", "clamp_", "clamp_min", "clamp_max"}


def codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def in_cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _reached(kind: type, begin: frozenset[str] = frozenset({"forward"})) -> Iterator[CodeType]:
    """The code that a class' forward reaches (or other methods that it `begins` with): its methods and properties,
    functions of its file, and those that these hold."""
    kinds = [each for each in kind.__mro__ if each.__module__.partition(".")[0] not in ("builtins", "torch")]
    names, seen = set[str](), set[FunctionType]()
    left: list[Any] = [vars(each)[name] for each in kinds for name in begin & vars(each).keys()]
    while left:
        member = inspect.unwrap(left.pop())
        member = member.func if isinstance(member, functools.cached_property) else member
        member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not isinstance(member, FunctionType) or member in seen:
            continue
        seen.add(member)
        for code in codes(member.__code__):
            yield code
            found = _named(code) - names
            names |= found
            left += [vars(each)[name] for each in kinds for name in found & vars(each).keys()]
            near = (member.__globals__.get(name) for name in found)
            left += [f for f in near if getattr(f, "__module__", None) == member.__module__]
        left += [f for f in map(in_cell, member.__closure__ or ()) if isinstance(f, FunctionType)]


def _named(code: CodeType) -> set[str]:
    """The names and texts in it."""
    return {*code.co_names, *(text for text in code.co_consts if isinstance(text, str))}


@functools.cache
def names_in(kind: type) -> frozenset[str]:
    """The names and texts in the code that a class' forward reaches."""
    return frozenset(name for code in _reached(kind) for name in _named(code))


@functools.cache
def asked(names: frozenset[str], of: type) -> frozenset[str]:
    """The names in some code, and those in methods and properties of the class `of` that it may use by them."""
    return names | {name for code in _reached(of, begin=names) for name in _named(code)}


@functools.cache
def writes(kind: type, records: frozenset[type]) -> bool:
    """Whether that code may assign attributes of anything but the module itself, or call methods of records that do."""
    methods = {name for record in records for name in _writers(record)}
    return any(methods & _named(code) or _assigns(code, but="self") for code in _reached(kind))


@functools.cache
def _writers(record: type) -> frozenset[str]:
    """The methods of a record that assign attributes, and those that name such."""
    members = {name: m for each in reversed(record.__mro__[:-1]) for name, m in vars(each).items() if name[:2] != "__"}
    named = {name: inspect.unwrap(m).__code__ for name, m in members.items() if isinstance(m, FunctionType)}
    found = {name for name, code in named.items() if any(map(_assigns, codes(code)))}
    while more := {name for name, code in named.items() if found & _named(code)} - found:
        found |= more
    return frozenset(found)


def _assigns(code: CodeType, but: str = "") -> bool:
    """Whether it may assign attributes, but those of the variable of that name."""
    return bool(_BY_TEXT & set(code.co_names)) or any(
        step.opname == "STORE_ATTR" and not (but and _loads(before, but))
        for before, step in itertools.pairwise(dis.get_instructions(code))
    )


def _loads(step: dis.Instruction, variable: str) -> bool:
    """Whether the last that it loads is that variable (newer versions of Python load two at once)."""
    loaded = step.argval if isinstance(step.argval, tuple) else (step.argval,)
    return step.opname.startswith("LOAD_FAST") and loaded[-1] == variable


@functools.cache
def limits(kind: type) -> frozenset[str]:
    """The attributes that the code of a class' forward compares (as larger or smaller) with what it has not from
    attributes: how long an input is, most often."""
    return frozenset(name for code in _reached(kind) for name in _compared(code))


def _compared(code: CodeType) -> Iterator[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError):
        return
    attribute_of, local = _variables(tree)
    for node in ast.walk(tree):
        ordered = isinstance(node, ast.Compare) and any(isinstance(op, _ORDER) for op in node.ops)
        if ordered or (isinstance(node, ast.Call) and _chooses(node)):
            inside = list(ast.walk(node))
            names = {n.id for n in inside if isinstance(n, ast.Name)}
            if names & local - attribute_of.keys():
                yield from (n.attr for n in inside if isinstance(n, ast.Attribute))
                yield from (attribute_of[name] for name in names & attribute_of.keys())


def _chooses(call: ast.Call) -> bool:
    """Whether a call goes by the least of several numbers, or lengths: `min(n, length)`, `range(0, length, n)`,
    `zip(range(n), rows)`."""
    function = call.func
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    if name == "zip":
        return any(isinstance(a, ast.Call) and getattr(a.func, "id", "") == "range" for a in call.args)
    return name in _CHOOSING or (name == "range" and len(call.args) > 1)


def _variables(tree: ast.AST) -> tuple[dict[str, str], set[str]]:
    """The variables that stand for attributes alone, and all but `self`."""
    attribute_of: dict[str, str] = {}
    others = {arg.arg for arg in ast.walk(tree) if isinstance(arg, ast.arg)}
    named = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.NamedExpr):
            for target, value in _pairs_of(node):
                if isinstance(target, ast.Name) and isinstance(value, ast.Attribute) and value.attr != "shape":
                    attribute_of[target.id] = value.attr
                else:
                    others |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    return {k: v for k, v in attribute_of.items() if k not in others}, (named | others) - {"self"}


def _pairs_of(node: ast.Assign | ast.NamedExpr) -> Iterator[tuple[ast.expr, ast.expr]]:
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value
