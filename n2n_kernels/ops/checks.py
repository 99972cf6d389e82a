"""Checks on arguments that all ops share. Each raises an error that names the argument and its value.

What a fake tensor knows too (dtype, shape, device) is checked here, on every way into an op, tracing included; what
needs the memory itself in `memory`.
"""

from collections.abc import Hashable, Iterable, Sequence
from numbers import Real
from operator import attrgetter
from types import NoneType
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import dtypes

T = TypeVar("T", bound=Tensor | None)


def tensor_list(name: str, given: Iterable[T], *, optional: bool = False) -> list[T]:
    """`given` as a list of tensors (or of None, where `optional`)."""
    # A tensor is iterable too: its rows would silently be taken for the list.
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise TypeError(f"{name} (={type(given).__name__}) must be a list of tensors")
    tensors = list(given)
    # There may be a thousand tensors, but they are of two types.
    wrong = {
        kind for kind in set(map(type, tensors)) if not (issubclass(kind, Tensor) or (optional and kind is NoneType))
    }
    if wrong:
        i = next(i for i, t in enumerate(tensors) if type(t) in wrong)
        raise TypeError(f"{name}[{i}] (={type(tensors[i]).__name__}) must be a torch.Tensor{' or None' * optional}")
    return tensors


def integer_list(name: str, given: Iterable[int]) -> list[int]:
    """`given` as a list of integers."""
    if isinstance(given, Tensor | str) or not isinstance(given, Iterable):
        raise TypeError(f"{name} (={type(given).__name__}) must be a list of integers")
    integers = list(given)
    if set(map(type, integers)) == {int} and min(integers) >= -(2**63) and max(integers) < 2**63:
        return integers
    return [integer(f"{name}[{i}]", value) for i, value in enumerate(integers)]


def integer(name: str, value: object) -> int:
    """`value`, Python's or NumPy's, which must be an integer that fits int64, as the dispatcher needs; its own message
    names nothing."""
    if isinstance(value, np.integer):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} (={value!r}) must be an integer")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} (={value}) does not fit 64 bits")
    return value


def number(name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} (={value!r}) must be a number")
    return float(value)


def check_tensor(name: str, t: Tensor, *, dims: range) -> None:
    """`t` must be dense, of a supported dtype, with a number of dimensions in `dims`."""
    if t.layout != torch.strided:
        raise TypeError(f"{name}.layout (={t.layout}) must be torch.strided")
    if t.dtype not in dtypes.TABLE:
        raise TypeError(f"{name}.dtype (={t.dtype}) must be one of {dtypes.NAMES}")
    if t.dim() not in dims:
        raise ValueError(
            f"{name} has {t.dim()} dimensions (shape {tuple(t.shape)}), but must have {dims[0]} to {dims[-1]}"
        )


def check_one_device(name: str, tensors: Sequence[Tensor]) -> torch.device:
    """All tensors must be on one device, which is returned. `tensors` must not be empty."""
    device = tensors[0].device
    if len(set(map(attrgetter("device"), tensors))) > 1:
        i, other = next((i, t.device) for i, t in enumerate(tensors) if t.device != device)
        raise ValueError(f"{name}[{i}].device (={other}) differs from {name}[0].device (={device})")
    return device


def check_length(name: str, given: Sequence[object], expected: int, what: str) -> None:
    if len(given) != expected:
        raise ValueError(f"{name} has {len(given)} entries, but {what} has {expected}")


def alike(tensors: Sequence[Tensor], *more: Iterable[Hashable]) -> list[int]:
    """For each tensor the first one of the same shape, dtype, layout and device, and with the same entries in `more`:
    perhaps itself. Networks have many tensors of few kinds, of which it is enough to look at the first."""
    first: dict[Hashable, int] = {}
    keys = zip(map(attrgetter("shape", "dtype", "layout", "device"), tensors), *more, strict=True)
    try:
        return [first.setdefault(key, i) for i, key in enumerate(keys)]
    except TypeError:  # a symbolic size, while torch.compile traces, has no hash
        return list(range(len(tensors)))
