"""outputs: what a forward returned, wherever it put it."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence, Set
from types import SimpleNamespace
from typing import Any

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
    """Tensors that modules hold as plain attributes, alone or in lists, tuples and dicts other than `caches`: a forward
    may have left them there for others to read."""
    own = {id(held) for held in caches}
    for module in model.modules():
        before_each_run = {hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)}
        for name, value in vars(module).items():
            if name in OWN or name in before_each_run:
                continue
            if isinstance(value, Tensor):
                yield value
            elif id(value) not in own:
                yield from _nested(value)


def _nested(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple) and depth < _DEEP:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _nested(item, depth + 1)
