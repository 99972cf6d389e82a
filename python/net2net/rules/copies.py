"""Copies of parameters and buffers of which nothing is known yet: a table of positions that is cropped and reshaped, or
put into another dtype, before it is added to anything, or one that is kept as its logarithm (the decay rates of a state
space model). What they meet tells which of their dimensions has units, as it does for the tables themselves."""

from __future__ import annotations

from typing import Any

import torch

from net2net.context import Context
from net2net.hashes import digest
from net2net.parameters import Made
from net2net.rules.kernels import LINEAR
from net2net.rules.table import POINTWISE, name_of, rule_for, spelled, tensors

_COPYING = {"clone", "_to_copy", "repeat"}


def copies(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
    """Whether an operation makes such a copy. If so, what it makes is known."""
    name = name_of(func)
    if name not in _COPYING and not _is_function(func, name, args, kwargs):
        return False
    t = args[0]
    # (Where there is one dimension that could have units, it has.)
    if sum(n > 1 for n in t.shape) < 2 or not (t.is_floating_point() and out.is_floating_point()):
        return False
    handle = context.parameters.handle(t)
    if handle is None or t in context.shadows:
        return False
    dims, weight = handle.dims, context.parameters.weight(t)
    if name == "repeat":
        times = args[1][len(args[1]) - t.dim() :]
        dims = (-1,) * (out.dim() - t.dim()) + tuple(d if n == 1 else -1 for d, n in zip(dims, times, strict=True))
        weight = None
    if weight is not None and (weight.how is not None or not weight.straight):
        weight = None
    if name not in _COPYING:
        if weight is not None and name in LINEAR:
            return False
        weight = None
    seen = (t.storage_offset(), tuple(t.shape), t.stride()) if weight is None else ()
    formula = digest(name, spelled(args, kwargs), seen, handle.formula if weight is None else weight.formula)
    before = Made(()) if handle.copy is None else handle.copy[1]
    each, alike = _each(func, args, kwargs, before)
    made = Made(
        (handle.name,),
        formula=formula,
        kernels=weight is not None,
        dims=dims,
        cuts=handle.cuts(t),
        each=each,
        alike=alike,
        function=before.function if name in _COPYING else digest(name, spelled(args, kwargs), before.function),
    )
    context.parameters.compute(out.view(out.shape), made)  # a view, since `out` may be transposed in place
    return True


def _is_function(func: Any, name: str, args: Any, kwargs: Any) -> bool:
    """Whether an operation makes a function of each element of one tensor."""
    if rule_for(func) is not POINTWISE[0] or name.endswith("_") or torch.Tag.nondeterministic_seeded in func.tags:
        return False
    given = tensors((args, kwargs))
    return len(given) == 1 and given[0] is args[0]


def _each(func: Any, args: Any, kwargs: Any, before: Made) -> tuple[bytes, frozenset[int]]:
    """What stands for one of several copies that are the same, and along which dimensions they are: those of size 1
    that are repeated, and those that are expanded."""
    t, others = args[0], args[1:]
    sizes, steps = list(t.shape), list(t.stride())
    alike = {d for d, (n, step) in enumerate(zip(sizes, steps, strict=True)) if n > 1 and not step}
    if t.is_contiguous():
        alike |= before.alike
    if name_of(func) == "repeat":
        times, new = args[1], len(args[1]) - t.dim()
        alike = {d + new for d in alike} | {d for d, n in enumerate(times) if d < new or sizes[d - new] == 1}
        others = [[1 if d in alike else n for d, n in enumerate(times)]]
    shape = [n if step else 1 for n, step in zip(sizes, steps, strict=True)]
    each = digest(name_of(func), spelled(others, kwargs), t.storage_offset(), shape, steps, before.each)
    return each, frozenset(alike)
