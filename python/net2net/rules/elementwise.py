"""Operations that work element by element, and those that make constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from net2net.context import Context
from net2net.hashes import seed
from net2net.rules.table import (
    POINTWISE,
    aligned_codes,
    ambiguous,
    array,
    chosen_by,
    crosses_units,
    indexed_dims,
    is_long,
    is_mask,
    name_of,
    numbers,
    register,
    spelled,
    tensors,
    told_apart,
    unknown,
    varies,
)  # fmt: skip
from net2net.shadows import compact
from net2net.units import FIXED


@register(
    "clone", "_to_copy", "copy", "contiguous", "lift_fresh_copy", "hardtanh", "hardswish",
    "hardsigmoid", "leaky_relu", "elu", "gelu", "silu", "mish", "softplus", "_prelu_kernel", "threshold", "relu6",
    "log_sigmoid", "nan_to_num", "masked_fill", "rsub",
    "complex", "polar",
)  # fmt: skip
def pointwise(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Units that meet in one element must be replicated alike; then equal inputs give equal outputs.

    An operand that is broadcast along the units of another one (a spatial gate) has one value for all of them, and
    needs no agreement; but its own units must keep one replica, or it would no longer broadcast. Unless it has one for
    each block (the norm of each head): it is replicated with that.
    """
    results = tensors(out)
    if not results:
        return unknown(context, func, args, kwargs, out)
    if func is _COUNTING and not isinstance(args[1], Tensor) and context.is_counter(results[0]):
        return context.set(results[0], context.make(("count", spelled(args, kwargs)), [array(context, results[0])]))
    dims = results[0].dim()
    aligned, tied = _meeting(context, func, tensors((args, kwargs)), dims)
    made = context.make((name_of(func).removesuffix("_"), spelled(args, kwargs)), aligned, tied, uniform=True)
    for t in results:
        context.set(t, made if t.dim() == dims else np.full((), FIXED, dtype=np.int64))


_COUNTING = torch.ops.aten.add_.Tensor

POINTWISE.append(pointwise)


def _meeting(context: Context, func: Any, operands: list[Tensor], dims: int) -> tuple[list[np.ndarray], list[bool]]:
    """The operands' codes, and which of them must be replicated as the result is."""
    aligned = aligned_codes(context, name_of(func), operands, dims)
    shapes = [(1,) * (dims - t.dim()) + tuple(t.shape) for t in operands]
    tied = []
    for i, mine in enumerate(aligned):
        over = [d for d, n in enumerate(shapes[i]) if n == 1 and any(varies(context, a, d) for a in aligned)]
        crossed = bool(over) and _crosses(context, i, aligned, shapes, over)
        if over and not crossed and not _of_its_own_blocks(context, mine, aligned):
            context.pin(mine, f"{func} broadcasts it over other units")
        tied.append(not over or crossed)
    _pin_to_fixed(context, func, operands, aligned, tied, dims)
    return aligned, tied


def _crosses(context: Context, i: int, codes: list[np.ndarray], shapes: list[tuple[int, ...]], over: list[int]) -> bool:
    """Whether the units along which operand `i` is broadcast are broadcast along its own, and are fewer (each channel's
    decay for each of a few states): these stay as many as they are, and what is made has this one's units."""
    own = [d for d in range(len(shapes[i])) if varies(context, codes[i], d)]
    others = [k for k, other in enumerate(codes) if any(varies(context, other, d) for d in over)]
    return bool(own) and all(codes[k].size < codes[i].size and all(shapes[k][d] == 1 for d in own) for k in others)


def _of_its_own_blocks(context: Context, mine: np.ndarray, others: list[np.ndarray]) -> bool:
    """Whether what is broadcast meets, wherever it has a unit, the features of the same block, and no others."""
    for other in others:
        a, b = np.broadcast_arrays(mine, other)
        unit = context.roots(a)
        if ((unit > FIXED) & (context.roots(b) != unit)).any():
            return False
    for other in others:
        context.agree(mine, other)
    return True


def _pin_to_fixed(
    context: Context, func: Any, operands: list[Tensor], aligned: list[np.ndarray], tied: list[bool], dims: int
) -> None:
    """An operand whose width is fixed (it is neither expanded nor of units) keeps the units that it meets."""
    for t, mine, counts in zip(operands, aligned, tied, strict=True):
        if not counts or not (context.roots(mine) == FIXED).any():
            continue
        for other in aligned:
            along = [d for d in range(dims) if varies(context, other, d)]
            if other is mine or not any(is_long(t, d - (dims - t.dim())) for d in along):
                continue
            met, at = np.broadcast_arrays(other, mine)
            context.pin(met[context.roots(at) == FIXED], f"{func} joins it to a tensor whose width is fixed")


