"""Checks on tensors that all ops share. Each raises an error that names the argument and its value."""

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from n2n_kernels import dtypes
from n2n_kernels.layout import byte_range, layout_of


def check_tensor(name: str, t: object, *, dims: range) -> None:
    """`t` must be a dense tensor of a supported dtype with a number of dimensions in `dims`."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} (={type(t).__name__}) must be a torch.Tensor")
    if type(t) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise TypeError(
            f"{name} (={type(t).__name__}) is a tensor subclass, which the kernels cannot read; pass its data"
        )
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
    for i, t in enumerate(tensors):
        if t.device != device:
            raise ValueError(f"{name}[{i}].device (={t.device}) differs from {name}[0].device (={device})")
    return device


def check_length(name: str, given: Sequence[object], expected: int, what: str) -> None:
    if len(given) != expected:
        raise ValueError(f"{name} has {len(given)} entries, but {what} has {expected}")


def check_writable(name: str, tensors: Sequence[Tensor]) -> None:
    """Each tensor must have a canonical layout without overlaps in itself or with another one of the list."""
    for i, t in enumerate(tensors):
        if layout_of(t) is None:
            raise ValueError(f"{name}[{i}] has kernel dimensions that are not dense (strides {t.stride()})")
        reach = 0  # the last element that the dimensions of smaller strides reach
        for stride, n in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1):
            if t.numel() and stride <= reach:
                raise ValueError(f"{name}[{i}] overlaps itself (shape {tuple(t.shape)}, strides {t.stride()})")
            reach += (n - 1) * stride
    check_disjoint(name, tensors, name, tensors)


def check_disjoint(name: str, written: Sequence[Tensor], other_name: str, others: Sequence[Tensor]) -> None:
    """No tensor of `written` may share bytes with one of `others` (with another one, where the lists are the same)."""
    ranges = sorted((*byte_range(t), i) for i, t in enumerate(written) if t.numel())
    for (_, end, i), (begin, _, j) in zip(ranges, ranges[1:], strict=False):
        if begin < end:
            raise ValueError(f"{name}[{i}] overlaps {name}[{j}]")
    if others is written:
        return
    begins = [r[0] for r in ranges]
    for j, t in enumerate(others):
        begin, end = byte_range(t)
        before = bisect_left(begins, end) - 1
        if begin < end and before >= 0 and ranges[before][1] > begin:
            raise ValueError(f"{name}[{ranges[before][2]}] overlaps {other_name}[{j}]")
