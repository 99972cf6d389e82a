"""Reductions, and operations along one dimension."""

from __future__ import annotations

from typing import Any

import numpy as np

from net2net.context import Context
from net2net.hashes import mix, seed
from net2net.rules.table import array, name_of, numbers, refuse, register, tensors, unknown
from net2net.shadows import ids_of
from net2net.units import FIXED

#: Of replicas, these give what they give of one: a mean over units, each replicated equally often, is the same.
_PROPORTIONAL = {"mean", "amax", "amin", "any", "all"}


def _proportional(name: str, args: Any, kwargs: Any) -> bool:
    if name in {"max", "min"}:
        return len(args) == 1  # along a dimension, only one of equal values would get the gradient
    biased = name in {"var", "std", "var_mean", "std_mean"} and kwargs.get("correction", 1) == 0
    return name in _PROPORTIONAL or biased


def histogram(context: Context, x: np.ndarray, counts: int = 1, proportional: bool = False) -> np.ndarray:
    """int64 [rows]: the signature of the values in each row of the codes [rows, n], in whatever order, each of which
    stands for `counts`; `proportional`: of how often they occur relative to each other.

    All the units of a row become one block."""
    sums = []
    for row in x:
        ids, how_often = np.unique(ids_of(row), return_counts=True)
        how_often = how_often // np.gcd.reduce(how_often) if proportional else how_often * counts
        with np.errstate(over="ignore"):
            sums.append((mix(seed("member"), ids) * how_often.astype(np.uint64)).sum(dtype=np.uint64))
    return context.signature(mix(seed("histogram"), np.array(sums, dtype=np.uint64)), x)


@register(
    "mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp", "linalg_vector_norm", "var_mean", "std_mean",
    "any", "all", "norm", "argmax", "argmin", "max", "min", "median", "nansum",
)  # fmt: skip
def reduction(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A reduction over places works unit by unit. One over units sees all of them as a whole."""
    x = args[0]
    name = name_of(func)
    dims = _dims(func, args, kwargs)
    if dims is None or (len(tensors((args, kwargs))) > 1):
        return unknown(context, func, args, kwargs, out)
    reduced = {d % x.dim() for d in dims} if dims else set(range(x.dim()))
    given = array(context, x)
    over = [d for d in reduced if given.shape[d] > 1]
    keep = [d for d in range(x.dim()) if d not in over]
    key = (name, x.dim(), numbers((args[1:], kwargs)))
    proportional = _proportional(name, args, kwargs)
    if not over:
        # (A mean over a constant is that constant, however many there are.)
        count = not proportional or context.has_units(given)
        sizes = tuple(x.shape[d] for d in sorted(reduced)) if count else ()
        made = context.make((key, sizes), [given])
    else:
        moved = np.moveaxis(given, over, range(given.ndim - len(over), given.ndim))
        rows = moved.reshape(-1, int(np.prod(moved.shape[given.ndim - len(over) :])))
        crossing = context.crossing(rows, name)
        replicas = _together(context, rows, crossing)
        if not crossing:
            context.read(rows)
        if proportional:
            context.even(rows)
        same = int(np.prod([x.shape[d] for d in reduced if d not in over]))
        signatures = histogram(context, rows, same, proportional)
        # The result has a unit if there are others beside it (the mean of each head), none if it is the mean of all.
        units = rows[:, 0] if crossing else np.full(len(rows), FIXED)
        made = context.derive(key, [signatures], units, replicas)
        made = made.reshape([given.shape[d] if d in keep else 1 for d in range(given.ndim)])
    for i, t in enumerate(tensors(out)):
        mine = made if i == 0 else context.make((*key, i), [made])
        context.set(
            t, mine if t.dim() == x.dim() else mine.reshape([n for d, n in enumerate(mine.shape) if d not in reduced])
        )
    return None


def _together(context: Context, rows: np.ndarray, crossing: bool) -> np.ndarray:
    """The units of each row are replicated equally often. Returns which replica of it a row is, if there are others."""
    roots = context.roots(rows)
    origins, units = context.units.axes_at(roots), roots > FIXED
    first = origins.min(axis=1, where=units, initial=len(context.units))
    if crossing or (origins.max(axis=1, where=units, initial=-1) > first).any():
        return context.fuse(rows) * crossing
    # Units of one layer: it is enough to replicate them as a whole. (The average over heads of attention, say, whose
    # features stand in several places of one weight.)
    context.head(rows)
    return np.zeros(len(rows), dtype=np.int64)


def _dims(func: Any, args: Any, kwargs: Any) -> list[int] | None:
    """The dimensions that are reduced, none for all; None if that cannot be told."""
    at = {a.name: i for i, a in enumerate(func._schema.arguments)}
    if "dim" not in at:
        return [] if len(args) == 1 else None
    dims = kwargs.get("dim", args[at["dim"]] if len(args) > at["dim"] else None)
    if dims is None:
        return []
    return [dims] if isinstance(dims, int) else list(dims)


@register("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp")
def along_one_dim(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Softmax sees all that lies along its dimension. Over places (tokens) it works unit by unit; over units (the
    features of a head), these become one block."""
    x, dim = args[0], args[1]
    if x.dim() == 0:
        return unknown(context, func, args, kwargs, out)
    dim %= x.dim()
    given = array(context, x)
    key = (name_of(func).removeprefix("_safe").removeprefix("_"), x.dim() - dim, numbers(args[2:]))
    if given.shape[dim] == 1:
        return context.set(out, context.make((key, x.shape[dim]), [given]))
    if name_of(func) not in {"_softmax", "_log_softmax", "_safe_softmax"}:
        return refuse(context, func, args, kwargs, out, f"{func} runs over units")
    moved = np.moveaxis(given, dim, -1)
    rows = moved.reshape(-1, given.shape[dim])
    context.fuse(rows)
    signatures = histogram(context, rows).reshape(*moved.shape[:-1], 1)
    return context.set(out, context.make(key, [given, np.moveaxis(signatures, -1, dim)], tied=[True, False]))
