"""candidates: which numbers of a module may have to grow where its forward fails in a student, and to what.

No list of names: those are looked at that the operations before the failure were given, and each is scaled as the units
at hand are.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from torch import nn

from net2net.changes import Change, Edit, children
from net2net.context import TraceError
from net2net.kept_numbers import by_name, is_number, kept
from net2net.reached_code import asked, limits, names_in
from net2net.student import Student

#: How many changes are tried at once, and how many for one failure.
_AT_ONCE, _TRIES = 4, 24


def candidates(
    module: nn.Module,
    name: str,
    error: Exception,
    seen: list[Any],
    given: list[tuple[int, int]],
    context: Student,
    helped: set[tuple[type, str]],
    counts: Callable[[nn.Module, Change], bool],
) -> Iterator[list[Edit]]:
    """What to try, the likeliest first: attributes that helped in modules of this class, then those whose value the
    last operations were given: those of the last one, each by itself and all of them, then those before; then those
    that are as a size of what the module was `given` had been, against which code may check it. Of the module's own
    that have not helped yet, only those that `counts` says count for the failure."""
    if stated := _stated(error):
        seen = [*seen, stated]
    held = _free(module, context)
    order = _ages(seen, given, held)
    found: list[_Found] = []
    for attribute, value in held.items():
        values = [value] if is_number(value) else list(value)
        if any(v in order for v in values):
            # Of a list, all values are expected.
            age = max(order.get(v, len(order)) for v in values)
            found.append(((type(module), attribute) not in helped, age, attribute, value))
    found.sort(key=lambda f: f[:3])
    factors = list(dict.fromkeys([*_factors(error, context), *(after / before for before, after in given)]))
    # To see what counts takes a run of the module, as does to try what is likely to help.
    yield from _one_by_one(module, name, [f for f in found if not f[0]], factors, seen)
    found = [f for f in found if counts(module, Change(name, f[2], f[3], f[3]))]
    last = [f for f in found if f[1] == 0]
    numbers = dict.fromkeys(v for _, _, _, v in last if is_number(v))
    earlier = [f for f in found if f[1] > 0]
    parts = _factors_of(seen[-1][1] if seen else (), held)
    yield from _one_by_one(module, name, [f for f in last if is_number(f[3])], factors, seen)
    yield from _everywhere(module, name, numbers, factors, context)
    yield from _together(module, name, last, factors)
    others = [f for f in earlier if is_number(f[3]) and f[3] in parts]
    yield from _with_one(module, name, last, others, factors)
    yield from _one_by_one(module, name, [f for f in last if not is_number(f[3])], factors, seen)
    yield from _one_by_one(module, name, earlier, factors, seen)
    yield from _everywhere(module, name, dict.fromkeys(v for _, _, _, v in earlier if is_number(v)), factors, context)
    yield from _of_children(module, name, order, factors, seen, context)


def _factors_of(latest: Iterable[int], held: dict[str, Any]) -> set[int]:
    """The numbers of which two make one of the latest, or what lies between two of these (of a slice)."""
    widths = {*map(abs, latest), *(abs(a - b) for a, b in itertools.combinations(latest, 2))}
    numbers = [v for v in held.values() if is_number(v) and v > 1]
    return {n for pair in itertools.combinations(numbers, 2) if math.prod(pair) in widths for n in pair}


def _free(module: nn.Module, context: Student) -> dict[str, Any]:
    """The numbers that may change: not those that limit something else, too."""
    limiting = limits(type(module))  # type: ignore[arg-type]
    return {k: v for k, v in kept(module, context.fixed).items() if k.rpartition(".")[2] not in limiting}


def _ages(seen: list[Any], given: list[tuple[int, int]], held: dict[str, Any]) -> dict[int, int]:
    """How many operations ago a number was seen, or one that code may make of it."""
    order: dict[int, int] = {}
    for age, (_, numbers) in enumerate(reversed(seen)):
        for n in numbers:
            order.setdefault(abs(n), age)  # (from the end, perhaps)
    # A width that is kept as a whole, and used as so many heads of such a size.
    latest = seen[-1][1] if seen else ()
    for a, b in itertools.combinations([n for n in latest if n > 1], 2):
        order.setdefault(a * b, 0)
    # A width of which the code takes several (`2 * self.width`, for two gates).
    for n, several in itertools.product(latest, (2, 3, 4)):
        if n > several and n % several == 0:
            order.setdefault(n // several, len(seen))
    for before, _ in given:
        order.setdefault(before, len(seen) + 1)
    # A width that the code puts together (`self.config.heads * self.head_dim`).
    for n in _factors_of(latest, held):
        order.setdefault(n, len(seen))
    return order


#: Whether an attribute has not helped before, how many operations ago its value was seen; its name, and value.
_Found = tuple[bool, int, str, Any]


def first_of(trials: Iterable[list[Edit]]) -> Iterator[list[Edit]]:
    """As many as are tried for one failure, none twice."""
    seen: set[str] = set()
    for trial in trials:
        key = repr([change for _, change in trial])
        if key not in seen:
            seen.add(key)
            yield trial
        if len(seen) == _TRIES:
            return


def _one_by_one(
    module: nn.Module, name: str, found: list[_Found], factors: list[float], seen: list[Any]
) -> Iterator[list[Edit]]:
    for _, _, attribute, value in found:
        for after in _scaled(value, factors, seen):
            yield [(module, Change(name, attribute, value, after))]


def _everywhere(
    module: nn.Module, name: str, numbers: Iterable[int], factors: list[float], context: Student
) -> Iterator[list[Edit]]:
    """A number wherever the module and its children keep it: these may be asked by other ways than their forward."""
    owners = [(name, module, _free(module, context)), *_asked(module, name, context)]
    for number, f in itertools.product(numbers, factors):
        if abs(number * f - round(number * f)) > 1e-9:
            continue
        edits: list[Edit] = []
        for path, owner, held in owners:
            for attribute, value in held.items():
                each = [value] if is_number(value) else value
                grown = [round(number * f) if v == number else v for v in each]
                if number in each:
                    after = grown[0] if is_number(value) else type(value)(grown)
                    edits.append((owner, Change(path, attribute, value, after)))
        if len(edits) > 1:
            yield edits


def _asked(module: nn.Module, name: str, context: Student) -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """Children, and what of their numbers the module may ask for."""
    for path, child in children(module, name):
        names = asked(names_in(type(module)), type(child))  # type: ignore[arg-type]
        held = _free(child, context).items()
        yield path, child, {k: v for k, v in held if by_name(k) or k.rpartition(".")[2] in names}


def _of_children(
    module: nn.Module, name: str, order: dict[int, int], factors: list[float], seen: list[Any], context: Student
) -> Iterator[list[Edit]]:
    """Numbers that children keep and this module goes by (how wide the state is that a cell begins with): of all
    children that have the same, and of each."""
    found = []
    for path, child, held in _asked(module, name, context):
        for attribute, value in held.items():
            if is_number(value) and value in order:
                found.append((order[value], path, child, attribute, value))
    found.sort(key=lambda f: f[0])
    yield from _everywhere(module, name, dict.fromkeys(f[-1] for f in found), factors, context)
    for _, path, child, attribute, value in found:
        yield from _one_by_one(child, path, [(False, 0, attribute, value)], factors, seen)


def _together(module: nn.Module, name: str, found: list[_Found], factors: list[float]) -> Iterator[list[Edit]]:
    """The sizes that a split is into, say, which are kept one by one."""
    numbers = [(attribute, value) for _, _, attribute, value in found if is_number(value)]
    numbers = sorted(numbers, key=lambda number: number[1] == 1)[:_AT_ONCE]
    for size in range(len(numbers), 1, -1):
        for f, some in itertools.product(factors, itertools.combinations(numbers, size)):
            if all(abs(value * f - round(value * f)) < 1e-9 for _, value in some):
                yield [(module, Change(name, attribute, value, round(value * f))) for attribute, value in some]


def _with_one(
    module: nn.Module, name: str, last: list[_Found], others: list[_Found], factors: list[float]
) -> Iterator[list[Edit]]:
    """Sizes that a split is into, one of which is kept as such and another one put together."""
    numbers = [(attribute, value) for _, _, attribute, value in last if is_number(value)][:_AT_ONCE]
    for f, (_, _, attribute, value) in itertools.product(factors, others):
        for some in dict.fromkeys((*((n,) for n in numbers), tuple(numbers))):
            changed = (*some, (attribute, value))
            if some and all(abs(v * f - round(v * f)) < 1e-9 for _, v in changed):
                yield [(module, Change(name, k, v, round(v * f))) for k, v in changed]


def _stated(error: Exception) -> tuple[int, tuple[int, ...]] | None:
    """The elements and sizes that an error tells of, which was raised before there was an operation to be seen."""
    found = re.search(r"shape '\[(.*)\]' is invalid for input of size (\d+)", str(error))
    if found:
        return int(found[2]), tuple(int(n) for n in found[1].split(","))
    stated = tuple(int(n) for n in re.findall(r"(?<![\w.-])\d+(?![\w.])", str(error)))
    return (0, stated) if stated and not isinstance(error, TraceError) else None


def _factors(error: Exception, context: Student) -> list[float]:
    """By how much the numbers of units in the failing operation have grown."""
    suspects = [s for s in error.suspects if len(s)]  # type: ignore[attr-defined]
    found: list[float] = []
    for ids in suspects:
        roots = np.unique(context.units.blocks.roots(ids))
        for some in (ids, roots, *(roots[i : i + 1] for i in range(min(len(roots), 4)))):
            counts = context.layouts.count(some)
            found += [float(counts.mean()), float(counts[counts > 1].mean()) if (counts > 1).any() else 1.0]
    for ids in suspects:
        found += context.layouts.factors(ids)
    return [f for f in dict.fromkeys(found) if f > 1]


def _scaled(value: Any, factors: list[float], seen: list[Any]) -> Iterator[Any]:
    if is_number(value):
        wanted = [_solved(value, seen[-1])] if seen else []
        wanted += [value * f for f in factors]
        for after in dict.fromkeys(round(w) for w in wanted if w and abs(w - round(w)) < 1e-9):
            if after != value:
                yield after
        return
    kind = type(value)
    distinct = list(dict.fromkeys(value))
    # All of them first, then each by itself, then what is left.
    choices = [set(distinct), *({v} for v in distinct if len(distinct) > 1)]
    choices += [set(distinct) - {v} for v in distinct] if len(distinct) > 2 else []
    for f in factors:
        for chosen in choices:
            grown = [v * f if v in chosen else v for v in value]
            if all(abs(w - round(w)) < 1e-9 for w in grown):
                yield kind(round(w) for w in grown)
        if len(value) > len(distinct):
            for i, v in enumerate(value):
                if abs(v * f - round(v * f)) < 1e-9:
                    yield kind(round(v * f) if j == i else u for j, u in enumerate(value))


def _solved(value: int, operation: tuple[int, tuple[int, ...]]) -> float | None:
    """What a size must be for a view to fit."""
    elements, sizes = operation
    sizes = tuple(n for n in sizes if n != 0)
    if not elements or sizes.count(value) != 1 or -1 in sizes:
        return None
    return elements / (float(np.prod(sizes)) / value)
