"""Texts that say when, in the course of training, a network grows, and how.

A schedule is a text with one growth per line (or separated by semicolons), `when: what`:

    step 2000: widen 1.5
    step 4000: deepen 1 after=stages.*
    epoch 10: widen 1.25 layers=stages.*,stem split=dyadic
    plateau patience=3 delta=0.001: widen 1.5
    step 100: kernel 5 layers=stem

`parse` makes typed objects of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn


@dataclass(frozen=True)
class AtStep:
    """When so many optimizer steps have been done."""

    step: int


@dataclass(frozen=True)
class AtEpoch:
    """When so many epochs have been done."""

    epoch: int


@dataclass(frozen=True)
class OnPlateau:
    """When so many evaluations in a row (`patience`) have not improved on the best one by more than `delta`.

    `mode`: whether the metric is to become smaller (`"min"`, a loss) or larger (`"max"`, an accuracy).
    """

    patience: int
    delta: float = 0.0
    mode: str = "min"


@dataclass(frozen=True)
class Widen:
    """`options`: further keyword arguments of `plan_widen`."""

    width: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `net2net.grow`."""
        return {"widen": {"width": self.width, **self.options}}


@dataclass(frozen=True)
class Deepen:
    """`options`: further keyword arguments of `plan_deepen`."""

    count: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `net2net.grow`."""
        return {"deepen": {"count": self.count, **self.options}}


@dataclass(frozen=True)
class Kernel:
    """Kernels of `size`, of the convolutions whose names fit one of the patterns `layers`."""

    size: int
    layers: tuple[str, ...]

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `net2net.grow`."""
        return {"kernel": dict.fromkeys(self.layers, self.size)}


When = AtStep | AtEpoch | OnPlateau
What = Widen | Deepen | Kernel


@dataclass(frozen=True)
class Growth:
    """An entry of a schedule, and the text that it was read from."""

    when: When
    what: What
    text: str

    def __str__(self) -> str:
        return self.text


class GrowthSyntaxError(ValueError):
    """Says what is wrong, in which entry, and where in it: `entry` counts from 1, `column` too."""

    def __init__(self, why: str, text: str, entry: int, column: int) -> None:
        super().__init__(f"growth schedule, entry {entry}, column {column}: {why}\n  {text}\n  {' ' * (column - 1)}^")
        self.entry = entry
        self.column = column


@dataclass(frozen=True)
class _Word:
    text: str
    column: int


