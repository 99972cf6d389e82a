"""plan_fields: what a plan's file says, checked field by field.

A file may come from anyone, and what is well-formed JSON may still be text where a number belongs, or a number that no
memory has room for. Each function returns what it is given, or raises a ValueError that calls it `what`. Lists may be
tuples: a checkpoint's growth log may be a pickle.
"""

from __future__ import annotations

from typing import Any

import torch

#: So many copies of a block may a plan make.
MOST_COPIES = 2**12

#: So many numbers may any student have; and so many times the teacher's, if that is more.
MOST_NUMBERS, MOST_TIMES = 2**31, 2**10

_LARGEST = torch.finfo(torch.float32).max


def whole(what: str, value: Any, least: int = 0, most: int = 2**63 - 1) -> int:
    """A whole number, neither a bool nor a float, of at least `least` and at most `most`."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} (={_shown(value)}) must be a whole number in [{least}, {most}]")
    return value


def wholes(what: str, value: Any, least: int = 0) -> tuple[int, ...]:
    """A list of such numbers, as a tuple."""
    if type(value) not in (list, tuple):
        raise ValueError(f"{what} (={_shown(value)}) must be a list of whole numbers")
    return tuple(whole(what, n, least) for n in value)


def number(what: str, value: Any, least: float = -_LARGEST, most: float = _LARGEST) -> float:
    """A number in [`least`, `most`], as it is: it stays an int if it is one, which must be exact as a float."""
    known = type(value) is float or (type(value) is int and abs(value) <= 2**53)
    if not known or not least <= value <= most:
        raise ValueError(f"{what} (={_shown(value)}) must be a number in [{least:g}, {most:g}]")
    return float(value) if type(value) is float else int(value)


def flag(what: str, value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{what} (={_shown(value)}) must be true or false")
    return value


def text(what: str, value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{what} (={_shown(value)}) must be a text")
    return value


def name(what: str, value: Any) -> str:
    """A text that is not empty."""
    if not text(what, value):
        raise ValueError(f"{what} (='') must not be empty")
    return str(value)


def texts(what: str, value: Any, least: int = 0) -> list[str]:
    """A list of at least so many texts."""
    if type(value) not in (list, tuple) or len(value) < least:
        raise ValueError(f"{what} (={_shown(value)}) must be a list of texts, at least {least}")
    return [text(what, v) for v in value]


def check_growth(what: str, before: int, after: int) -> None:
    """ValueError if a student with `after` numbers is more than can be meant, of a teacher with `before`."""
    if after > max(MOST_NUMBERS, MOST_TIMES * before):
        raise ValueError(f"{what} would make {after:,} numbers of {before:,}: more than any growth step is for")


def _shown(value: Any) -> str:
    """A value as an error shows it, however long it is."""
    try:
        shown = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of very many digits"
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
