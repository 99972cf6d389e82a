"""outputs: what a forward returned, wherever it put it."""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from fractions import Fraction
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

#: What may be returned beside tensors and containers: it holds no tensor.
PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, torch.layout, type(None))


#: Containers in containers are looked into so far.
_DEEP = 8

#: What every module holds: parameters, buffers, children, hooks.
OWN = frozenset(vars(nn.Module()))


def leaves(returned: Any) -> Iterator[Any]:
    """The tensors and plain values in nested containers, dataclasses and namespaces, in order.

    Raises:
        TypeError: for an object of a type in which tensors cannot be found. To overlook one would be to widen an
            output.
    """
    if isinstance(returned, (Tensor, *PLAIN)):
        yield returned
    elif isinstance(returned, Mapping):
        for key in returned:
            yield key
            yield from leaves(returned[key])
    elif isinstance(returned, Sequence | Set):
        for item in returned:
            yield from leaves(item)
    elif dataclasses.is_dataclass(returned) or isinstance(returned, SimpleNamespace):
        yield from leaves(vars(returned))
    else:
        raise TypeError(
            f"the model returns a {type(returned).__name__}, in which outputs cannot be told apart: let it return "
            "tensors, containers or dataclasses of them (and switch off what caches keys: config.use_cache = False)"
        )


def kept(model: nn.Module, caches: Sequence[dict[Any, Any]] = ()) -> Iterator[Tensor]:
    """Tensors that modules hold as plain attributes, alone or in containers and objects other than `caches`: a forward
    may have left them there for others to read."""
    return (t for _, t in held(model, caches) if isinstance(t, Tensor))


def held(model: nn.Module, but: Sequence[object] = ()) -> Iterator[tuple[str, Any]]:
    """The tensors and plain values that modules hold as plain attributes, alone or in containers and objects other than
    `but`, by where they are. Of what several hold, it is the first place."""
    seen = {id(value) for value in but}
    for prefix, module in model.named_modules():
        made = made_before_each_run(module)
        for name, value in list(vars(module).items()):
            if name not in OWN and name not in made:
                yield from _nested(value, f"{prefix}.{name}" if prefix else name, seen, _DEEP)


def made_before_each_run(module: nn.Module) -> set[str]:
    """The attributes that a hook makes anew before each forward, of parameters alone."""
    return {hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)}


def _nested(value: Any, name: str, seen: set[int], deep: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Tensor, np.generic, np.ndarray, Fraction, *PLAIN)):
        yield name, value
        return
    items = _items(value)
    if items and deep and id(value) not in seen:
        seen.add(id(value))
        for key, item in items:
            yield from _nested(item, name + key, seen, deep - 1)


def _items(value: Any) -> list[tuple[str, Any]]:
    """What is in a container or an object."""
    if isinstance(value, dict):
        return [(f"[{key!r}]", item) for key, item in list(value.items())]
    if isinstance(value, list | tuple | deque | set | frozenset):
        return [(f"[{i}]", item) for i, item in enumerate(list(value))]
    if isinstance(value, nn.Module | type | FunctionType | MethodType | ModuleType) or _is_a_library(type(value)):
        return []
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [name for own in slots for name in ([own] if isinstance(own, str) else own) if hasattr(value, name)]
    fields = getattr(value, "__dict__", {}) | {name: getattr(value, name) for name in names}
    return [(f".{name}", item) for name, item in fields.items()]


def _is_a_library(kind: type) -> bool:
    """Whether objects of a class hold nothing of a model's: Python's own, or PyTorch's."""
    package = kind.__module__.partition(".")[0]
    return kind is not SimpleNamespace and (package in sys.stdlib_module_names or package in {"torch", "numpy"})
