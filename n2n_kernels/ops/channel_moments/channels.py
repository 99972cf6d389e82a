"""What channel_moments and tensor_moments sum over, in the form that the kernels take."""

from typing import NamedTuple

import torch
from torch import Tensor

from n2n_kernels.layout import fold, is_aligned
from n2n_kernels.ops.channel_moments.order import chunk_of


class Channels(NamedTuple):
    """A tensor seen as `[N, C, S]`: the tensor itself, its extents and its strides in elements."""

    x: Tensor
    sizes: tuple[int, int, int]
    strides: tuple[int, int, int]

    @property
    def elements(self) -> int:
        """Of a channel."""
        return self.sizes[0] * self.sizes[2]

    @property
    def chunk(self) -> int:
        return chunk_of(self.elements)

    @property
    def chunks(self) -> int:
        return -(-self.elements // self.chunk)


def channels(x: Tensor, dim: int) -> Channels:
    """`x` as `[N, C, S]`: what is before the channel dimension, and what is after. Copied if it does not lie so."""
    if x.dim() == 1:
        return Channels(x, (1, x.shape[0], 1), (0, x.stride(0), 0))
    if dim not in (1, 1 - x.dim()):
        x = x.movedim(dim, 1)
    if not is_aligned(x) or (inner := fold(x.shape[2:], x.stride()[2:])) is None:
        x = x.clone(memory_format=torch.contiguous_format)
        inner = fold(x.shape[2:], x.stride()[2:])
        assert inner is not None
    return Channels(x, (x.shape[0], x.shape[1], inner[0]), (x.stride(0), x.stride(1), inner[1]))


def run_of(t: Tensor) -> Tensor:
    """`t`, or a copy of it, without gaps: its elements are those of the memory from its first one on."""
    if t.is_contiguous() and is_aligned(t):
        return t
    reach = 1
    for stride, n in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n != 1):
        if stride != reach:
            return t.clone(memory_format=torch.contiguous_format)
        reach *= n
    return t if is_aligned(t) else t.clone(memory_format=torch.contiguous_format)
