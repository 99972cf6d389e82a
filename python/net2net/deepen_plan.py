"""DeepenPlan: a deepening step as data."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from net2net import activations, new_layer_shards, new_layers, plan_fields
from net2net.activations import Activation
from net2net.blocks import Repetition
from net2net.launches import Entry, Law
from net2net.modules import Chain
from net2net.new_layers import Insertion
from net2net.plan import GrowthPlan
from net2net.plan_parts import Copy, Fresh, Inventory, Skipped, module_of

#: The wrapped module's name within the module that takes its place.
LAYER = "layer"


class DeepenPlan(GrowthPlan):
    """A deepening step.

    Attributes:
        insertions: the places, and what is inserted there.
        repetitions: the residual blocks that are repeated.
        inserted: names, in the student, of the new layers and blocks.
    """

    kind = "deepen"

    def __init__(
        self,
        inventory: Inventory,
        skipped: list[Skipped],
        insertions: list[Insertion],
        repetitions: list[Repetition] | None = None,
    ) -> None:
        super().__init__(inventory, skipped)
        self.insertions = insertions
        self.repetitions = repetitions or []
        self._places: list[Insertion | Repetition] = [*self.insertions, *self.repetitions]
        self._wrapped = {p.module for p in self._places}

    @property
    def inserted(self) -> list[str]:
        return [f"{self._renamed(p.module, own=True)}.{name}" for p in self._places for name in p.names()]

    def summary(self) -> str:
        layers = sum(len(i.kernel_sizes) for i in self.insertions)
        blocks = sum(r.count for r in self.repetitions)
        what = [f"{n} new {kind}" for n, kind in ((layers, "layers"), (blocks, "blocks")) if n]
        lines = [f"deepen: {' and '.join(what)} at {len(self._places)} places"]
        width = max([len(p.module) for p in self._places], default=0)
        for i in self.insertions:
            kernels = ", ".join("x".join(map(str, k)) if k else "linear" for k in i.kernel_sizes)
            exact = "" if i.norm is None else ", eval" if i.mean is None else ", eval and train"
            activation = f" through {i.activation.name}" if i.method == "paired" and i.activation else ""
            lines.append(f"  {i.module:<{width}}  {i.channels:>5} channels: {i.method} {kernels}{activation}{exact}")
        for r in self.repetitions:
            lines.append(f"  {r.module:<{width}}  {r.count} more, with zeros in {', '.join(r.zeroed)}")
        lines += [f"  left alone: {s}" for s in self.skipped]
        return "\n".join(lines)

    def student_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def _numbers(self) -> int:
        new = sum(insertion.numbers() for insertion in self.insertions)
        for repetition in self.repetitions:
            own = [shape for name, shape in self.shapes.items() if name.startswith(f"{repetition.module}.")]
            new += repetition.count * sum(map(math.prod, own))
        return super()._numbers() + new

    def _law(self, entry: Entry) -> Law:
        return Law()

    def _finish(self, student: nn.Module) -> None:
        examples = {i.module: _weight(student, i.layer) for i in self.insertions}
        for place in self._places:
            module_of(student, place.module)
        # Inner modules first, so that a wrapped module may stand within another one.
        for place in sorted(self._places, key=lambda p: p.module.count("."), reverse=True):
            parent, _, child = place.module.rpartition(".")
            owner = student.get_submodule(parent)
            wrapped = getattr(owner, child)
            layers: dict[str, nn.Module] = {}
            kind: type[nn.Module] = nn.Sequential
            if isinstance(place, Insertion):
                layers.update(new_layers.build(place, examples[place.module]))
            else:
                layers.update({name: place.copy_of(wrapped) for name in place.names()})
                kind = Chain if place.several else nn.Sequential
            before = isinstance(place, Insertion) and place.before
            parts = {**layers, LAYER: wrapped} if before else {LAYER: wrapped, **layers}
            box = kind(OrderedDict(parts))
            box.training = wrapped.training
            for layer in layers.values():
                layer.train(wrapped.training)
            setattr(owner, child, box)

    def _fill(self, student: nn.Module) -> None:
        self._fill_places(student, new_layers.fill)

    def _fill_shards(self, student: nn.Module) -> None:
        self._fill_places(student, new_layer_shards.fill)

    def _fill_places(self, student: nn.Module, fill: Callable[[list[tuple[Insertion, int, nn.Module]]], None]) -> None:
        new: list[tuple[Insertion, int, nn.Module]] = []
        # Inner blocks first, for outer ones are copied with them.
        for place in sorted(self._places, key=lambda p: p.module.count("."), reverse=True):
            box = student.get_submodule(self._renamed(place.module, own=True))
            layers = [box.get_submodule(name) for name in place.names()]
            if isinstance(place, Insertion):
                new += [(place, i, layer) for i, layer in enumerate(layers)]
            else:
                for layer in layers:
                    place.fill(layer, box.get_submodule(LAYER))
        fill(new)

    def _renamed(self, name: str, own: bool = False) -> str:
        """A teacher name in the student; `own`: the name of the module that takes a wrapped module's place."""
        parts = name.split(".")
        renamed = []
        for depth, part in enumerate(parts, 1):
            renamed.append(part)
            if ".".join(parts[:depth]) in self._wrapped and not (own and depth == len(parts)):
                renamed.append(LAYER)
        return ".".join(renamed)

    def _copies(self, names: Iterable[str]) -> dict[str, Copy]:
        copies = {}
        names = list(names)
        for repetition in self.repetitions:
            box = self._renamed(repetition.module, own=True)
            prefix = f"{repetition.module}."
            own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            for name in repetition.names():
                for key in own:
                    copies[f"{box}.{name}.{key}"] = Copy(prefix + key, key in repetition.zeroed)
        return copies

    def _fresh(self, tensors: Mapping[str, Tensor]) -> list[Fresh]:
        fresh = []
        for insertion in self.insertions:
            box = self._renamed(insertion.module, own=True)
            # A computed weight (weight normalisation) is not in a state dict; any tensor tells dtype and device then.
            floating = (t for t in tensors.values() if t.is_floating_point())
            example = tensors.get(f"{insertion.layer}.weight", next(floating, torch.zeros(())))
            for i, name in enumerate(insertion.names()):
                make = partial(new_layers.tensors, insertion, i, f"{box}.{name}")
                like = make(torch.empty((), dtype=example.dtype, device="meta"))
                fresh.append(Fresh(like, partial(make, example)))
        return fresh

    def _neighbours(self) -> dict[str, list[str]]:
        near = {}
        for insertion in self.insertions:
            box = self._renamed(insertion.module, own=True)
            layers = new_layers.build(insertion, torch.empty((), device="meta"))
            # Whatever else a layer's weight is computed of.
            others = [name for name in self.shapes if name.startswith(f"{insertion.layer}.")]
            for name, layer in layers.items():
                for key, _ in layer.named_parameters():
                    # Of the same kind if there is one, else the layer's weight: no new parameter may be left untrained.
                    part, _, leaf = key.partition(".")
                    old = insertion.norm if part == "norm" else insertion.layer
                    kin = [f"{old}.{leaf}", f"{old}.weight", f"{insertion.layer}.weight"]
                    near[f"{box}.{name}.{key}"] = [*kin, *others]
        for repetition in self.repetitions:
            box = self._renamed(repetition.module, own=True)
            own = [name for name in self.shapes if name.startswith(f"{repetition.module}.")]
            for name in repetition.names():
                for full in own:
                    near[f"{box}.{name}.{full.removeprefix(f'{repetition.module}.')}"] = [full, *own]
        return near

    # -- files -------------------------------------------------------------------------------------------------------

    def _body(self) -> dict[str, Any]:
        return {
            "insertions": [asdict(i) for i in self.insertions],
            "repetitions": [asdict(r) for r in self.repetitions],
        }

    @classmethod
    def _from_body(cls, body: dict[str, Any], inventory: Inventory, skipped: list[Skipped]) -> DeepenPlan:
        insertions = [_insertion(given, inventory) for given in body["insertions"]]
        repetitions = [_repetition(given, inventory) for given in body["repetitions"]]
        modules = [i.module for i in insertions] + [r.module for r in repetitions]
        for module, times in Counter(modules).items():
            if times > 1:
                raise ValueError(f"{module} is a place {times} times")
        for repetition in repetitions:
            for module in modules:
                if module.startswith(f"{repetition.module}."):
                    raise ValueError(f"{module} is a place within {repetition.module}, which is repeated")
        return cls(inventory, skipped, insertions, repetitions)


