"""Weights that are linear in a parameter, kernel by kernel: masked (PixelCNN, MADE), scaled (an equalised learning
rate), in another dtype, summed over their kernels (central differences), flipped, padded, or a difference of such.

With W the parameter, [out, in, ...], L a linear map of what is behind these two dimensions, and m a mask or a gain:

    w[o, i] = m[o, i] L(W[o, i]).

Widening takes rows and columns of a weight and multiplies them by shares. It may as well do so with W, and take the
same rows and columns of m; so W grows as if it were the layer's weight, its gradients by the same law, and noise that
sums to zero in W does so in w.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from net2net.context import Context
from net2net.hashes import digest
from net2net.parameters import Handle, Made
from net2net.rules.table import array, name_of, spelled

LINEAR = {"mul", "div", "neg", "add", "sub", "sum", "mean", "flip", "rot90", "constant_pad_nd", "_to_copy", "clone"}


def linear_in_kernels(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
    """Whether an operation makes such a weight. If so, what it makes is known."""
    name = name_of(func).removesuffix("_")
    if name not in LINEAR or not isinstance(out, Tensor) or not out.is_floating_point():
        return False
    given = args[:2] if name in {"mul", "div", "add", "sub"} else args[:1]
    mine = [_weight(context, t) for t in given]
    at = _at(mine)
    known = mine[at]
    if known is None or (name == "div" and at == 1):
        return False
    x, parts = given[at], [name, at, spelled(args, kwargs), known.formula]
    if out.dim() < 2 or out.shape[:2] != x.shape[:2]:
        return False
    if len(given) == 1:
        if not _behind(name, args, kwargs, x.dim()):
            return False
    elif name in {"add", "sub"}:
        theirs = mine[1 - at]
        if theirs is None or theirs.name != known.name:
            return False
        parts.append(theirs.formula)
    elif isinstance(other := given[1 - at], Tensor):
        multiplier = _multiplier(context, known, x.dim(), other, mine[1 - at])
        if multiplier is None:
            return False
        parts.append(multiplier)
    # A view, since `out` may be transposed in place.
    context.parameters.compute(out.view(out.shape), Made((known.name,), formula=digest(*parts), kernels=True))
    return True


def _weight(context: Context, t: Any) -> Handle | None:
    """The parameter that `t` is, or is linear in, if nothing else is known of it. (What has units along one dimension
    alone is a token, a gain or a bias, as a rule.)"""
    if not isinstance(t, Tensor) or t.dim() < 2 or sum(n > 1 for n in t.shape) < 2:
        return None
    if not context.is_parameter(t) and context.parameters.made(t) is None:
        return None
    known = context.parameters.weight(t)
    if known is None or known.how is not None or not known.straight or t in context.shadows:
        return None
    return known


def _at(found: list[Handle | None]) -> int:
    """Which of the operands is the weight; if two could be, one that is trained."""
    trained = [i for i, known in enumerate(found) if known is not None and isinstance(known.tensor, nn.Parameter)]
    return next(iter(trained), 1 if len(found) > 1 and found[0] is None else 0)


def _behind(name: str, args: Any, kwargs: Any, dims: int) -> bool:
    """Whether an operation with one operand is linear, and about the dimensions behind the first two."""
    if name == "constant_pad_nd":
        value = args[2] if len(args) > 2 else kwargs.get("value", 0)
        return len(args[1]) <= 2 * (dims - 2) and value == 0
    if name in {"sum", "mean", "flip", "rot90"}:
        at = 2 if name == "rot90" else 1
        over = args[at] if len(args) > at else kwargs.get("dim", kwargs.get("dims"))
        return bool(over) and all(d % dims >= 2 for d in over)
    return True


def _multiplier(context: Context, known: Handle, dims: int, t: Tensor, weight: Handle | None) -> bytes | None:
    """What stands for a tensor by which a weight of so many dimensions is multiplied, and which grows along if it has
    to; None, if it cannot.

    Args:
        weight: what it is, if it could be a weight itself.
    """
    if t.dim() > dims:
        return None
    long = [d for d in range(2) if t.dim() >= dims - d and t.shape[d - dims] > 1 and t.stride(d - dims)]
    if weight is not None:
        if weight.name == known.name:  # its square
            return None
        for d in range(2):
            if d in long:
                context.along(weight.name, d, weight.tensor.shape[d], known.name, d)
            else:
                _stays(context, weight, d)
        return digest(weight.name, weight.formula)
    if context.parameters.made(t) is not None:
        return None
    if not long:
        codes = array(context, t)
        if codes.size == 1:  # a scale, which may be a parameter
            context.pin(codes, f"{known.name} is multiplied by it")
        elif context.has_units(codes):
            return None
        return digest(codes)
    handle = context.parameters.handle(t)
    if handle is None:
        return None
    theirs = [handle.dims[d - dims] for d in long]
    sizes = handle.tensor.shape[:2]
    if sorted(theirs) != [at for at, n in enumerate(sizes) if n > 1] or not handle.tensor.is_contiguous():
        return None
    if any(t.shape[d - dims] != sizes[at] for d, at in zip(long, theirs, strict=True)):
        return None
    for at in range(len(sizes)):
        if at not in theirs:
            _stays(context, handle, at)
    for d, at in zip(long, theirs, strict=True):
        context.along(handle.name, at, sizes[at], known.name, d)
    behind = [(t.shape[d - dims], t.stride(d - dims)) for d in range(2, dims) if t.dim() >= dims - d]
    return digest(handle.name, long, theirs, t.storage_offset() - handle.tensor.storage_offset(), behind)


def _stays(context: Context, multiplier: Handle, dim: int) -> None:
    """One number for all of a weight's positions is still that if these become more; but it must not become several
    itself, with shares of its own, as a weight of another layer."""
    one = context.produce(multiplier.name, dim, multiplier.tensor.shape[dim], "each")
    context.pin(one, f"{multiplier.name} multiplies a weight, all along its axis {dim} alike")
