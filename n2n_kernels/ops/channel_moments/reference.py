"""channel_moments in plain torch, in the order of summation that `csrc/channel_moments.h` defines."""

import torch
from torch import Tensor

from n2n_kernels.ops.channel_moments.api import CHUNK, LANES, Channels, fold_sums, pivots


def run(c: Channels) -> Tensor:
    """float64 [C, chunks, 2]: per chunk the sums of d and of d*d."""
    n, channels, s = c.sizes
    x = c.x.as_strided(c.sizes, c.strides).movedim(1, 0).reshape(channels, n * s)
    d = x.double() - pivots(c).unsqueeze(1)
    padded = torch.cat([d, d.new_zeros(channels, c.chunks * CHUNK - n * s)], 1)
    steps = padded.view(channels, c.chunks, CHUNK // LANES, LANES)
    lanes = steps.new_zeros(channels * c.chunks, LANES, 2)
    for step in steps.unbind(2):
        step = step.reshape(-1, LANES)
        lanes += torch.stack([step, step * step], -1)
    return fold_sums(lanes).view(channels, c.chunks, 2)
