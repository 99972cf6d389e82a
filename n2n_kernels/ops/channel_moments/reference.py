"""channel_moments in plain torch, in the order of summation that `csrc/channel_moments.h` defines."""

import math

import torch
from torch import Tensor

from n2n_kernels import dtypes
from n2n_kernels.ops.channel_moments.channels import Channels
from n2n_kernels.ops.channel_moments.order import FOLD_LANES, LANES, chunk_of


def sum_in_lanes(x: Tensor, lanes: int) -> Tensor:
    """The sums of float64 `[rows, n]` along n: in lanes, each of which adds in turn, then in pairs of neighbours."""
    steps = -(-x.shape[1] // lanes)
    padded = torch.cat([x, x.new_zeros(x.shape[0], steps * lanes - x.shape[1])], 1).view(-1, steps, lanes)
    sums = padded.new_zeros(x.shape[0], lanes)
    for step in padded.unbind(1):
        sums += step
    while sums.shape[1] > 1:
        sums = sums[:, 0::2] + sums[:, 1::2]
    return sums[:, 0]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """float64 mean and variance of each row of `x`, which is not empty."""
    pivot = pivots(x[:, 0])
    n = x.shape[1]
    return moments_of(pivot, *chunk_sums(x, pivot, chunk_of(n)), n)


def pivots(first: Tensor) -> Tensor:
    """float64: what is subtracted before summing, from the first element of each row."""
    first = first.double()
    return torch.where(first.isfinite(), first, torch.zeros_like(first))


def chunk_sums(x: Tensor, pivot: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """float64 [rows, chunks]: the sums of d and of d * d over the chunks of each row of `x`, with d = x - pivot. The
    last chunk may be short."""
    rows, n = x.shape
    chunks = -(-n // chunk)
    d = x.double() - pivot.unsqueeze(1)
    d = torch.cat([d, d.new_zeros(rows, chunks * chunk - n)], 1).view(rows * chunks, chunk)
    return sum_in_lanes(d, LANES).view(rows, chunks), sum_in_lanes(d * d, LANES).view(rows, chunks)


def moments_of(pivot: Tensor, d: Tensor, dd: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of rows of n elements, from the sums over their chunks."""
    d, dd = sum_in_lanes(d, FOLD_LANES), sum_in_lanes(dd, FOLD_LANES)
    # A tensor: torch on CUDA divides by a plain number by multiplying with its reciprocal, which rounds twice.
    count = torch.full_like(d, n)
    return pivot + d / count, (dd - d * d / count).clamp(min=0) / count


def one_nan(x: Tensor) -> Tensor:
    """NaN as one fixed pattern: processors differ in the sign and the payload of those that they make."""
    return x.masked_fill(x.isnan(), math.nan)


def run(c: Channels) -> tuple[Tensor, Tensor]:
    """(mean, var), each `[C]` in the compute type."""
    n, channels, s = c.sizes
    mean, var = moments(c.x.as_strided(c.sizes, c.strides).movedim(1, 0).reshape(channels, n * s))
    dtype = dtypes.TABLE[c.x.dtype].compute
    return one_nan(mean.to(dtype)), one_nan(var.to(dtype))


def run_tensors(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, var) of tensors without gaps, each float64 `[tensors]`."""
    mean = torch.full((len(tensors),), math.nan, dtype=torch.float64, device=tensors[0].device)
    var = mean.clone()
    for i, t in enumerate(tensors):
        if t.numel():
            mean[i : i + 1], var[i : i + 1] = moments(t.as_strided((1, t.numel()), (0, 1)))
    return one_nan(mean), one_nan(var)
