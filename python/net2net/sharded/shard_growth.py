"""What a plan makes of a shard of a tensor: with the bits that it makes of the whole one."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from n2n_kernels.ops.gather_scale.window import Whole
from net2net.launches import Entry, Law, flat
from net2net.optimizer import StateTensor
from net2net.plan import GrowthPlan
from net2net.sharded.exchange import fetch
from net2net.shards import Spread, local

#: A shard of more bytes is grown in so many steps, so that what is sent and received for one is small beside it.
_STEPS, _SMALL = 8, 2**20


def grow_shard(
    plan: GrowthPlan,
    entry: Entry,
    source: Tensor,
    target: Tensor,
    *,
    sigma: float = 0.0,
    state: StateTensor | None = None,
) -> None:
    """Writes this rank's part of the student's tensor into `target`. To be called by all ranks alike.

    Args:
        source: the teacher's tensor, or state that an optimizer keeps of it, spread as `target` is.
        sigma: the factor on the noise.
        state: what `source` is of the optimizer.
    """
    law, shape, spread = plan._law(entry), plan.shapes[entry.name], Spread.of(entry.name, source)
    mine, out = local(source), local(target)
    if law.out_map is None and law.in_map is None:
        out.copy_(plan._completed(entry.name, mine, state))
        return
    axis = _axis(entry.name, spread, law, sigma)
    if axis is None:
        shape = tuple(mine.shape)
    mine, out = flat([mine, out], [law.late, law.late])
    shape = _flat_shape(shape, law.late)
    whole = Whole(shape, mine.dtype, *law[:4], tensor_id=plan._ids[entry.name])

    def grow(held: Tensor, out: Tensor, dim: int, begin: int) -> None:
        whole.grow(held, out, dim=dim, begin=begin, sigma=sigma, noise=plan._noise, seed=plan._seed)

    if axis is None:
        grow(mine, out, 0, 0)
        return
    index = (law.out_map, law.in_map)[axis]
    spread = replace(spread, dim=axis)
    extent = shape[axis] if index is None else len(index)
    bounds = [spread.bounds(extent, rank) for rank in range(spread.ranks)]
    begin, _ = bounds[spread.rank]
    if index is None:
        grow(mine, out, axis, begin)
        return
    size = bounds[0][1]
    largest = size * math.prod(out.shape) // max(1, out.shape[axis]) * out.itemsize
    step = max(1, size if largest <= _SMALL else -(-size // _STEPS))
    for at in range(0, size, step):
        ranges = [(min(a + at, b), min(a + at + step, b)) for a, b in bounds]
        held = fetch(mine, shape[axis], spread, [whole.units(axis, *r) for r in ranges])
        first, last = ranges[spread.rank]
        grow(held, out.narrow(axis, first - begin, last - first), axis, first)


def _axis(name: str, spread: Spread, law: Law, sigma: float) -> int | None:
    """Which of the two axes that the kernels know is the sharded one; None: neither, and all is local."""
    if spread.dim is None:
        return None
    if law.late:
        return 1 if spread.dim == law.late else None
    if spread.dim < 2:
        return spread.dim
    if sigma:
        raise TypeError(f"{name} is sharded along axis {spread.dim}; with noise it can only be grown along 0 or 1")
    return None


def _flat_shape(shape: tuple[int, ...], late: int) -> tuple[int, ...]:
    if not late:
        return shape or (1,)
    return (math.prod(shape[:late]), shape[late], *((math.prod(shape[late + 1 :]),) if shape[late + 1 :] else ()))
