"""Standard deviations of sharded tensors, with the bits that `n2n_kernels.tensor_moments` has for the whole ones.

The order of summation is a part of that definition (`csrc/channel_moments.h`): a tensor's elements, in their
contiguous order, are summed in chunks, then the chunks' sums. Here each rank sums an equal share of the chunks, whose
elements it is sent where it has not got them, and then every rank adds all of the chunks' sums, which are few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from n2n_kernels import tensor_moments
from n2n_kernels.ops.channel_moments import reference
from n2n_kernels.ops.channel_moments.order import chunk_of
from net2net.sharded.exchange import fetch, whole_rows
from net2net.shards import Spread, local

#: Elements that a rank sums at a time: float64 copies of them are needed.
_PIECE = 2**18


def stds(names: Sequence[str], tensors: Sequence[Tensor]) -> list[float]:
    """The standard deviation of each tensor's elements. To be called by all ranks alike."""
    spreads = [Spread.of(name, t) for name, t in zip(names, tensors, strict=True)]
    whole = [i for i, spread in enumerate(spreads) if spread.dim is None]
    found: dict[int, Tensor] = {}
    if whole:
        found.update(zip(whole, tensor_moments([local(tensors[i]) for i in whole])[1], strict=True))
    for i, (t, spread) in enumerate(zip(tensors, spreads, strict=True)):
        if spread.dim is not None:
            found[i] = _variance(local(t), t.shape, spread)
    return [float(found[i].sqrt()) for i in range(len(tensors))]


def _variance(mine: Tensor, shape: torch.Size, spread: Spread) -> Tensor:
    """float64, of the tensor of this shape of which `mine` is this rank's shard."""
    n = shape.numel()
    if n == 0:
        return torch.tensor(float("nan"), dtype=torch.float64)
    row = n // shape[0]
    chunk = chunk_of(n)
    chunks = -(-n // chunk)
    per_rank = -(-chunks // spread.ranks)
    pivot = _pivot(mine, spread)
    sums = torch.zeros(2, 1, per_rank, dtype=torch.float64, device=mine.device)
    step = max(1, _PIECE // chunk)
    for at in range(0, per_rank, step):
        # Of each rank the elements that it sums now, and the rows that have them.
        ranges = []
        for rank in range(spread.ranks):
            first, last = (min(rank * per_rank + c, (rank + 1) * per_rank, chunks) for c in (at, at + step))
            ranges.append((first * chunk, min(last * chunk, n)))
        rows = [(begin // row, -(-end // row) if end > begin else begin // row) for begin, end in ranges]
        held = _rows(mine, shape, spread, rows)
        begin, end = ranges[spread.rank]
        if end > begin:
            skipped = begin - rows[spread.rank][0] * row
            x = held.reshape(1, -1)[:, skipped : skipped + end - begin]
            found = reference.chunk_sums(x, pivot, chunk)
            sums[:, :, at : at + found.shape[2]] = found
    every = [torch.empty_like(sums) for _ in range(spread.ranks)]
    dist.all_gather(every, sums, group=spread.group)
    return reference.one_nan(reference.finish(pivot, torch.cat(every, 2)[:, :, :chunks], n)[1])[0]


def _pivot(mine: Tensor, spread: Spread) -> Tensor:
    """float64 [1], from the whole tensor's first element, which the first rank has."""
    first = mine.flatten()[:1] if spread.rank == 0 else mine.new_zeros(1)
    pivot = reference.pivots_of(first.unsqueeze(1))
    dist.broadcast(pivot, group=spread.group, group_src=0)
    return pivot


def _rows(mine: Tensor, shape: torch.Size, spread: Spread, wanted: Sequence[tuple[int, int]]) -> Tensor:
    """Of each rank's range of rows of the whole tensor this rank's own, complete."""
    rows = [np.arange(*r) for r in wanted]
    return whole_rows(mine, shape, spread, rows) if spread.dim else fetch(mine, shape[0], spread, rows)
