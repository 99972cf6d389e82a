"""What plans are made of, whatever their kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from net2net import plan_fields
from net2net.skeleton import Tensors


@dataclass(frozen=True)
class Skipped:
    """A group of layers that stays as wide as it is, and why."""

    layers: list[str]
    units: int
    reason: str

    def __str__(self) -> str:
        more = f" (+{len(self.layers) - 1} more)" if len(self.layers) > 1 else ""
        return f"{self.layers[0]}{more}: {self.reason}"

    @staticmethod
    def read(given: dict[str, Any]) -> Skipped:
        """As a file has it; ValueError if that cannot be one."""
        return Skipped(
            plan_fields.texts("layers of skipped", given["layers"], 1),
            plan_fields.whole("units of skipped", given["units"]),
            plan_fields.text("reason of skipped", given["reason"]),
        )


@dataclass(frozen=True)
class Inventory:
    """What tensors a teacher has, so that a plan can tell whether it fits a model or a state dict.

    Attributes:
        shapes: name -> shape of every parameter and buffer, each tensor once, under the first of its names.
        aliases: the other names of tensors that are shared -> the first.
        saved: the names that a state dict has.
        parameters: so many of `shapes`, the first ones, are parameters, in the model's order; None: not known (plans
            of before).
        plain: the names of tensors among `shapes` that modules keep as plain attributes. Only those that grow are.
    """

    shapes: dict[str, tuple[int, ...]]
    aliases: dict[str, str]
    saved: frozenset[str]
    parameters: int | None = None
    plain: frozenset[str] = frozenset()

    @staticmethod
    def of(model: nn.Module, grown: Collection[str] = ()) -> Inventory:
        """
        Args:
            grown: the names of tensors that grow, among which plain attributes may be.
        """
        plain = frozenset(grown) - frozenset(Tensors.of(model).by_name) if grown else frozenset()
        tensors = Tensors.of(model, plain)
        return Inventory(
            {name: tuple(t.shape) for name, t in tensors.by_name.items()},
            tensors.aliases,
            frozenset(k for k, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)),
            len({id(p) for p in tensors.parameters.values()}),
            plain,
        )

    @staticmethod
    def read(document: dict[str, Any]) -> Inventory:
        """As a plan's file has it; ValueError if that cannot be one."""
        shapes = {name: plan_fields.wholes(f"shapes[{name!r}]", shape) for name, shape in document["shapes"].items()}
        if sorted(names := plan_fields.texts("names", document["names"])) != sorted(shapes):
            raise ValueError("the plan has other names than shapes")
        shapes = {name: shapes[name] for name in names}
        for alias, first in document["aliases"].items():
            if alias in shapes or plan_fields.text(f"aliases[{alias!r}]", first) not in shapes:
                raise ValueError(f"aliases[{alias!r}] (={first!r}) must be another name of one of the shapes")
        count, plain = document.get("parameters"), frozenset(plan_fields.texts("plain", document.get("plain", [])))
        if more := sorted(plain - set(shapes)):
            raise ValueError(f"plain has {more[0]!r}, which is not one of the shapes")
        return Inventory(
            shapes,
            dict(document["aliases"]),
            frozenset(plan_fields.texts("saved", document["saved"])),
            None if count is None else plan_fields.whole("parameters", count, 0, len(shapes)),
            plain,
        )

    def numbers(self) -> int:
        """So many the teacher has."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """ValueError if there is no such tensor."""
        if name not in self.shapes:
            raise ValueError(f"the plan is about {name}, which is not among its shapes")
        return self.shapes[name]

    def check_tensors(self, tensors: Tensors) -> None:
        """ValueError if the tensors of a model are not these."""
        shapes = {name: t.shape for name, t in tensors.by_name.items()}
        if shapes != self.shapes:
            self._check_shapes({name: tuple(s) for name, s in shapes.items()}, "model", set(self.shapes))
        if tensors.aliases != self.aliases:
            raise ValueError("model shares other parameters among its modules than the one this plan was made for")

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """ValueError if keys or shapes are not those of this model's state dict."""
        shapes = {self.aliases.get(k, k): tuple(t.shape) for k, t in state_dict.items() if isinstance(t, Tensor)}
        self._check_shapes(shapes, "state_dict", {self.aliases.get(k, k) for k in self.saved})

    def _check_shapes(self, shapes: dict[str, tuple[int, ...]], what: str, needed: set[str]) -> None:
        for name in sorted(needed):
            if name not in shapes:
                raise ValueError(f"{what} has no {name}, for which this plan was made")
        for name, shape in shapes.items():
            if name not in self.shapes:
                raise ValueError(f"{what} has {name}, which this plan does not know")
            if shape != self.shapes[name]:
                raise ValueError(f"{what}'s {name} has shape {shape}, but this plan was made for {self.shapes[name]}")


@dataclass(frozen=True)
class Copy:
    """A student's tensor that is once more the teacher's tensor `of`, or `zero` and like it."""

    of: str
    zero: bool


@dataclass(frozen=True)
class Fresh:
    """Tensors that only the student has: their names, shapes and dtypes (on the meta device), and what makes them, all
    at once."""

    like: dict[str, Tensor]
    make: Callable[[], dict[str, Tensor]]


def module_of(model: nn.Module, name: str) -> nn.Module:
    """The module of this name; ValueError if there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"model has no module {name!r}, for which this plan was made") from error
