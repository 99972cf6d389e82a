"""The canonical form of a weight: `[O, I, K]` with three strides.

A vector is `[O, 1, 1]`, a linear weight `[O, I, 1]`, a convolution's kernel dimensions are folded into one K. So
contiguous and channels_last tensors, transposed and offset views all have this form; only kernel dimensions that are
not dense among themselves do not.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Extents and strides (in elements) of a tensor seen as `[O, I, K]`."""

    O: int  # noqa: E741
    I: int  # noqa: E741
    K: int
    stride_o: int
    stride_i: int
    stride_k: int


def fold(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, int] | None:
    """Several dimensions as one, (extent, stride); None if they are not dense among themselves."""
    if math.prod(shape) == 0:
        return 0, 0  # whatever the strides
    dims = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    if any(outer != n * inner for (_, outer), (n, inner) in itertools.pairwise(dims)):
        return None
    return math.prod(shape), dims[-1][1] if dims else 0


def layout_of(t: Tensor) -> Layout | None:
    """`t` (1-D to 5-D) as `[O, I, K]`, or None if its kernel dimensions do not fold into one."""
    kernel = fold(t.shape[2:], t.stride()[2:])
    if kernel is None:
        return None
    extent_i, stride_i = (t.shape[1], t.stride(1)) if t.dim() > 1 else (1, 0)
    return Layout(t.shape[0], extent_i, kernel[0], t.stride(0), stride_i, kernel[1])


def memory_format(t: Tensor) -> torch.memory_format:
    """channels_last (or its 3-D form) if that is how `t` lies in memory, else contiguous."""
    for dim, channels_last in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        # A 1x1 kernel is contiguous in both senses; the stride of its last dimension tells what was meant.
        if t.dim() == dim and t.is_contiguous(memory_format=channels_last):
            meant = t.stride(-1) == t.shape[1] if t.is_contiguous() else True
            if meant and t.shape[1] > 1:
                return channels_last
    return torch.contiguous_format


def is_aligned(t: Tensor) -> bool:
    """Whether the elements of `t` lie at multiples of their size. Views of a file or of a byte buffer may not."""
    return t.data_ptr() % t.element_size() == 0


def reach(t: Tensor) -> int:
    """Elements of memory from the first one of `t` to past its last; 0 if it is empty."""
    if t.is_contiguous() or t.numel() == 0:
        return t.numel()
    return 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
