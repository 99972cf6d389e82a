"""caches: dicts in which modules keep what they make of their own parameters in the first run, for the next ones.

LeViT and its relatives do so with tables of attention biases, by device. A student must begin without them: they are as
wide as the teacher's. What a forward puts into a dict anew in every run is no cache, but given away to others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from net2net.outputs import OWN
from net2net.running import Inputs, call, computed
from net2net.skeleton import own_random_state, skeleton


class Place(NamedTuple):
    """An attribute of a module, by the module's name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.module else self.name


class Caches:
    """The caches of one model. ValueError if there can be none at `places`, which may come from a file: attributes of
    the modules' own (not of their classes, which others share), that are plain dicts of plain tensors."""

    def __init__(self, model: nn.Module, places: Sequence[Place] = ()) -> None:
        modules = dict(model.named_modules(remove_duplicate=False)) if places else {}
        self._at: list[tuple[nn.Module, str]] = []
        for place in places:
            module, name = modules.get(place.module), place.name
            if module is None or not _may_be(name, vars(module).get(name)):
                raise ValueError(
                    f"model has no dict {place}, which this plan empties: a module's own, of tensors alone"
                )
            self._at.append((module, name))

    def dicts(self) -> list[dict[Any, Any]]:
        return [vars(module)[name] for module, name in self._at]

    def clear(self) -> None:
        for held in self.dicts():
            held.clear()


def find(model: nn.Module, inputs: Inputs) -> list[Place]:
    """The dicts that the forward of `model` fills where it finds them empty, and then leaves as they are. Copies of the
    model, without weights, are run in evaluation mode."""
    candidates = list(_candidates(model))
    if not candidates:
        return []
    copy = skeleton(model, lambda _name, t: t.shape)
    caches = Caches(copy, candidates)
    caches.clear()
    try:
        with torch.no_grad(), own_random_state(copy), _ForStructure():
            call(copy, inputs)
            filled = [dict(held) for held in caches.dicts()]
            if not any(filled):
                return []
            call(copy, inputs)
    except Exception:  # whoever walks the model next will tell why; or there was something in them that it needs
        return []
    return [
        place
        for place, before, after in zip(candidates, filled, caches.dicts(), strict=True)
        if before
        and before.keys() == after.keys()
        and all(type(held) is Tensor and after[key] is held for key, held in before.items())
    ]


def _candidates(model: nn.Module) -> Iterator[Place]:
    for module_name, module in model.named_modules():
        for name, value in vars(module).items():
            if _may_be(name, value):
                yield Place(module_name, name)


def _may_be(name: str, value: Any) -> bool:
    """Whether an attribute of a module's own may be a cache."""
    return name not in OWN and type(value) is dict and all(type(v) is Tensor for v in value.values())


class _ForStructure(TorchDispatchMode):
    """Leaves out the sums over weights, which are zero anyway."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})