class _Entry:
    """The words of an entry, read one after the other."""

    def __init__(self, text: str, number: int) -> None:
        self.text = text
        self.number = number
        self.words = [_Word(m.group(), m.start() + 1) for m in re.finditer(r":|[^\s:]+", text)]
        self.at = 0

    def fail(self, why: str, word: _Word | None = None) -> NoReturn:
        column = word.column if word else len(self.text) + 1
        raise GrowthSyntaxError(why, self.text, self.number, column)

    def next(self, expected: str) -> _Word:
        if self.at == len(self.words):
            self.fail(f"expected {expected}, but here is the end")
        self.at += 1
        return self.words[self.at - 1]

    def choice(self, expected: str, known: Iterable[str]) -> str:
        word = self.next(expected)
        if word.text not in known:
            self.fail(f"expected {expected} ({', '.join(known)}), not {word.text!r}", word)
        return word.text

    def value(self, name: str, read: Callable[[str], Any]) -> Any:
        word = self.next(name)
        return self.read(name, read, word, word.text)

    def read(self, name: str, read: Callable[[str], Any], word: _Word, text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            self.fail(f"{name} (={text!r}) must be {error}", word)

    def options(self, readers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
        """`name=value` up to the colon or the end."""
        found: dict[str, Any] = {}
        while self.at < len(self.words) and self.words[self.at].text != ":":
            word = self.next("an option")
            name, equals, text = word.text.partition("=")
            if not equals:
                self.fail(f"expected name=value, not {word.text!r}", word)
            if name not in readers:
                self.fail(f"there is no option {name!r} here; there are {', '.join(readers)}", word)
            if name in found:
                self.fail(f"{name} is given twice", word)
            found[name] = self.read(name, readers[name], word, text)
        return found


def _number(text: str, kind: type, least: float, what: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise ValueError(what)
    return value


def _count(text: str) -> int:
    return int(_number(text, int, 1, "a positive whole number"))


def _whole(text: str) -> int:
    return int(_number(text, int, 0, "a whole number that is not negative"))


def _amount(text: str) -> float:
    return float(_number(text, float, 0, "a number that is not negative"))


def _factor(text: str) -> float:
    value = float(_number(text, float, 1, "a factor above 1"))
    if value == 1:
        raise ValueError("a factor above 1")
    return value


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not all(names):
        raise ValueError("names or patterns, separated by commas alone")
    return names


def _word(text: str) -> str:
    if not text:
        raise ValueError("a word")
    return text


def _one_of(*known: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise ValueError("one of " + ", ".join(known))
        return text

    return read


def _when(entry: _Entry) -> When:
    kind = entry.choice("when to grow", ("step", "epoch", "plateau"))
    if kind == "step":
        return AtStep(entry.value("step", _whole))
    if kind == "epoch":
        return AtEpoch(entry.value("epoch", _whole))
    options = entry.options({"patience": _count, "delta": _amount, "mode": _one_of("min", "max")})
    if "patience" not in options:
        entry.fail("plateau needs patience=", entry.words[entry.at] if entry.at < len(entry.words) else None)
    return OnPlateau(**options)


#: What `plan_widen` and `plan_deepen` take, as far as a word can say it. They check what the words mean.
_WIDEN = {
    "layers": _names, "mapping": _word, "split": _word, "noise": _word, "noise_scale": _amount, "multiple_of": _count,
    "seed": _whole,
}  # fmt: skip
_DEEPEN = {
    "after": _names, "method": _word, "seed": _whole, "kernel_size": _count, "factor": _word, "pieces": _count,
}  # fmt: skip


def _what(entry: _Entry) -> What:
    kind = entry.choice("what to do", ("widen", "deepen", "kernel"))
    if kind == "widen":
        return Widen(entry.value("the factor", _factor), entry.options(_WIDEN))
    if kind == "deepen":
        return Deepen(entry.value("the number of layers", _count), entry.options(_DEEPEN))
    size = entry.value("the size", _count)
    options = entry.options({"layers": _names})
    if not options:
        entry.fail("kernel needs layers=")
    return Kernel(size, options["layers"])


def _growth(entry: _Entry) -> Growth:
    when = _when(entry)
    colon = entry.next("a colon")
    if colon.text != ":":
        entry.fail(f"expected a colon, not {colon.text!r}", colon)
    what = _what(entry)
    if entry.at < len(entry.words):
        entry.fail("there is one colon too many", entry.words[entry.at])
    return Growth(when, what, entry.text)


def parse_what(text: str) -> What:
    """What stands behind the colon of an entry, by itself: `widen 1.5 layers=stages.* split=dyadic`.

    Raises:
        GrowthSyntaxError: a ValueError that shows the place.
    """
    entry = _Entry(text, 1)
    what = _what(entry)
    if entry.at < len(entry.words):
        entry.fail("here should be the end", entry.words[entry.at])
    return what


def parse(text: str | Iterable[str]) -> list[Growth]:
    """The entries of a schedule, in their order.

    Args:
        text: entries separated by line ends or semicolons, or an iterable of such texts. What follows a `#` is a
            comment, empty entries do not count.

    Raises:
        GrowthSyntaxError: a ValueError that shows the entry and the place in it.
    """
    lines = [text] if isinstance(text, str) else list(text)
    for given in lines:
        if not isinstance(given, str):
            raise TypeError(f"a growth schedule is made of texts, not {given!r}")
    parts = [part.strip() for line in "\n".join(lines).splitlines() for part in line.partition("#")[0].split(";")]
    return [_growth(_Entry(part, number)) for number, part in enumerate(filter(None, parts), 1)]
