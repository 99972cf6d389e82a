"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from net2net.context import Context
from net2net.rules.reductions import histogram
from net2net.rules.table import array, name_of, places, register, rows_along, spelled, tensors, unknown
from net2net.rules.weights import batch_norm as of_a_weight
from net2net.shadows import ids_of


@register(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "miopen_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update", "batch_norm",
)  # fmt: skip
def batch_norm(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Normalises unit by unit; its parameters and statistics are replicated with the units (the paper, section 2.3)."""
    x = args[0]
    if context.is_parameter(x) and of_a_weight(context, func, args, kwargs, tensors(out)[0]):
        return None
    channel = min(1, x.dim() - 1)
    given = context.bundle(array(context, x), [d for d in range(x.dim()) if d != channel])
    rows = rows_along(given, channel, x.shape[channel])
    if context.crossing(rows, name_of(func)):
        return unknown(context, func, args, kwargs, out)
    vector = rows[0]
    parameters = [array(context, t, 0, rows).ravel() for t in args[1:5] if isinstance(t, Tensor)]
    different, alike = context.without_repeats([np.broadcast_to(p, vector.shape) for p in parameters])
    # What the network's own mode tells is no part of the value: most of a walk in train mode is then known already.
    key = (name_of(func), spelled(args_but_mode(func, args, context.training)[1:], {}), alike)
    made = context.make(key, [vector, *different])
    result, *rest = tensors(out)
    context.set(result, made.reshape([-1 if d == channel else 1 for d in range(x.dim())]))
    for t in rest:
        if t.dim() == 1 and t.shape[0] == len(made):
            context.set(t, context.make("statistics", [made]))
    return None


def args_but_mode(func: Any, args: Sequence[Any], training: bool) -> list[Any]:
    """The arguments of a batch norm; "as the network" for the mode, if that is the mode of the whole network."""
    names = (a.name for a in func._schema.arguments)
    return ["as the network" if n == "training" and a is training else a for n, a in zip(names, args, strict=False)]


@register("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Averages over units, which keeps its statistics if they are replicated as a whole: the more, the same again."""
    x, shape = args[0], args[1]
    first = x.dim() - len(shape)
    eps = spelled(args[2:], {})
    given = array(context, x)
    rows = given.reshape(-1, int(np.prod(given.shape[first:])))
    context.fuse(rows)
    context.even(rows)
    signatures = histogram(context, rows, proportional=True).reshape(*given.shape[:first], *[1] * len(shape))
    crossing = context.crossing(rows, name_of(func))
    operands, tied = [given, signatures], [True, False]
    for t in tensors(args[2:]):
        along = [d for d in range(len(shape)) if given.shape[first + d] > 1]
        met = rows if len(along) == 1 and not crossing else None
        mine = array(context, t, along[0] if len(along) == 1 else None, met)
        if crossing:  # one gain for several units at a time, the features of all heads: it stays as it is
            context.pin(mine, f"{func} applies it to several units")
        operands.append(mine.reshape((1,) * first + mine.shape))
        tied.append(not crossing)
    result, *rest = tensors(out)
    over = places(given.shape, x)[first:] if context.has_units(given) else ()
    context.set(result, context.make((name_of(func), eps, over), operands, tied))
    for t in rest:
        if t.dim() == x.dim():
            context.set(t, context.make("statistics", [signatures], [False]))


@register("native_group_norm")
def group_norm(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Averages over a group of channels, which is replicated as a whole; `num_groups` grows with the number of
    groups."""
    x, weight, bias, _, channels, _, groups = args[:7]
    given = context.bundle(array(context, x), [d for d in range(x.dim()) if d != 1])
    vector = np.broadcast_to(given.reshape(-1), (channels,))
    rows = vector.reshape(groups, -1)
    context.fuse(rows)
    context.even(rows)
    signatures = np.repeat(histogram(context, rows, proportional=True), channels // groups)
    operands, tied = [vector, signatures], [True, False]
    for t in (weight, bias):
        if isinstance(t, Tensor):
            operands.append(np.broadcast_to(array(context, t, 0, vector[None]).ravel(), vector.shape))
            tied.append(True)
    made = context.make((name_of(func), spelled((weight, bias, *args[7:]), {})), operands, tied)
    result, *rest = tensors(out)
    context.set(result, made.reshape([-1 if d == 1 else 1 for d in range(x.dim())]))
    for t in rest:
        context.set(t, context.make("statistics", [signatures[:1]], [False]).reshape(()))
    assert ids_of(made).size == channels