def _insertion(given: dict[str, Any], inventory: Inventory) -> Insertion:
    fields = dict(given)
    fields["kernel_sizes"] = [plan_fields.wholes("a size of kernel_sizes", k, 1) for k in given["kernel_sizes"]]
    if given["activation"] is not None:
        fields["activation"] = activation = Activation(**given["activation"])
        activations.check(activation)
    insertion = Insertion(**fields)
    insertion.check()
    if not any(name.startswith(f"{insertion.layer}.") for name in (*inventory.shapes, *inventory.aliases)):
        raise ValueError(f"layer (={insertion.layer!r}) of {insertion.module} has no tensors among the plan's shapes")
    return insertion


def _repetition(given: dict[str, Any], inventory: Inventory) -> Repetition:
    repetition = Repetition(**given)
    module = plan_fields.name("module of repetitions", repetition.module)
    plan_fields.whole(f"count of {module}", repetition.count, 1, plan_fields.MOST_COPIES)
    plan_fields.flag(f"several of {module}", repetition.several)
    for name in plan_fields.texts(f"zeroed of {module}", repetition.zeroed, 1):
        if f"{module}.{name}" not in {**inventory.shapes, **inventory.aliases}:
            raise ValueError(f"{module} has no parameter {name}, which is to be zero in its copies")
    return repetition


def _weight(model: nn.Module, layer: str) -> Tensor:
    """The weight of the layer that new ones are to be like; ValueError if there is none."""
    weight = getattr(module_of(model, layer), "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise ValueError(f"{layer} in model has no weight, for which this plan was made")
    return weight
