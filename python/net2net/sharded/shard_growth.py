"""What a plan makes of a shard of a tensor: with the bits that it makes of the whole one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from n2n_kernels.ops.gather_scale.window import Whole
from net2net.launches import Entry, flattened
from net2net.plan import GrowthPlan
from net2net.sharded.exchange import fetch, give_back, whole_rows
from net2net.shards import Spread, local

#: A shard of more bytes is grown in so many steps, so that what is sent and received for one is small beside it.
_STEPS, _SMALL = 8, 2**20

#: (the teacher's positions, out, the axis, the first position): makes `out`.
_Grow = Callable[[Tensor, Tensor, int, int], None]


def grow_shard(
    plan: GrowthPlan,
    entry: Entry,
    source: Tensor,
    target: Tensor,
    *,
    noise_std: float = 0.0,
    key: str | None = None,
) -> None:
    """Writes this rank's part of the student's tensor into `target`. To be called by all ranks alike.

    Args:
        source: the teacher's tensor, or state that an optimizer keeps of it, spread as `target` is.
        noise_std: absolute.
        key: of the optimizer's state.
    """
    law, shape, spread = plan._law(entry), plan.shapes[entry.name], Spread.of(entry.name, source)
    mine, out = local(source), local(target)
    if law.out_map is None and law.in_map is None:
        made = plan._completed(entry.name, mine, key)
        if made.shape != out.shape:
            raise ValueError(
                f"{entry.name} grows along axis {spread.dim}, along which it is sharded: shard it along 0 or 1"
            )
        out.copy_(made)
        return
    whole = Whole(*law[:4], tensor_id=plan._ids[entry.name])
    noisy = noise_std != 0

    def grow(held: Tensor, out: Tensor, axis: int, begin: int) -> None:
        if noisy:
            whole.grow_noisy_rows(held, out, begin=begin, noise_std=noise_std, noise=plan._noise, seed=plan._seed)
        else:
            whole.grow(held, out, dim=axis, begin=begin)

    if noisy and spread.dim:
        _in_rows(whole, grow, mine, out, shape, plan.student_shape(entry.name), spread)
        return
    # The kernels know two axes.
    axis = {0: 0, law.late or 1: 1}.get(spread.dim) if spread.dim is not None else None
    mine, out = flattened([mine, out], [law.late, law.late])
    if axis is None:
        grow(mine, out, 0, 0)
    else:
        spread = replace(spread, dim=axis)
        _in_steps(whole, grow, mine, out, shape[law.late or 1] if axis else shape[0], spread)


def _in_steps(whole: Whole, grow: _Grow, mine: Tensor, out: Tensor, extent: int, spread: Spread) -> None:
    """Along the sharded axis, of which the teacher has so many positions."""
    assert spread.dim is not None
    axis, index = spread.dim, (whole.out_map, whole.in_map)[spread.dim]
    student_extent = extent if index is None else len(index)
    begin, _ = spread.bounds(student_extent)
    if index is None:
        grow(mine, out, axis, begin)
        return
    for ranges in _steps(student_extent, math.prod(out.shape[:axis] + out.shape[axis + 1 :]) * out.itemsize, spread):
        held = fetch(mine, extent, spread, [whole.units(axis, *r) for r in ranges])
        first, last = ranges[spread.rank]
        grow(held, out.narrow(axis, first - begin, last - first), axis, first)


def _in_rows(
    whole: Whole, grow: _Grow, mine: Tensor, out: Tensor, shape: Sequence[int], grown: Sequence[int], spread: Spread
) -> None:
    """Noise is counted along rows. So where these are cut, each rank makes some whole ones, for all ranks."""
    for ranges in _steps(grown[0], math.prod(grown[1:]) * out.itemsize, replace(spread, dim=0)):
        held = whole_rows(mine, shape, spread, [whole.units(0, *r) for r in ranges])
        first, last = ranges[spread.rank]
        made = out.new_empty((last - first, *grown[1:]))
        grow(held, made, 0, first)
        give_back(made, out, spread, ranges)


def _steps(extent: int, position: int, spread: Spread) -> Iterator[list[tuple[int, int]]]:
    """Ranges of positions of the sharded axis, one for each rank, which one after the other are all that each has.
    `position`: bytes of one."""
    bounds = [spread.bounds(extent, rank) for rank in range(spread.ranks)]
    largest = bounds[0][1]
    step = max(1, largest if largest * position <= _SMALL else -(-largest // _STEPS))
    for at in range(0, largest, step):
        yield [(min(a + at, b), min(a + at + step, b)) for a, b in bounds]
