"""repair: numbers that user code keeps in attributes (`num_heads`, `hidden_dim`, split sizes) and that must grow with
the widths.

Where the student's forward fails within a module, changes of that module's own numbers are tried (see `candidates`),
one at a time, then several, and the module is run again.
Nonsense does not survive: every value of the student must be one of the teacher's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

from net2net import snapshots
from net2net.candidates import candidates, first_of
from net2net.changes import Change, Changes, Edit, children, of_users, put_in, take_back
from net2net.context import TraceError
from net2net.hashes import digest
from net2net.kept_numbers import kept, records_in, shared, without
from net2net.skeleton import each_module
from net2net.student import Student

#: How many changes one after the other let a module run; with how many of those that led furthest it goes on, and how
#: often in all.
_DEPTH, _WAYS, _STEPS = 4, 2, 8


def attach(model: nn.Module, context: Student, records: bool = True) -> Changes:
    """Lets the modules of `model`, our own copy of a student, mend their attributes as they run; returns what collects
    their changes.

    Args:
        records: whether numbers of records may change (configurations, say).
    """
    known = _Known()
    seen = {id(m): name for name, m in reversed(list(model.named_modules()))}
    context.fixed = {at for at, v in shared(model).items() if type(v) is dict} | (
        set() if records else records_in(model)
    )
    for module in each_module(model):
        if of_users(module) and (kept(module) or any(kept(m) for _, m in children(module, ""))):
            module.forward = _guarded(module, seen[id(module)], context, known)
    return known.changes


def detach(model: nn.Module) -> None:
    """From here on modules run as they are."""
    for module in each_module(model):
        if (own := getattr(vars(module).get("forward"), "instead_of", None)) is not None:
            module.forward = own


class _Known:
    """What is known of a model's modules from those that were run before."""

    def __init__(self) -> None:
        self.changes = Changes()
        #: The attributes that helped in modules of a class.
        self.helped: set[tuple[type, str]] = set()
        #: How far modules came that could not be mended. (One around it is run again and again, and it fails again.)
        self.failed: dict[tuple[bytes, bytes], _Reached] = {}
        #: The attribute that is taken out to see what comes of it.
        self.taken_out = ""
        #: Classes for which a second way helped no more than the first.
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
        numbers = digest([kept(m) for _, m in ((name, module), *children(module, name))])
        end = known.failed.get((case, b"")) or known.failed.get((case, numbers)) or attempt.mended(first, 0)
        if not isinstance(end, _Reached):
            made, out = end
            known.changes.add(change for _, change in made)
            known.helped.update((type(owner), change.name) for owner, change in made)
            return out
        attempt.rewind()
        # What did not come further does not with other numbers that it has not come to either.
        known.failed[case, numbers if end.made else b""] = end
        # What brought the run further was right: what is wrong there is what counts.
        context.seen.extend(end.operations)
        raise end.error

    run.instead_of = forward  # type: ignore[attr-defined]
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
        self.put_back, self.steps = snapshots.taken((args, kwargs)), 0

    def operations(self) -> list[Any]:
        """Those that it came to."""
        return self.context.seen[self.since :]

    def rewind(self) -> None:
        self.put_back()
        self.context.restore(self.state)
        del self.context.seen[self.since :]

    def again(self) -> Any:
        self.rewind()
        try:
            return self.call()
        except Exception as error:
            self.context.mark(error)
            raise

    def mended(self, start: _Reached, depth: int) -> tuple[list[Edit], Any] | _Reached:
        """The changes that let the module run, those made before among them, and what it then returns; or else how far
        it has come."""
        self.steps += 1
        if depth == _DEPTH or self.steps > _STEPS:
            return start
        further: list[_Reached] = []
        for trial in self.trials(start):
            put_in(trial)
            try:
                out = self.again()
            except Exception as error:
                take_back(trial)
                reached = _Reached([*start.made, *trial], error, self.operations())
                if reached.progress() > start.progress():
                    further.append(reached)
            else:
                return self.least([*start.made, *trial], out)
        # None is enough by itself. What led furthest stays, and another one is looked for.
        ends: list[_Reached] = []
        for best in _furthest(further, 1 if type(self.module) in self.known.one_way else _WAYS):
            trial = best.made[len(start.made) :]
            put_in(trial)
            end = self.mended(best, depth + 1)
            if not isinstance(end, _Reached):
                return end
            take_back(trial)
            ends.append(end)
        if len(ends) > 1 and depth == 0:
            self.known.one_way.add(type(self.module))
        return _furthest(ends, 1)[0] if ends else start

    def trials(self, start: _Reached) -> Iterator[list[Edit]]:
        """The candidates of which an attribute counts. (One of several may only count where the others are right.)"""
        given = [] if isinstance(start.error, TraceError) else self.context.grown_sizes(self.state)
        known: dict[tuple[str, str], bool] = {}

        def counts(owner: nn.Module, change: Change) -> bool:
            if (key := (change.module, change.name)) not in known:
                known[key] = self.counts(owner, change.name, start)
            return known[key]

        def helped(trial: list[Edit]) -> bool:
            return len(trial) == 1 and (type(trial[0][0]), trial[0][1].name) in self.known.helped

        before = {(change.module, change.name) for _, change in start.made}
        how = start.error, start.operations, given, self.context, self.known.helped, counts
        for trial in first_of(candidates(self.module, self.name, *how)):
            again = any((change.module, change.name) in before for _, change in trial)
            if not again and (helped(trial) or any(counts(owner, change) for owner, change in trial)):
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

    def least(self, edits: list[Edit], out: Any) -> tuple[list[Edit], Any]:
        """Of the changes that let the module run, those that it needs (others only happen to have the same value); and
        what it then returns."""
        if len(edits) == 1:
            return edits, out
        for edit in list(edits):
            take_back([edit])
            try:
                self.again()
            except Exception:
                put_in([edit])
            else:
                edits.remove(edit)
        return edits, self.again()


class _Reached(NamedTuple):
    """How far a module runs with some changes."""

    made: list[Edit]
    error: Exception
    operations: list[Any]

    def progress(self) -> tuple[int, int]:
        """How many operations it did, and came to: the error may be of the last one, or come before the next one."""
        return len(self.operations) - getattr(self.error, "in_operation", False), len(self.operations)


def _furthest(ends: list[_Reached], n: int) -> list[_Reached]:
    """Up to `n`, of which none changes what another one changes, and more."""
    found: dict[frozenset[str], _Reached] = {}
    for end in sorted(sorted(ends, key=lambda end: len(end.made)), key=_Reached.progress, reverse=True):
        changed = frozenset(change.module + change.name for _, change in end.made)
        if not any(changed >= other for other in found):
            found[changed] = end
    return list(found.values())[:n]
