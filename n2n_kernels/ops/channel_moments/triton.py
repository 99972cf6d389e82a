"""channel_moments in Triton, in the order of summation that `csrc/channel_moments.h` defines."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from n2n_kernels import dtypes, native
from n2n_kernels.ops.channel_moments.api import CHUNK, LANES, Channels
from n2n_kernels.triton_common import load_bits, to_compute


@triton.jit
def values(src, channel, j, mask, S, stride_n, stride_c, stride_s, CODE: tl.constexpr):
    n = j // S
    offset = n * stride_n + channel * stride_c + (j - n * S) * stride_s
    return to_compute(load_bits(src, offset, mask, CODE), CODE).to(tl.float64)


@triton.jit
def halve(x, HALF: tl.constexpr):
    """x[l] + x[l + HALF]; a sum of two is the same in either order."""
    return tl.sum(tl.reshape(x, [2, HALF]), 0)


@triton.jit
def fold_lanes(x):
    """The 256 lanes, folded in halves; `[1]`."""
    x = halve(halve(halve(halve(x, 128), 64), 32), 16)
    return halve(halve(halve(halve(x, 8), 4), 2), 1)


@triton.jit
def channel_moments_kernel(
    x, partials, chunks, total, S, stride_n, stride_c, stride_s,
    CODE: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    channel = tile // chunks
    begin = (tile - channel * chunks) * CHUNK
    src = x.to(tl.int64)
    lane = tl.arange(0, LANES)
    first = values(src, channel, lane * 0, lane >= 0, S, stride_n, stride_c, stride_s, CODE)
    pivot = tl.where(first - first == 0, first, first * 0)
    pivot = tl.where(pivot == pivot, pivot, tl.full(pivot.shape, 0.0, tl.float64))
    d_sum = tl.zeros([LANES], tl.float64)
    dd_sum = tl.zeros([LANES], tl.float64)
    for at in range(0, CHUNK, LANES):
        j = begin + at + lane
        mask = j < total
        d = values(src, channel, j, mask, S, stride_n, stride_c, stride_s, CODE) - pivot
        d_sum = tl.where(mask, d_sum + d, d_sum)
        dd_sum = tl.where(mask, dd_sum + d * d, dd_sum)
    one = tl.arange(0, 1)
    tl.store(partials + 2 * tile + one, fold_lanes(d_sum))
    tl.store(partials + 2 * tile + 1 + one, fold_lanes(dd_sum))


def run(c: Channels) -> Tensor:
    """float64 [C, chunks, 2]: per chunk the sums of d and of d*d."""
    partials = torch.empty(c.sizes[1], c.chunks, 2, dtype=torch.float64, device=c.x.device)
    n, channels, s = c.sizes
    with native.launching_on(c.x.device):
        channel_moments_kernel[(channels * c.chunks,)](
            c.x, partials, c.chunks, n * s, s, *c.strides,
            CODE=dtypes.TABLE[c.x.dtype].code, CHUNK=CHUNK, LANES=LANES, enable_fp_fusion=False,
        )  # fmt: skip
    return partials
