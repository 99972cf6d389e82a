"""Configurations: frozen dataclasses whose fields say what they mean and which values they take.

From one declaration come the options of the command line, their help, and the JSON that is saved with a run. A
configuration has sections, which are dataclasses, with fields whose names are unlike in all sections.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import Any, TypeVar

C = TypeVar("C")


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    changeable: bool = False,
    joined: str | None = None,
) -> Any:
    """A field with this default. `changeable`: a run that goes on may have another value, it makes no difference.
    `joined`: the command line may give a text several times, joined by this it is the value."""
    metadata = {"help": help, "least": least, "most": most, "above": above, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata={**metadata, "changeable": changeable, "joined": joined})


class Section:
    """Base class of sections: the values are checked when one is made.

    Raises:
        ValueError: a value is out of range or of another type; the message names it.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            checked(field.name, getattr(self, field.name), field, *_plain(_types(type(self))[field.name]))


def leaves(cls: type) -> dict[str, tuple[str, Field[Any], type, bool]]:
    """Of every field in a section: the section's name, the field, its type (str, int, float, bool), whether it may be
    None."""
    found = {}
    for section, kind in _types(cls).items():
        for field in dataclasses.fields(kind):
            found[field.name] = (section, field, *_plain(_types(kind)[field.name]))
    return found


def add_arguments(parser: argparse.ArgumentParser, cls: type, *, defaults: bool = True) -> None:
    """One option for every field; those that are not given are absent from what is parsed.

    `defaults`: the help tells the fields' own.
    """
    groups = {name: parser.add_argument_group(name) for name in _types(cls)}
    for name, (section, field, kind, _) in leaves(cls).items():
        about = field.metadata
        default = "automatic" if field.default is None else "none" if field.default == "" else field.default
        text = (f"{about['help']} (default: {default})" if defaults else about["help"]).replace("%", "%%")
        flag = "--" + name.replace("_", "-")
        if kind is bool:
            groups[section].add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            metavar = None if about["choices"] else {int: "N", float: "X", str: "TEXT"}[kind]
            action = "store" if about["joined"] is None else "append"
            groups[section].add_argument(
                flag,
                action=action,
                type=kind,
                choices=about["choices"],
                default=argparse.SUPPRESS,
                metavar=metavar,
                help=text,
            )


def given(cls: type, args: argparse.Namespace) -> dict[str, Any]:
    """The options of `cls` that the command line gave."""
    values = {}
    for name, (_, field, _, _) in leaves(cls).items():
        if hasattr(args, name):
            value, joined = getattr(args, name), field.metadata["joined"]
            values[name] = value if joined is None else joined.join(value)
    return values


def override(config: C, values: Mapping[str, Any]) -> C:
    """`config` with other values, by the names of fields.

    Raises:
        ValueError: there is no such field, or it cannot have this value; names the field and the value.
    """
    known = leaves(type(config))
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{name} (={value!r}) is not an option; there are {', '.join(known)}")
        sections.setdefault(known[name][0], {})[name] = checked(name, value, *known[name][1:])
    changed = {s: dataclasses.replace(getattr(config, s), **fields) for s, fields in sections.items()}
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


def to_json(config: Any) -> dict[str, dict[str, Any]]:
    """Section by section, every field with its value."""
    return dataclasses.asdict(config)


def from_json(cls: type[C], document: Any) -> C:
    """The configuration that `to_json` wrote; fields that are missing have their defaults.

    Raises:
        ValueError: a section or field is unknown, or a value is out of range; names it.
    """
    values: dict[str, Any] = {}
    known = leaves(cls)
    if not isinstance(document, dict):
        raise ValueError(f"a configuration (={document!r}) must be an object with sections")
    for section, fields in document.items():
        if section not in _types(cls) or not isinstance(fields, dict):
            raise ValueError(f"section {section!r} is unknown; there are {', '.join(_types(cls))}")
        for name, value in fields.items():
            if name not in known or known[name][0] != section:
                raise ValueError(f"{section}.{name} (={value!r}) is unknown")
            values[name] = value
    return override(cls(), values)


def check_unchanged(before: Any, now: Any) -> None:
    """ValueError, naming it, if a value differs between two configurations of a class that is not changeable."""
    there, here = to_json(before), to_json(now)
    for name, (section, field, _, _) in leaves(type(now)).items():
        if there[section][name] != here[section][name] and not field.metadata["changeable"]:
            raise ValueError(
                f"--{name.replace('_', '-')} (={here[section][name]!r}) is {there[section][name]!r} in the run that is "
                "to be resumed"
            )


def checked(name: str, value: Any, field: Field[Any], kind: type, optional: bool) -> Any:
    """`value`, as the field's type; ValueError if it does not fit."""
    if value is None and optional:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} (={value!r}) must be of type {kind.__name__}")
    about = field.metadata
    if about["choices"] and value not in about["choices"]:
        raise ValueError(f"{name} (={value!r}) must be one of {', '.join(about['choices'])}")
    for limit, words, fits in (
        (about["least"], "at least", lambda a, b: a >= b),
        (about["most"], "at most", lambda a, b: a <= b),
        (about["above"], "above", lambda a, b: a > b),
        (about["below"], "below", lambda a, b: a < b),
    ):
        # "not fits": a NaN fits nothing
        if limit is not None and not fits(value, limit):
            raise ValueError(f"{name} (={value}) must be {words} {limit}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} (={value}) must be finite")
    return value


def _types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _plain(annotation: Any) -> tuple[type, bool]:
    """`int | None` is (int, True)."""
    if isinstance(annotation, types.UnionType):
        kinds = [a for a in typing.get_args(annotation) if a is not type(None)]
        return kinds[0], True
    return annotation, False
