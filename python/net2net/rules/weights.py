"""Weights that layers compute from their parameters before they use them: what computed_weights.py knows how to grow.

A tensor made of parameters alone has no units of its own as long as it may turn out to be such a weight, or to be on
the way to one. If anything but a layer sees it, all that it is made of stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from net2net.computed_weights import Normalised, Standardised
from net2net.context import Context
from net2net.hashes import digest
from net2net.parameters import Made
from net2net.rules.table import array, name_of, numbers, refuse, register, tensors

#: A tensor's part in standardising a weight's rows: their means; a number for each row that depends on the row's
#: variance alone; what is left of the weight without the means, row by row times anything.
_MEAN, _SPREAD, _CENTRED = "mean", "spread", "centred"

#: Followed by the dimensions over which it is a mean so far.
_PART_OF_MEAN = "mean over "

_MOMENTS = {"mean", "var", "std", "var_mean"}
#: What makes such a number for each row of others.
_OF_NUMBERS = {
    "add", "sub", "rsub", "mul", "div", "sqrt", "rsqrt", "pow", "reciprocal", "clamp", "clamp_min", "square", "maximum",
}  # fmt: skip
_NAMES = _MOMENTS | _OF_NUMBERS


@register("_weight_norm_interface")
def weight_norm(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """g v / |v|, where the norms are over all axes but one."""
    v, gain = (context.parameters.handle(t, whole=True) for t in args[:2])
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    every = tuple(range(args[0].dim()))
    if v is None or gain is None or v.dims != every or gain.tensor.shape != args[1].shape:
        return refuse(context, func, args, kwargs, out, "a weight norm of other tensors than parameters")
    how = Normalised(v.name, gain.name, dim % len(every))
    result, norms = tensors(out)
    context.parameters.compute(result, Made(how.needed, how=how, formula=_formula(func, args, kwargs)))
    context.parameters.compute(norms, Made(how.needed))
    return None


def batch_norm(context: Context, func: Any, args: Any, kwargs: Any, out: Tensor) -> bool:
    """A batch norm over the entries of each row of a weight, [1, rows, entries]: weight standardisation. False, if it
    is not like that."""
    x, gain, bias, *statistics = args[:5]
    if statistics != [None, None]:  # those of images
        return False
    for name, p in context.parameters.owners(x):
        rows = (1, p.shape[0], p.numel() // max(p.shape[0], 1)) if p.dim() > 1 else ()
        if tuple(x.shape) == rows and p.is_contiguous() and x.is_contiguous() and out.is_contiguous() and bias is None:
            made = Made((name,), _CENTRED, Standardised(name, 0), frozenset([0]), _formula(func, args, kwargs))
            if isinstance(gain, Tensor):
                context.beside(np.broadcast_to(array(context, gain).ravel(), p.shape[:1]), name, 0)
            context.parameters.compute(out.view(p.shape), made)
            return True
    return False


def standardising(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
    """Whether an operation is one of those by which code standardises a weight. If so, what it makes is known."""
    name = name_of(func)
    if name not in _NAMES or not args or not isinstance(args[0], Tensor):
        return False
    x: Tensor = args[0]
    other: Any = args[1] if len(args) > 1 else None
    known = context.parameters.made(x)
    if known is None and not context.is_parameter(x):
        return False
    if name in _MOMENTS:
        return _moments(context, func, x, known, args, kwargs, tensors(out))
    theirs = context.parameters.made(other) if isinstance(other, Tensor) else None
    if name == "mul" and theirs is not None and theirs.what == _CENTRED and (known is None or known.what == _SPREAD):
        x, other, known, theirs = other, x, theirs, known
    made: Made | None = None
    if known is None:
        owner = _rows(context, x, None)
        mean = theirs is not None and theirs.what == _MEAN and theirs.sources[0] == owner and _by_row(other, x)
        if mean and owner is not None and name == "sub" and kwargs.get("alpha", 1) == 1:
            made = Made((owner,), _CENTRED, Standardised(owner, 0))
    elif known.what == _SPREAD:
        made = known if not isinstance(other, Tensor) or theirs == known else None
    elif known.what == _CENTRED and name in {"mul", "div"} and _rows(context, x, known) is not None:
        made = _scaled(context, known, x, other, theirs, name)
    if made is None:
        return False
    formula = _formula(func, args, kwargs, *[part.formula for part in (known, theirs) if part is not None])
    made = replace(made, formula=formula)
    shape = context.parameters.named(made.sources)[0][1].shape
    whole = made.what == _CENTRED and out.is_contiguous() and out.numel() == shape.numel()
    context.parameters.compute(out.view(shape) if whole else out, made)
    return True


def _moments(
    context: Context, func: Any, x: Tensor, known: Made | None, args: Any, kwargs: Any, out: list[Tensor]
) -> bool:
    """Means and variances of the rows of a weight."""
    name = name_of(func)
    over = args[1] if len(args) > 1 else kwargs.get("dim")
    if over is None or x.dim() < 2:
        return False
    dims = {d % x.dim() for d in ([over] if isinstance(over, int) else over)}
    rest = set(range(1, x.dim()))
    if name == "mean" and known is not None and known.what.startswith(_PART_OF_MEAN) and out[0].dim() == x.dim():
        # One dimension after the other.
        owner, dims = known.sources[0], dims | {d for d in rest if str(d) in known.what}
    elif known is None or known.what == _CENTRED:
        found = _rows(context, x, known)
        if found is None:
            return False
        owner = found
    else:
        return False
    given = kwargs.get("correction")
    correction = 1 if given is None else int(given)
    if correction < 0 or (given is not None and given != correction):
        return False
    formula = _formula(func, [], {"correction": correction}, known.formula if known is not None else b"")
    spread = Made((owner,), _SPREAD, Standardised(owner, correction), frozenset([correction]), formula)
    part = _PART_OF_MEAN + " ".join(map(str, sorted(dims)))
    of_kernels = known is None and min(dims) >= 2
    mean = Made((owner,), _MEAN if dims == rest else part, formula=_formula(func, args, kwargs), kernels=of_kernels)
    if name == "mean" and (known is None or known.what != _CENTRED) and dims <= rest:
        context.parameters.compute(out[0], mean)
        return True
    if name == "mean" or dims != rest or (name == "var_mean" and known is not None):
        return False
    if known is not None and not known.spreads <= spread.spreads:
        return False
    for t, made in zip(out, (spread, mean), strict=False):
        context.parameters.compute(t, made)
    return True


def _formula(func: Any, args: Any, kwargs: Any, *parts: bytes) -> bytes:
    return digest(str(func), numbers((args, kwargs)), *parts)


def _scaled(context: Context, known: Made, x: Tensor, other: Any, theirs: Made | None, name: str) -> Made | None:
    """The centred weight `x` times a number, or one for each row: a spread of its own, or a gain."""
    if not isinstance(other, Tensor):
        return known
    if not _by_row(other, x):
        return None
    if theirs is not None:
        spreads = known.spreads | theirs.spreads
        if theirs.what != _SPREAD or theirs.sources[0] != known.sources[0] or len(spreads) > 1:
            return None
        return replace(known, how=theirs.how, spreads=spreads)
    if name != "mul" or not context.is_parameter(other):
        return None
    context.beside(np.broadcast_to(array(context, other).ravel(), x.shape[:1]), known.sources[0], 0)
    return known


def _rows(context: Context, x: Tensor, known: Made | None) -> str | None:
    """The weight that `x` is, or is made from, if its rows are the weight's, in order; perhaps with all entries of each
    in one."""
    owners = context.parameters.owners(x) if known is None else context.parameters.named(known.sources[:1])
    for name, p in owners:
        if p.dim() < 2 or x.dtype != p.dtype or x.numel() != p.numel() or x.shape[0] != p.shape[0]:
            continue
        if known is None and x.storage_offset() != p.storage_offset():
            continue
        flat = x.dim() == 2 and p.is_contiguous()
        if x.is_contiguous() and (flat or x.shape == p.shape):
            return name
    return None


def _by_row(t: Tensor, x: Tensor) -> bool:
    """Whether `t`, beside `x`, has one number for each of its rows, in order."""
    rows = t.dim() == x.dim() and t.shape[0] == x.shape[0] and (t.stride(0) == 1 or t.shape[0] == 1)
    flat = all(t.shape[d] == 1 or t.stride(d) == 0 for d in range(1, t.dim()))
    return rows and flat and int(t.storage_offset()) == 0
