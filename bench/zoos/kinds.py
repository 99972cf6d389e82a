"""What a zoo of models is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

#: An input as `net2net` takes it: a tensor, a tuple of positional arguments, a dict of keyword arguments.
Example = Any


class UnavailableError(Exception):
    """A library has a model of this name, but not in a size, or with an input, that would do here."""


class Zoo(NamedTuple):
    """{family: name of a model}, and such a model, with random weights and an input that it takes."""

    names: Callable[[], dict[str, str]]
    build: Callable[[str], tuple[nn.Module, Example]]
