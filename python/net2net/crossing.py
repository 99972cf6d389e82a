"""crossing: cancelling noise on weights that are stored the other way round.

The kernels know weights as [out, in, ...] and put cancelling noise along `in`. Transposed convolutions, and matrices
that inputs are multiplied by from the left (GPT-2's), are [in, out, ...]. Without noise, replicas that only such a
weight reads would stay alike for ever: they have the same gradients. So the noise of a tensor of zeros, stored as the
kernels know it, is added to what they made of the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from n2n_kernels.ops.gather_scale.window import Whole

#: So many elements of noise are made at a time: elsewhere, and on a processor, whose caches should hold them.
_PIECE = (2**22, 2**20)


def add_noise(
    grown: Tensor,
    index: Tensor,
    std: float,
    *,
    seed: int,
    tensor_id: int,
    begin: int = 0,
    first: int = 0,
) -> None:
    """Adds to a part of a student's weight [in, out, ...], in place, noise that sums to zero over the replicas of each
    input (up to the rounding of the weight's dtype).

    Args:
        grown: [m, k, ...]: the student's positions from `begin` along `in`, and those from `first` along `out`.
        index: int64 [in]: which teacher input each of the student's copies, all of them.
        std: the standard deviation of each of the two numbers that a weight's noise is the difference of.
        seed, tensor_id: of the random numbers.
    """
    if not grown.numel() or grown.is_meta:
        return
    whole = Whole(in_map=index, tensor_id=tensor_id)
    wide = torch.float64 if grown.dtype == torch.float64 else torch.float32
    behind = grown[0, 0].numel()
    step = max(1, _PIECE[grown.device.type == "cpu"] // len(index) // behind)
    for out in range(0, grown.shape[1], step):
        part = grown[:, out : out + step]
        rows = part[0].numel()
        piece = grown.new_empty((rows, len(index)), dtype=wide)
        source = grown.new_zeros((rows, int(index.max()) + 1), dtype=wide)
        at = (first + out) * behind
        whole.grow_noisy_rows(source, piece, begin=at, noise_std=std, noise="cancelling", seed=seed)
        # Copied first, since torch transposes in blocks only what it copies whole.
        part += piece[:, begin : begin + len(grown)].T.contiguous().view(part.shape)
