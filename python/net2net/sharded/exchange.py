"""Slices of a sharded tensor, brought to the ranks that want them.

Every rank knows what every rank wants, since all derive it from the same plan; so nothing but the slices is sent.
"""

from __future__ import annotations

import math
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


def whole_rows(mine: Tensor, shape: Sequence[int], spread: Spread, wanted: Sequence[np.ndarray]) -> Tensor:
    """As `fetch`, but of a tensor of this shape that is not sharded along axis 0 the rows of that axis, complete."""
    r, dim = spread.rank, spread.dim
    assert dim
    sent = mine.index_select(0, _on(mine, np.concatenate(wanted))).contiguous()
    each = mine.shape[1:].numel()
    shapes = [(len(wanted[r]), *shape[1:dim], b - a, *shape[dim + 1 :]) for a, b in _all_bounds(spread, shape[dim])]
    sizes = [math.prod(s) for s in shapes]
    received = mine.new_empty(sum(sizes))
    send(sent, received, [len(w) * each for w in wanted], sizes, spread)
    pieces = [piece.view(s) for piece, s in zip(received.split(sizes), shapes, strict=True)]
    return torch.cat(pieces, dim)


def give_back(rows: Tensor, mine: Tensor, spread: Spread, ranges: Sequence[tuple[int, int]]) -> None:
    """The reverse: of whole rows, of which each rank has the given range, the part that belongs into `mine`."""
    dim = spread.dim
    assert dim
    pieces = [rows.narrow(dim, a, b - a).reshape(-1) for a, b in _all_bounds(spread, rows.shape[dim])]
    each = mine.shape[1:].numel()
    sizes = [(last - first) * each for first, last in ranges]
    received = mine.new_empty(sum(sizes))
    send(torch.cat(pieces), received, [piece.numel() for piece in pieces], sizes, spread)
    for (first, last), piece in zip(ranges, received.split(sizes), strict=True):
        mine[first:last] = piece.view(last - first, *mine.shape[1:])


def _all_bounds(spread: Spread, extent: int) -> list[tuple[int, int]]:
    return [spread.bounds(extent, rank) for rank in range(spread.ranks)]


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
