"""repair: numbers that user code keeps in attributes (`num_heads`, `hidden_dim`, split sizes) and that must grow with
the widths.

No list of names: where the student's forward fails within a module, that module's own integers are looked at that the
operations before the failure were given. One at a time (then several) is scaled as the units at hand are, and the
module is run again.
Nonsense does not survive: every value of the student must be one of the teacher's.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from net2net.context import TraceError
from net2net.hashes import digest
from net2net.kept_numbers import by_name, is_number, kept, passed_on, put, without
from net2net.skeleton import each_module
from net2net.student import Student

#: Modules of torch that keep a width which no weight of theirs tells.
_ALSO = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.Unflatten)

#: How many attributes of one module may change, how many changes are tried for each, and with how many first ones.
_DEPTH, _TRIES, _WAYS = 4, 24, 2


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
        if not _users(module):
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


def attach(model: nn.Module, context: Student) -> list[Change]:
    """Lets the modules of `model`, our own copy of a student, mend their attributes as they run; returns the list to
    which changes are added."""
    known = _Known()
    seen = {id(m): name for name, m in reversed(list(model.named_modules()))}
    context.passed_on = passed_on(model, context.written)
    for module in each_module(model):
        if _users(module) and (kept(module) or any(kept(m) for _, m in _children(module, ""))):
            module.forward = _guarded(module, seen[id(module)], context, known)
    return known.changes


def _users(module: nn.Module) -> bool:
    """Whether a module's attributes may be changed: torch's own modules know what they are about. (A user's class that
    FSDP has made one of its own of is still the user's.)"""
    kinds = itertools.takewhile(lambda kind: kind is not nn.Module, type(module).__mro__)
    return isinstance(module, _ALSO) or not all(kind.__module__.startswith("torch.") for kind in kinds)


class _Known:
    """What is known of a model's modules from those that were run before."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        #: The attributes that helped in modules of a class.
        self.helped: set[tuple[type, str]] = set()
        #: How far modules came that could not be mended. (One around it is run again and again, and it fails again.)
        self.failed: dict[tuple[bytes, bytes], _Reached] = {}
        #: The attribute that is taken out to see what comes of it.
        self.taken_out = ""
        #: Classes for which a second first change helped no more than the first.
        self.one_way: set[type] = set()


def _guarded(module: nn.Module, name: str, context: Student, known: _Known) -> Callable[..., Any]:
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        attempt = _Attempt(module, name, context, known, forward, args, kwargs)
        try:
            return forward(*args, **kwargs)
        except Exception as error:
            context.mark(error)
            first = _Reached([], error, attempt.operations())
        if known.taken_out and isinstance(error_ := first.error, AttributeError) and error_.name == known.taken_out:
            raise error_
        case = digest(name, str(first.error), first.operations, *context.codes_in(attempt.state))
        numbers = digest([kept(m) for _, m in ((name, module), *_children(module, name))])
        end = known.failed.get((case, b"")) or known.failed.get((case, numbers)) or attempt.mended(first, 0)
        if not isinstance(end, _Reached):
            made, out = end
            known.changes.extend(change for _, change in made)
            known.helped.update((type(owner), change.name) for owner, change in made)
            return out
        attempt.rewind()
        # What did not come further does not with other numbers that it has not come to either.
        known.failed[case, numbers if end.made else b""] = end
        # What brought the run further was right: what is wrong there is what counts.
        context.seen.extend(end.operations)
        raise end.error

    return run


class _Attempt:
    """One call of a module in a student, which is made again with other attributes."""

    def __init__(
        self,
        module: nn.Module,
        name: str,
        context: Student,
        known: _Known,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.module, self.name, self.context, self.known = module, name, context, known
        self.call = functools.partial(forward, *args, **kwargs)
        self.state, self.since = context.saved((args, kwargs)), len(context.seen)

    def operations(self) -> list[Any]:
        """Those that it came to."""
        return self.context.seen[self.since :]

    def rewind(self) -> None:
        self.context.restore(self.state)
        del self.context.seen[self.since :]

    def again(self) -> Any:
        self.rewind()
        try:
            return self.call()
        except Exception as error:
            self.context.mark(error)
            raise

    def mended(self, start: _Reached, depth: int) -> tuple[list[_Edit], Any] | _Reached:
        """The changes that let the module run, those made before among them, and what it then returns; or else how far
        it has come."""
        if depth == _DEPTH:
            return start
        further: list[_Reached] = []
        for trial in self.trials(start):
            _set(trial)
            try:
                out = self.again()
            except Exception as error:
                _unset(trial)
                if len(self.operations()) > len(start.operations):
                    further.append(_Reached([*start.made, *trial], error, self.operations()))
            else:
                return self.least([*start.made, *trial], out)
        # None is enough by itself. What led furthest stays, and another one is looked for.
        ends: list[_Reached] = []
        for best in _furthest(further, 1 if depth or type(self.module) in self.known.one_way else _WAYS):
            trial = best.made[len(start.made) :]
            _set(trial)
            end = self.mended(best, depth + 1)
            if not isinstance(end, _Reached):
                return end
            _unset(trial)
            ends.append(end)
        if len(ends) > 1:
            self.known.one_way.add(type(self.module))
        return _furthest(ends, 1)[0] if ends else start

    def trials(self, start: _Reached) -> Iterator[list[_Edit]]:
        """The candidates of which an attribute counts. (One of several may only count where the others are right.)"""
        given = [] if isinstance(start.error, TraceError) else self.context.grown_sizes(self.state)
        count: dict[tuple[str, str], bool] = {}
        for trial in _candidates(
            self.module, self.name, start.error, start.operations, given, self.context, self.known.helped
        ):
            for owner, change in trial:
                if (key := (change.module, change.name)) not in count:
                    count[key] = self.counts(owner, change.name, start)
            if any(count[change.module, change.name] for _, change in trial):
                yield trial

    def counts(self, owner: nn.Module, attribute: str, start: _Reached) -> bool:
        """Whether the module, without that attribute, does not fail in the very same way."""
        before, self.known.taken_out = self.known.taken_out, attribute.rpartition(".")[2]
        with without(owner, attribute) as it_is_out:
            try:
                if it_is_out:
                    self.again()
            except Exception as error:
                return str(error) != str(start.error) or self.operations() != start.operations
            finally:
                self.known.taken_out = before
        return True

    def least(self, edits: list[_Edit], out: Any) -> tuple[list[_Edit], Any]:
        """Of the changes that let the module run, those that it needs (others only happen to have the same value); and
        what it then returns."""
        if len(edits) == 1:
            return edits, out
        for edit in list(edits):
            _unset([edit])
            try:
                self.again()
            except Exception:
                _set([edit])
            else:
                edits.remove(edit)
        return edits, self.again()


class _Reached(NamedTuple):
    """How far a module runs with some changes."""

    made: list[_Edit]
    error: Exception
    operations: list[Any]


def _furthest(ends: list[_Reached], n: int) -> list[_Reached]:
    """Up to `n`, of which each changes other attributes."""
    found: dict[tuple[str, ...], _Reached] = {}
    for end in sorted(ends, key=lambda end: -len(end.operations)):
        found.setdefault(tuple(change.module + change.name for _, change in end.made), end)
    return list(found.values())[:n]


def _set(edits: list[_Edit]) -> None:
    for owner, change in edits:
        put(owner, change.name, change.after)


def _unset(edits: list[_Edit]) -> None:
    for owner, change in reversed(edits):
        put(owner, change.name, change.before)


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _candidates(
    module: nn.Module,
    name: str,
    error: Exception,
    seen: list[Any],
    given: list[tuple[int, int]],
    context: Student,
    helped: set[tuple[type, str]],
) -> Iterator[list[_Edit]]:
    """What to try, the likeliest first: attributes that helped in modules of this class, then those whose value the
    last operations were given: those of the last one, each by itself and all of them, then those before; then those
    that are as a size of what the module was `given` had been, against which code may check it."""
    if stated := _stated(error):
        seen = [*seen, stated]
    order: dict[int, int] = {}
    for age, (_, numbers) in enumerate(reversed(seen)):
        for n in numbers:
            order.setdefault(n, age)
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
    held = kept(module, context.passed_on)
    # A width that the code puts together (`self.config.heads * self.head_dim`).
    for a, b in itertools.combinations({v for v in held.values() if is_number(v) and v > 1}, 2):
        if a * b in latest:
            order.setdefault(a, len(seen))
            order.setdefault(b, len(seen))
    found: list[_Found] = []
    for attribute, value in held.items():
        values = [value] if is_number(value) else list(value)
        if any(v in order for v in values):
            # Of a list, all values are expected.
            age = max(order.get(v, len(order)) for v in values)
            found.append(((type(module), attribute) not in helped, age, attribute, value))
    found.sort(key=lambda f: f[:3])
    factors = list(dict.fromkeys([*_factors(error, context), *(after / before for before, after in given)]))
    last = [f for f in found if f[1] == 0]
    numbers = dict.fromkeys(v for _, _, _, v in last if is_number(v))
    earlier = [f for f in found if f[1] > 0]
    trials = itertools.chain(
        _one_by_one(module, name, [f for f in found if not f[0]], factors, seen),
        _one_by_one(module, name, [f for f in last if is_number(f[3])], factors, seen),
        _everywhere(module, name, numbers, factors, context),
        _together(module, name, last, factors),
        _one_by_one(module, name, [f for f in last if not is_number(f[3])], factors, seen),
        _one_by_one(module, name, earlier, factors, seen),
        _everywhere(module, name, dict.fromkeys(v for _, _, _, v in earlier if is_number(v)), factors, context),
        _of_children(module, name, order, factors, seen, context),
    )
    yield from itertools.islice(_distinct(trials), _TRIES)


#: A change, and the module that it is of.
_Edit = tuple[nn.Module, Change]

#: Whether an attribute has not helped before, how many operations ago its value was seen; its name, and value.
_Found = tuple[bool, int, str, Any]


def _distinct(trials: Iterable[list[_Edit]]) -> Iterator[list[_Edit]]:
    seen: set[str] = set()
    for trial in trials:
        key = repr([change for _, change in trial])
        if key not in seen:
            seen.add(key)
            yield trial


def _one_by_one(
    module: nn.Module, name: str, found: list[_Found], factors: list[float], seen: list[Any]
) -> Iterator[list[_Edit]]:
    for _, _, attribute, value in found:
        for after in _scaled(value, factors, seen):
            yield [(module, Change(name, attribute, value, after))]


def _everywhere(
    module: nn.Module, name: str, numbers: Iterable[int], factors: list[float], context: Student
) -> Iterator[list[_Edit]]:
    """A number wherever the module and its children keep it: these may be asked by other ways than their forward."""
    owners = [(name, module), *_children(module, name)]
    for number, f in itertools.product(numbers, factors):
        if abs(number * f - round(number * f)) > 1e-9:
            continue
        edits: list[_Edit] = []
        for path, owner in owners:
            for attribute, value in kept(owner, context.passed_on).items():
                each = [value] if is_number(value) else value
                grown = [round(number * f) if v == number else v for v in each]
                if number in each:
                    after = grown[0] if is_number(value) else type(value)(grown)
                    edits.append((owner, Change(path, attribute, value, after)))
        if len(edits) > 1:
            yield edits


def _children(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Those of a user's own, also in torch's lists and sequences."""
    for child, m in module.named_children():
        path = f"{name}.{child}" if name else child
        if _users(m):
            yield path, m
        elif isinstance(m, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            yield from _children(m, path)


def _of_children(
    module: nn.Module, name: str, order: dict[int, int], factors: list[float], seen: list[Any], context: Student
) -> Iterator[list[_Edit]]:
    """Numbers that children keep and this module goes by (how wide the state is that a cell begins with): of all
    children that have the same, and of each."""
    found = []
    for path, child in _children(module, name):
        for attribute, value in kept(child, context.passed_on).items():
            if is_number(value) and value in order:
                found.append((order[value], path, child, attribute, value))
    found.sort(key=lambda f: f[0])
    yield from _everywhere(module, name, dict.fromkeys(f[-1] for f in found), factors, context)
    for _, path, child, attribute, value in found:
        yield from _one_by_one(child, path, [(False, 0, attribute, value)], factors, seen)


def _together(module: nn.Module, name: str, found: list[_Found], factors: list[float]) -> Iterator[list[_Edit]]:
    """The sizes that a split is into, say, which are kept one by one."""
    numbers = [(attribute, value) for _, _, attribute, value in found if is_number(value)][:_DEPTH]
    for size in range(len(numbers), 1, -1):
        for f, some in itertools.product(factors, itertools.combinations(numbers, size)):
            if all(abs(value * f - round(value * f)) < 1e-9 for _, value in some):
                yield [(module, Change(name, attribute, value, round(value * f))) for attribute, value in some]


def _stated(error: Exception) -> tuple[int, tuple[int, ...]] | None:
    """The elements and sizes that an error tells of, which was raised before there was an operation to be seen."""
    found = re.search(r"shape '\[(.*)\]' is invalid for input of size (\d+)", str(error))
    if found:
        return int(found[2]), tuple(int(n) for n in found[1].split(","))
    stated = tuple(int(n) for n in re.findall(r"(?<![\w.])\d+(?![\w.])", str(error)))
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
