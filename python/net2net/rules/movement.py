"""Operations that move data without changing it, and those that treat each channel of an image by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from net2net.context import Context
from net2net.expanded import worked_along
from net2net.hashes import mix, seed, total
from net2net.rules.table import (
    aligned_codes,
    ambiguous,
    array,
    chosen_by,
    crosses_units,
    indexed_dims,
    name_of,
    numbers,
    places,
    register,
    tensors,
    told_apart,
    unknown,
    varies,
)
from net2net.shadows import compact, compressed, ids_of
from net2net.units import CONSTANT, FIXED
from net2net.views import geometry_of


@register("cat", "stack")
def concatenate(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Units side by side (the paper, section 2.3: the remapping of a consumer takes the concatenation into account)."""
    stacked = name_of(func) == "stack"
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    given = [t for t in args[0] if stacked or (t.shape != (0,) and t.shape[dim])]
    if not given:
        return
    sizes = [1 if stacked else t.shape[dim] for t in given]
    if _one_tensor(given) and not context.is_parameter(given[0]):
        x = given[0].unsqueeze(dim) if stacked else given[0]
        if _repeated(context, x, out, [len(given) if d == dim else 1 for d in range(x.dim())]):
            return
    # A table of tokens that is joined to others has its units where theirs are.
    parts = aligned_codes(context, name_of(func), given, given[0].dim(), None if stacked else dim)
    if stacked:
        parts = [np.expand_dims(p, dim) for p in parts]
    context.set(out, _side_by_side(context, parts, sizes, dim))


def _one_tensor(given: list[Tensor]) -> bool:
    """Whether they are several times the same."""
    return len(given) > 1 and len({(t.untyped_storage()._cdata, t.dtype, geometry_of(t)) for t in given}) == 1


def _repeated(context: Context, x: Tensor, out: Tensor, repeats: list[int]) -> bool:
    """What has one code for all of it, several times. How often is no part of the value: no more than with `expand`."""
    few = compact(context.of(x))
    if few.numel() != 1:
        return False
    context.expanded.repeated(x, out, repeats)
    shape = [1] * (out.dim() - x.dim()) + list(x.shape)
    # In the place of each number there is a sequence, whose period is no width.
    sequences = [(d, n) for d, (n, r) in enumerate(zip(shape, repeats, strict=True)) if n > 1 < r]
    made = few.reshape(1).numpy()
    context.set(out, (context.make(("repeat", sequences), [made], uniform=True) if sequences else made).reshape(()))
    return True


def _side_by_side(context: Context, parts: list[np.ndarray], sizes: list[int], dim: int) -> np.ndarray:
    others = np.broadcast_shapes(*[(*p.shape[:dim], 1, *p.shape[dim + 1 :]) for p in parts])
    inside = any(context.has_units(p) and p.shape[dim] > 1 for p in parts)
    across = any(context.has_units(p) and p.size > p.shape[dim] for p in parts)
    if across and not inside:
        return _family(context, parts, sizes)
    parts = _told_apart(context, parts)
    wide = [np.broadcast_to(p, (*others[:dim], n, *others[dim + 1 :])) for p, n in zip(parts, sizes, strict=True)]
    return np.concatenate(wide, dim)


def _told_apart(context: Context, parts: list[np.ndarray]) -> list[np.ndarray]:
    """The parts with other ids for values that an earlier part has: places of one image side by side, perhaps, which
    are not the same value. What cuts and shuffles the result is then known by what it moves."""
    ids = [ids_of(part) for part in parts]
    number = np.repeat(np.arange(len(parts)), [i.size for i in ids])
    unique, which = np.unique(np.concatenate([i.ravel() for i in ids]), return_inverse=True)
    first = np.full(len(unique), len(parts))
    np.minimum.at(first, which, number)
    seen = np.split(first[which] < number, np.cumsum([i.size for i in ids])[:-1])
    apart = []
    for i, (part, before) in enumerate(zip(parts, seen, strict=True)):
        again = before.reshape(part.shape) & (context.roots(part) != CONSTANT)
        if again.any():
            part = part.copy()
            part[again] = context.make(("part", i), [part[again]])
        apart.append(part)
    return apart


