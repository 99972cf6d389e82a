"""Slices of a sharded tensor, brought to the ranks that want them.

Every rank knows what every rank wants, since all derive it from the same plan; so nothing but the slices is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from net2net.shards import Spread


def fetch(mine: Tensor, extent: int, spread: Spread, wanted: Sequence[np.ndarray]) -> Tensor:
    """The slices that this rank wants: the positions `wanted[rank]` of the whole tensor's axis `spread.dim`.

    To be called by all ranks of the group with the same `wanted`. Where each wants only what it has, nothing is sent.

    Args:
        mine: this rank's shard.
        extent: of the whole tensor on that axis.
        wanted: int64, ascending, for each rank.

    Returns:
        A tensor with as many slices on that axis as this rank wants (perhaps a view of `mine`).
    """
    assert spread.dim is not None
    begins = [spread.bounds(extent, rank)[0] for rank in range(spread.ranks)] + [extent]
    # What each rank wants of each, as positions in `wanted`.
    cuts = [np.searchsorted(positions, begins) for positions in wanted]
    own = begins[spread.rank]
    if all(cut[r] == 0 and cut[r + 1] == len(w) for r, (cut, w) in enumerate(zip(cuts, wanted, strict=True))):
        positions = wanted[spread.rank] - own
        if len(positions) == mine.shape[spread.dim]:
            return mine
        return mine.index_select(spread.dim, _on(mine, positions))
    slices = mine.movedim(spread.dim, 0)
    r = spread.rank
    asked = [w[cut[r] : cut[r + 1]] - own for w, cut in zip(wanted, cuts, strict=True)]
    sent = slices.index_select(0, _on(mine, np.concatenate(asked))).contiguous()
    received = sent.new_empty((len(wanted[r]), *slices.shape[1:]))
    each = slices.shape[1:].numel()
    send(sent, received, [len(a) * each for a in asked], [int(n) * each for n in np.diff(cuts[r])], spread)
    return received.movedim(0, spread.dim)


def send(sent: Tensor, received: Tensor, sizes: Sequence[int], received_sizes: Sequence[int], spread: Spread) -> None:
    """To each rank so many elements of `sent`, and from each so many into `received`, both contiguous."""
    # As bytes, since not every backend knows every dtype.
    out, inward = (t.reshape(-1).view(torch.uint8) for t in (sent, received))
    size = sent.itemsize
    dist.all_to_all_single(
        inward, out, [n * size for n in received_sizes], [n * size for n in sizes], group=spread.group
    )


def _on(t: Tensor, positions: np.ndarray) -> Tensor:
    return torch.from_numpy(positions).to(t.device)
