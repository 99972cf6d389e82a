"""Checks on arguments that all ops share. Each raises an error that names the argument and its value.

There are two kinds. What a fake tensor knows too (dtype, shape, device) is checked on every way into an op, tracing
included; what needs the memory itself (addresses, overlaps) only where the memory is.
"""

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from numbers import Real
from operator import attrgetter
from types import NoneType
from typing import TypeVar

import torch
from torch import Tensor

from n2n_kernels import dtypes
from n2n_kernels.layout import byte_range, is_aligned, layout_of, reach

T = TypeVar("T", bound=Tensor | None)

#: What has memory of its own. (A torch.nn.Buffer is made as a Tensor.)
_PLAIN: frozenset[type] = frozenset({Tensor, torch.nn.Parameter})


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
    for i, value in enumerate(integers):
        check_integer(f"{name}[{i}]", value)
    return integers


def check_integer(name: str, value: object) -> None:
    """`value` must be an integer that fits int64, as the dispatcher needs; its own message names nothing."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} (={value!r}) must be an integer")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} (={value}) does not fit 64 bits")


def number(name: str, value: object) -> float:
    if not isinstance(value, Real):
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


def check_type(name: str, t: Tensor) -> None:
    """`t` must not be of a subclass, which stands for something else than what is in its memory."""
    if type(t) not in _PLAIN:
        raise TypeError(
            f"{name} (={type(t).__name__}) is a tensor subclass, which the kernels cannot read; pass its data"
        )


def check_types(name: str, tensors: Sequence[Tensor]) -> None:
    if not _PLAIN.issuperset(map(type, tensors)):
        for i, t in enumerate(tensors):
            check_type(f"{name}[{i}]", t)


def check_memory(name: str, t: Tensor) -> None:
    """`t` must have memory of its own that a kernel can read, as far as its shape and strides reach."""
    check_type(name, t)
    if t.is_neg():
        raise ValueError(f"{name} is a view that stands for the negative of what is in memory; pass resolve_neg()")
    if t.is_meta or not (elements := reach(t)):
        return
    there, needed = t.untyped_storage().nbytes(), (t.storage_offset() + elements) * t.itemsize
    if there == 0:
        raise ValueError(f"{name} (shape {tuple(t.shape)}) has no memory: its storage was freed")
    if there < needed:
        raise ValueError(
            f"{name} (shape {tuple(t.shape)}) needs a storage of {needed} bytes, but its own was shortened to {there}"
        )


def check_writable(name: str, tensors: Sequence[Tensor]) -> None:
    """Each tensor must have an aligned, canonical layout without overlaps in itself or with another one of the list."""
    for i, t in enumerate(tensors):
        plain = t.is_contiguous()  # most are, and there may be a thousand
        if not plain and layout_of(t) is None:
            raise ValueError(f"{name}[{i}] has kernel dimensions that are not dense (strides {t.stride()})")
        if not is_aligned(t):
            raise ValueError(f"{name}[{i}] lies at an address (={t.data_ptr():#x}) that is not a multiple of its dtype")
        if plain:
            continue
        reach = 0  # the last element that the dimensions of smaller strides reach
        for stride, n in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1):
            if t.numel() and stride <= reach:
                raise ValueError(f"{name}[{i}] overlaps itself (shape {tuple(t.shape)}, strides {t.stride()})")
            reach += (n - 1) * stride
    check_disjoint(name, tensors, name, tensors)


def check_disjoint(name: str, written: Sequence[Tensor], other_name: str, others: Sequence[Tensor | None]) -> None:
    """No tensor of `written` may reach into the bytes between the first and the last of one of `others` (of another
    one, where the lists are the same)."""
    ranges = sorted((*byte_range(t), i) for i, t in enumerate(written) if t.numel())
    for (_, end, i), (begin, _, j) in itertools.pairwise(ranges):
        if begin < end:
            raise ValueError(f"{name}[{i}] overlaps {name}[{j}]")
    if others is written:
        return
    begins = [r[0] for r in ranges]
    seen: set[int] = set()
    for j, t in enumerate(others):
        if t is None or id(t) in seen:  # tensors share maps
            continue
        seen.add(id(t))
        begin, end = byte_range(t)
        before = bisect_left(begins, end) - 1
        if begin < end and before >= 0 and ranges[before][1] > begin:
            raise ValueError(f"{name}[{ranges[before][2]}] overlaps {other_name}[{j}]")


def mark_written(tensors: Iterable[Tensor]) -> None:
    """Tells autograd that `tensors` are about to change, so that a backward pass that saved one of them raises.

    In-place ops of torch do this in a kernel of the dispatcher that operators of a library do not get by themselves.
    """
    torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])