def _family(context: Context, parts: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """Tokens of different origin (a class token and patches): the units lie along other dimensions, in which all the
    tokens must be replicated alike. From here on they are one family of values, as the places of an image are."""
    arrays = np.broadcast_arrays(*parts)
    for other in arrays[1:]:
        stuck = context.roots(other) == FIXED
        context.pin(arrays[0][stuck], "it stands beside tokens whose width is fixed")
        context.pin(other[context.roots(arrays[0]) == FIXED], "it stands beside tokens whose width is fixed")
        context.join(arrays[0], other)
    return context.make(("tokens", len(parts), tuple(sizes)), arrays)


@register("constant_pad_nd")
def pad(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    x, widths = args[0], list(args[1])
    codes = array(context, x)
    padded = {x.dim() - 1 - i // 2 for i, w in enumerate(widths) if w}
    if any(codes.shape[d] > 1 for d in padded):
        fill = int(context.make(("full", numbers(args[2:]) or ("0",)), []))
        codes_ = torch.ops.aten.constant_pad_nd(context.of(x).contiguous(), widths, fill)
        return context.set(out, compressed(codes_))
    return context.set(out, context.make(("pad", numbers(args[1:]), [x.shape[d] for d in sorted(padded)]), [codes]))


@register(
    "roll", "flip", "repeat", "index_select", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "index", "gather",
    "im2col", "rot90", "tril", "triu", "unfold", "repeat_interleave", "take_along_dim",
)  # fmt: skip
def move(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Data movement: codes move as the data do. Indices are used as they are."""
    x = args[0]
    if not isinstance(x, Tensor) or not isinstance(out, Tensor):
        return unknown(context, func, args, kwargs, out)
    known = context.of(x, along=_left_alone(func, args))
    few = compact(known)
    indices = tensors((args[1:], kwargs))
    dims = _moved(func, args)
    if any(crosses_units(context, func, i) for i in indices):
        return unknown(context, func, args, kwargs, out)
    if name_of(func) == "roll" and len(args) < 3:  # what is flattened is rolled: from one image into the next
        return unknown(context, func, args, kwargs, out)
    if name_of(func) == "repeat" and _repeated(context, x, out, list(args[1])):
        return None
    if few.numel() == 1 and name_of(func) in _TAKING and (context.roots(few.numpy()) == CONSTANT).all():
        return context.set(out, few.reshape(()))
    if few.numel() == 1:
        which = chosen_by(context, indices, 1)
        made = few.reshape(1).numpy()
        along = worked_along(name_of(func), args, kwargs, x)
        sizes = tuple(x.shape) if along is None else [x.shape[d] for d in sorted(along)]
        key = (name_of(func), numbers(args[1:]), sizes)
        tied = [True] + [False] * len(which)
        return context.set(out, context.make(key, [made, *which], tied).reshape(()))
    if name_of(func) in {"roll", "flip"} and dims and all(few.shape[d] == 1 for d in dims):
        given = array(context, x)
        return context.set(out, context.make((name_of(func), numbers(args[1:]), places(given.shape, x)), [given]))
    if not all(map(context.is_parameter, indices)) and any(few.shape[d] > 1 for d in _indexed(func, args)):
        return unknown(context, func, args, kwargs, out)  # data tell which units are taken
    if context.has_units(few.numpy()) and any(ambiguous(few.numpy(), d) for d in dims):
        context.pin(few.numpy(), f"{func} moves several places")
    try:
        moved = func(known.contiguous(), *args[1:], **kwargs)
    except (RuntimeError, NotImplementedError):  # there is no integer kernel
        at = torch.arange(1, known.numel() + 1, dtype=torch.float64).view(known.shape)
        where = func(at, *args[1:], **kwargs).long()
        moved = known.contiguous().view(-1)[(where - 1).clamp_min(0)]
        moved[where == 0] = int(context.make(("full", ("0",)), []))
    moved = compressed(moved)
    if indices:
        context.taken(few.numpy(), compact(moved).numpy())
    # Which places, and how many, the numbers tell that it is given; which units, their codes do.
    if (indices or name_of(func) == "unfold") and all(few.shape[d] == 1 for d in dims):
        which = chosen_by(context, indices, out.dim())
        if name_of(func) in {"gather", "take_along_dim"}:  # perhaps by another index for each head
            where = [d for d in range(x.dim()) if varies(context, few.numpy(), d)]
            which = [told_apart(context, i, w, where) for i, w in zip(indices, which, strict=True)]
        tied = [True] + [False] * len(which)
        chosen = ("selected", name_of(func), numbers(args[1:]))
        return context.set(out, context.make(chosen, [compact(moved).numpy(), *which], tied))
    return context.set(out, moved)


#: What is taken out of one constant is that constant.
_TAKING = {"roll", "flip", "index_select", "index", "gather", "repeat_interleave", "take_along_dim"}


@register("index_add", "index_reduce", "scatter_add", "scatter_reduce")
def collect(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Sums over places (the neighbours in a graph, the tokens of an expert), unit by unit, all by the same index."""
    x, dim, index, source = args[:4]
    codes = [array(context, t) for t in (x, source)]
    if not x.dim() or crosses_units(context, func, index) or any(c.shape[dim] > 1 for c in codes):
        return unknown(context, func, args, kwargs, out)
    if name_of(func).startswith("scatter"):
        others = [d for d in range(x.dim()) if d != dim % x.dim()]
        if any(index.stride(d) or not index.shape[d] == source.shape[d] == x.shape[d] for d in others):
            return unknown(context, func, args, kwargs, out)
        for d in others:
            index = index.narrow(d, 0, 1)
    which = array(context, index).reshape((1,) * x.dim())
    key = (name_of(func), dim % x.dim(), x.shape[dim], source.shape[dim], numbers((args[4:], kwargs)))
    return context.set(out, context.make(key, [*codes, which], [True, True, False]))


def _moved(func: Any, args: Any) -> list[int]:
    """The dimensions along which positions are moved by their number."""
    name, rank = name_of(func), args[0].dim()
    if name in {"roll", "flip", "rot90"}:
        return [d % rank for d in args[-1]]
    if name in {"pixel_shuffle", "channel_shuffle"}:
        return [rank - 3 if name == "pixel_shuffle" else 1]
    return [args[1] % rank] if name == "unfold" else _indexed(func, args)


def _indexed(func: Any, args: Any) -> list[int]:
    """The dimensions that are indexed."""
    name, rank = name_of(func), args[0].dim()
    if name == "index":
        return indexed_dims(args[1])
    if name in {"gather", "index_select", "take_along_dim"}:
        dim = args[2] if name == "take_along_dim" else args[1]
        return list(range(rank)) if dim is None else [dim % rank]
    return []


def _left_alone(func: Any, args: Any) -> int | None:
    """The only dimension of a table, of those longer than 1, that is not indexed."""
    if name_of(func) == "index":
        taken = indexed_dims(args[1])
        rest = [d for d in range(args[0].dim()) if d not in taken]
    elif name_of(func) == "index_select":
        rest = [d for d in range(args[0].dim()) if d != args[1] % args[0].dim()]
    else:
        return None
    long = [d for d in rest if args[0].shape[d] > 1]
    return long[0] if len(long) == 1 else rest[0] if len(rest) == 1 else None


def _grid(context: Context, func: Any, grid: Tensor, codes: np.ndarray) -> np.ndarray:
    """One code, or one for each image (which may be a head's), for where it is to be sampled."""
    given = array(context, grid)
    context.pin(given, f"{func} takes them for coordinates")
    order = np.arange(given[0].size).reshape(1, *given.shape[1:])
    each = total(mix(mix(seed("grid"), order), ids_of(given)).reshape(len(given), -1))
    made = context.units.intern(each)
    context.units.adopt(made, FIXED)
    made = made.reshape(-1, *(1,) * (codes.ndim - 1))
    return told_apart(context, grid, made, [0] if varies(context, codes, 0) else [])


@register(
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
    "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "grid_sampler_2d", "grid_sampler_3d",
)  # fmt: skip
def channelwise(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Each channel by itself: pooling, resizing and padding of images."""
    spatial = int(next(c for c in name_of(func).removesuffix("_aa") if c.isdigit()))
    x = args[0]
    channel = x.dim() - spatial - 1
    codes = context.bundle(array(context, x, along=channel), range(channel + 1, x.dim()))
    others = [_grid(context, func, t, codes) for t in tensors(args[1:])]
    result, *indices = tensors(out)
    key = (name_of(func), numbers(args[1:]), tuple(x.shape[channel + 1 :]))
    made = context.make(key, [codes, *others], [True] + [False] * len(others))
    context.set(result, made)
    for t in indices:
        context.set(t, context.make(("indices", name_of(func)), [codes]))
    return None
