"""channel_moments: the public function, its registration with torch.library, and the last, small step of the sum."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from n2n_kernels import dtypes
from n2n_kernels.backends import implementation
from n2n_kernels.library import LIBRARY
from n2n_kernels.ops import checks

#: Elements of a channel per chunk, and partial sums per chunk; `n2n::kChunk` and `n2n::kLanes`.
CHUNK, LANES = 4096, 256


class Channels(NamedTuple):
    """A tensor seen as `[N, C, S]`: the tensor itself, its extents and its strides in elements."""

    x: Tensor
    sizes: tuple[int, int, int]
    strides: tuple[int, int, int]

    @property
    def chunks(self) -> int:
        return -(-self.sizes[0] * self.sizes[2] // CHUNK)


def channel_moments(x: Tensor, *, dim: int = 1, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, over all dimensions but `dim`, reading `x` once.

    These are the statistics that batch normalisation uses in train mode, and that an identity layer must undo (Chen et al.,
    ICLR 2016, section 2.4).

    Args:
        x: 1-D to 5-D, float32, float64, bfloat16 or float16, in any layout; must not be empty.
        dim: the channel dimension.
        backend: one of `n2n_kernels.backends()`, or None for the best for the tensor's device.

    Returns:
        (mean, var), each `[C]`, float64 for float64 and float32 for everything else. Sums are kept in float64, of the
        differences to the channel's first element, in one fixed order: every backend gives the same bits.

    Raises:
        ValueError, TypeError: naming the argument and its value.
    """
    with torch.no_grad():
        mean, var = torch.ops.n2n.channel_moments(x, dim, backend)
    return mean, var


def _channels(x: Tensor, dim: int) -> Channels:
    """`x` as `[N, C, S]`: what is before the channel dimension, and what is after. Copied if either does not fold."""
    x = x.movedim(dim, min(1, x.dim() - 1))
    if x.dim() == 1:
        return Channels(x, (1, x.shape[0], 1), (0, x.stride(0), 0))
    outer, inner = (
        (x.shape[0], x.stride(0)),
        [(n, s) for n, s in zip(x.shape[2:], x.stride()[2:], strict=True) if n > 1],
    )
    if any(a[1] != b[0] * b[1] for a, b in zip(inner, inner[1:], strict=False)):
        return _channels(x.contiguous(), 1)
    size = math.prod(x.shape[2:])
    return Channels(x, (outer[0], x.shape[1], size), (outer[1], x.stride(1), inner[-1][1] if inner else 0))


def pivots(c: Channels) -> Tensor:
    """float64 [C]: each channel's first element, or zero where that is not finite."""
    first = c.x.as_strided((c.sizes[1],), (c.strides[1],)).double()
    return torch.where(first.isfinite(), first, torch.zeros_like(first))


def fold(sums: Tensor) -> Tensor:
    """Adds up dimension 1 of `[C, n, ...]` in halves: a fixed order that does not depend on the device."""
    n = 1 << max(sums.shape[1] - 1, 0).bit_length()
    sums = torch.cat([sums, sums.new_zeros(sums.shape[0], n - sums.shape[1], *sums.shape[2:])], 1)
    while n > 1:
        n //= 2
        sums = sums[:, :n] + sums[:, n:]
    return sums[:, 0]


LIBRARY.define("channel_moments(Tensor x, int dim, str? backend) -> (Tensor, Tensor)")


@torch.library.impl(LIBRARY, "channel_moments", "CompositeExplicitAutograd")
def _channel_moments(x: Tensor, dim: int, backend: str | None) -> tuple[Tensor, Tensor]:
    checks.check_tensor("x", x, dims=range(1, 6))
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim (={dim}) is out of range for x, which has {x.dim()} dimensions")
    if x.numel() == 0:
        raise ValueError(f"x (shape {tuple(x.shape)}) is empty, so its moments do not exist")
    c = _channels(x, dim)
    partials = implementation("channel_moments", backend, x.device).run(c)
    d, dd = fold(partials).unbind(-1)
    count = c.sizes[0] * c.sizes[2]
    mean = pivots(c) + d / count
    var = (dd - d * d / count).clamp(min=0) / count
    dtype = dtypes.TABLE[x.dtype].compute
    return mean.to(dtype), var.to(dtype)


@torch.library.register_fake("n2n::channel_moments", lib=LIBRARY)
def _(x: Tensor, dim: int, backend: str | None) -> tuple[Tensor, Tensor]:
    moments = x.new_empty(x.shape[dim], dtype=dtypes.TABLE[x.dtype].compute)
    return moments, torch.empty_like(moments)
