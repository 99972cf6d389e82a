"""The canonical form of a weight: `[O, I, K]` with three strides.

A vector is `[O, 1, 1]`, a linear weight `[O, I, 1]`, a convolution's kernel dimensions are folded into one K. Contiguous and
channels_last tensors, transposed and offset views all have this form; only kernel dimensions that are not dense among
themselves do not.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Extents and strides (in elements) of a tensor seen as `[O, I, K]`."""

    O: int
    I: int  # noqa: E741
    K: int
    stride_o: int
    stride_i: int
    stride_k: int


def layout_of(t: Tensor) -> Layout | None:
    """`t` (1-D to 5-D) as `[O, I, K]`, or None if its kernel dimensions do not fold into one."""
    shape, stride = t.shape, t.stride()
    O = shape[0]
    I = shape[1] if t.dim() > 1 else 1  # noqa: E741
    kernel = [(n, s) for n, s in zip(shape[2:], stride[2:], strict=True) if n != 1]
    for (_, outer), (n, inner) in zip(kernel, kernel[1:], strict=False):
        if outer != n * inner:
            return None
    stride_i = stride[1] if t.dim() > 1 else 0
    stride_k = kernel[-1][1] if kernel else 0
    return Layout(O, I, math.prod(shape[2:]), stride[0], stride_i, stride_k)


def memory_format(t: Tensor) -> torch.memory_format:
    """channels_last (or its 3-D form) if that is how `t` lies in memory, else contiguous."""
    for dim, channels_last in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        # A 1x1 kernel is contiguous in both senses; the stride of its last dimension tells what was meant.
        if t.dim() == dim and t.is_contiguous(memory_format=channels_last):
            meant = t.stride(-1) == t.shape[1] if t.is_contiguous() else True
            if meant and t.shape[1] > 1:
                return channels_last
    return torch.contiguous_format


def byte_range(t: Tensor) -> tuple[int, int]:
    """First byte of `t` and the one past its last; equal if it is empty."""
    if t.numel() == 0:
        return t.data_ptr(), t.data_ptr()
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()