@register("glu")
def gated(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """The first half along a dimension, times the sigmoid of the second one."""
    x = args[0]
    dim = (args[1] if len(args) > 1 else -1) % x.dim()
    codes = array(context, x)
    if codes.shape[dim] == 1:
        return context.set(out, context.make(("glu", x.dim() - dim, x.shape[dim]), [codes]))
    if ambiguous(codes, dim):
        context.pin(codes, f"{func} takes some of several places")
    return context.set(out, context.make("glu", np.split(codes, 2, dim)))


@register("copy_")
def overwrite(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    codes = array(context, args[1])
    target = args[0]
    if codes.ndim > target.dim():
        codes = codes.reshape(codes.shape[codes.ndim - target.dim() :])
    codes = codes.reshape((1,) * (target.dim() - codes.ndim) + codes.shape)
    if (known := context.shadows.get(target)) is not None:
        old = np.asarray(compact(known).numpy())
        codes = told_apart(context, args[1], codes, [d for d in range(target.dim()) if varies(context, old, d)])
    context.set(target, codes)


@register("index_put", "_unsafe_index_put", "_index_put_impl")
def put(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Values in the place of others, at some places and there for all units; or a number wherever a mask says."""
    x, indices, values = args[:3]
    masked = [i for i in indices if i is not None]
    dims = indexed_dims(indices)
    over_all = len(masked) == 1 and is_mask(masked[0]) and masked[0].shape == x.shape and values.numel() == 1
    if not x.dim() or values.dim() > x.dim():
        return unknown(context, func, args, kwargs, out)
    first = x.dim() - max(dims, default=-1) - 1
    if not over_all:
        # What is put has its first dimensions in the place of those that are indexed, one for all of a mask.
        for t in (x, values):
            codes = array(context, t) if t in context.shadows or not context.is_parameter(t) else None
            if codes is not None and any(n > 1 for n in codes.shape[: codes.ndim - first]):
                return unknown(context, func, args, kwargs, out)
        if any(crosses_units(context, func, i) for i in masked):
            return unknown(context, func, args, kwargs, out)
    operands = [x, values, *masked] if over_all else [x, values]
    aligned, tied = _meeting(context, func, operands, x.dim())
    if not over_all:
        which = chosen_by(context, masked, x.dim())
        aligned, tied = [*aligned, *which], [*tied, *([False] * len(which))]
    # How many places there are to choose from, and how many are put there.
    sizes = () if over_all else ([x.shape[d] for d in dims], tuple(values.shape[: values.dim() - first]))
    key = ("index_put", sizes, numbers((args[3:], kwargs)))
    return context.set(out, context.make(key, aligned, tied))


@register("zero", "fill")
def constant_write(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A constant in the place of units: there are still as many."""
    known = context.shadows.get(args[0])
    if known is None and context.is_parameter(args[0]):
        known = context.of(args[0])
    old = [] if known is None else [context.families(np.asarray(compact(known).numpy()))]
    new = [array(context, t).reshape((1,) * args[0].dim()) for t in tensors(args[1:])]
    context.set(out, context.make(("full", numbers(args[1:]) or ("0",)), [*old, *new], uniform=True))


@register(
    "zeros", "ones", "full", "empty", "empty_strided", "scalar_tensor", "new_zeros", "new_ones", "new_full",
    "new_empty", "new_empty_strided", "zeros_like", "ones_like", "full_like", "empty_like",
)  # fmt: skip
def constant(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    name = name_of(func).removeprefix("new_").removesuffix("_like")
    value: Any = {"zeros": 0, "ones": 1}.get(name, "uninitialised")
    if name in {"full", "scalar_tensor"}:
        value = numbers([a for a in args if not isinstance(a, list | tuple | Tensor)])
    context.set(out, context.make((name, value), []))


@register("bernoulli")
def chance(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Dropout's mask. It differs from replica to replica, which is welcome (the paper, section 2.3), so that any units
    may be combined with it. (One that is drawn in eval mode too is part of the function.)"""
    if not context.training:
        return noise(context, func, args, kwargs, out)
    in_place = func._schema.is_mutable
    probabilities = [array(context, t) for t in tensors(args[1:] if in_place else args)]
    # Always the same numbers are part of the function, and so are units that are on or off by chance.
    if kwargs.get("generator") is not None or any(map(context.has_units, probabilities)):
        return unknown(context, func, args, kwargs, out)
    context.set(out, context.make((name_of(func), numbers(args[1:])), []))
    return None


@register("rand_like", "randn_like", "rand", "randn", "normal", "uniform", "exponential", "cauchy", "log_normal")
def noise(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Random numbers of a given distribution: as many as there are. What is made of one for each unit (a sample of a
    latent variable) would have another distribution with one for each replica, since a sum over these averages it."""
    # A mean, a standard deviation or a probability for each; not what is only written to, or taken as a pattern.
    moments = tensors(args[1:] if func._schema.is_mutable or name_of(func).endswith("_like") else args)
    if kwargs.get("generator") is not None or any(context.has_units(array(context, t)) for t in moments):
        return unknown(context, func, args, kwargs, out)
    # (Code may have set the seed, to a number that a width tells.)
    made = context.units.intern(np.atleast_1d(seed((name_of(func), numbers((args[1:], kwargs)), torch.initial_seed()))))
    context.units.adopt(made, FIXED)
    context.set(out, made.reshape(()))
    return None


@register("sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "is_same_size")
def nothing(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Tells of shapes alone."""


@register("native_dropout")
def dropout(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    if not context.training and args[2] is not False and args[1]:
        return unknown(context, func, args, kwargs, out)
    result, mask = out
    context.set(result, context.make(("dropout", args[1]), [np.asarray(compact(context.of(args[0])).numpy())]))
    context.set(mask, context.make(("dropout", args[1]), []))
    return None
