"""What a run measures: every case with every contender that can do it here, and the rooflines of the cases' mixes."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from cases import Case, Growth, cases
from ours import BACKENDS, OURS, Contender, unusable
from peers import PEERS
from rooflines import ALWAYS, Roofline, roofline_of


@dataclass(frozen=True)
class Measurement:
    """One line of the results: a case (None: a roofline is measured), who does it and how it is called."""

    op: str
    case: Case | None
    subject: str  # the case's name, or the roofline's
    contender: str
    call: str
    ours: bool
    calls: Callable[[Any], Iterator[Callable[[], Any]]]
    roofline: Roofline

    @property
    def id(self) -> str:
        return f"{self.op}: {self.subject}: {self.contender} {self.call}"


def measurements(size: str, only: str, device: torch.device) -> list[Measurement]:
    """Rooflines first, then the cases in the table's order.

    Args:
        size: of the run, one of `cases.SIZES`.
        only: a regular expression; what it does not occur in (`Measurement.id`) is left out, rooflines excepted.
        device: where the tensors are.

    Raises:
        ValueError: `only` is no regular expression, or nothing is left.
    """
    try:
        wanted = re.compile(only)
    except re.error as error:
        raise ValueError(f"only (={only!r}) is no regular expression: {error}") from error
    found = [m for case in cases(size, device) for m in _of(case, size, device) if wanted.search(m.id)]
    if not found:
        raise ValueError(f"only (={only!r}) leaves nothing to measure: it occurs in no 'op: case: contender call'")
    rooflines = dict.fromkeys([*ALWAYS, *(m.roofline for m in found)])
    return [_roofline(roofline) for roofline in rooflines] + found


def left_out(size: str, device: torch.device) -> dict[str, str]:
    """What a run does not have, with the reason."""
    reasons = {backend: reason for backend in BACKENDS if (reason := unusable(backend, device)) is not None}
    return reasons | ({"compiled": UNCOMPILED[size]} if size in UNCOMPILED else {})


#: Compiling takes seconds for each case.
UNCOMPILED = {
    "check": "a check compiles nothing",
    "quick": "a quick run compiles for the main cases of one shape alone",
}


def _compiles(size: str, case: Case) -> bool:
    return size == "full" or (size == "quick" and case.check and len(case.shapes) == 1)


def _of(case: Case, size: str, device: torch.device) -> list[Measurement]:
    roofline = roofline_of(case.read, case.written)
    contenders: list[tuple[str, str, bool, Contender]] = [
        (backend, call, True, calls)
        for backend in BACKENDS
        if unusable(backend, device) is None
        for call, calls in OURS[case.op](backend, device).items()
    ]
    if not (isinstance(case, Growth) and case.noise):  # torch has no such noise to compare with
        contenders += [
            (name, call, False, calls)
            for (name, call), calls in PEERS[case.op](device).items()
            if name != "compiled" or _compiles(size, case)
        ]
    return [
        Measurement(case.op, case, case.name, name, call, ours, calls, roofline)
        for name, call, ours, calls in contenders
    ]


def _roofline(roofline: Roofline) -> Measurement:
    return Measurement("roofline", None, roofline.name, "torch", "call", False, roofline.contender, roofline)
