"""channel_moments in plain torch, in the order of summation that `csrc/channel_moments.h` defines."""

import math
from collections.abc import Callable

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


def chunk_sums(x: Tensor, pivots: Tensor, chunk: int) -> Tensor:
    """float64 `[2, rows, chunks]`: the sums of d and of d*d over each chunk of each row of `x`."""
    rows, n = x.shape
    chunks = -(-n // chunk)
    d = x.double() - pivots.unsqueeze(1)
    d = torch.cat([d, d.new_zeros(rows, chunks * chunk - n)], 1).view(rows * chunks, chunk)
    return torch.stack([sum_in_lanes(t, LANES).view(rows, chunks) for t in (d, d * d)])


def pivots_of(x: Tensor) -> Tensor:
    """The first element of each row, in float64; 0 where that is not finite."""
    first = x[:, 0].double()
    return torch.where(first.isfinite(), first, torch.zeros_like(first))


def finish(pivots: Tensor, sums: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """float64 mean and variance of rows of n elements, from what `chunk_sums` gives."""
    d, dd = (sum_in_lanes(t, FOLD_LANES) for t in sums)
    # A tensor: torch on CUDA divides by a plain number by multiplying with its reciprocal, which rounds twice.
    count = torch.full_like(d, n)
    return pivots + d / count, (dd - d * d / count).clamp(min=0) / count


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """float64 mean and variance of each row of `x`, which is not empty."""
    pivots, n = pivots_of(x), x.shape[1]
    return finish(pivots, chunk_sums(x, pivots, chunk_of(n)), n)


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


def run_in_parts(t: Tensor, elements: int, after: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """`run_tensors` of one tensor that is not empty, so many elements (whole chunks) at a time."""
    x = t.as_strided((1, t.numel()), (0, 1))
    pivots, sums = pivots_of(x), []
    for part in x.split(elements, 1):
        sums.append(chunk_sums(part, pivots, chunk_of(t.numel())))
        after()
    mean, var = finish(pivots, torch.cat(sums, 2), t.numel())
    return one_nan(mean), one_nan(var)
