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
    rows, n = x.shape
    first = x[:, 0].double()
    pivots = torch.where(first.isfinite(), first, torch.zeros_like(first))
    d = x.double() - pivots.unsqueeze(1)
    chunk = chunk_of(n)
    chunks = -(-n // chunk)
    d = torch.cat([d, d.new_zeros(rows, chunks * chunk - n)], 1).view(rows * chunks, chunk)
    d, dd = (sum_in_lanes(sum_in_lanes(t, LANES).view(rows, chunks), FOLD_LANES) for t in (d, d * d))
    # A tensor: torch on CUDA divides by a plain number by multiplying with its reciprocal, which rounds twice.
    count = torch.full_like(d, n)
    return pivots + d / count, (dd - d * d / count).clamp(min=0) / count


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
