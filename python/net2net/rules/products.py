"""Sums of products: convolutions, matrix products with weights and between activations, attention, embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from net2net.context import Context
from net2net.hashes import mix, seed, total
from net2net.rules.filters import one_kernel
from net2net.rules.table import (
    array,
    name_of,
    numbers,
    places,
    refuse,
    register,
    rows_along,
    tensors,
    told_apart,
    unknown,
    varies,
)
from net2net.shadows import codes, ids_of
from net2net.units import FIXED

_COMPUTED = "its weight is computed from parameters in a way that is not known"


def _computed(context: Context, func: Any, args: Any, kwargs: Any, out: Any, units: int) -> None:
    """A layer whose weight is made of parameters in ways that a scale of these does not go through."""
    context.units.left_alone(context.module or "the model", units, _COMPUTED)
    refuse(context, func, args, kwargs, out, _COMPUTED)


@register("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution", "convolution_overrideable")
def convolution(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A convolution sums over its input channels and makes new units; a grouped one does so group by group."""
    x, weight, bias = args[:3]
    named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
    groups, transposed = named["groups"], named.get("transposed", False)
    known = context.weight(weight)
    channel = x.dim() - (weight.dim() - 2) - 1
    given = array(context, x)
    image = places(given.shape, x)
    into, outof = (0, 1) if transposed else (1, 0)
    spelled_out = numbers([v for n, v in named.items() if n not in {"input", "weight", "bias", "groups"}])
    depthwise = groups == x.shape[channel] and weight.shape[:2] == (groups, 1)
    kernel = one_kernel(context, weight) if depthwise and known is None else None
    if kernel is None and (known is None or known.dims != tuple(range(weight.dim()))):
        return _computed(context, func, args, kwargs, out, weight.shape[outof])
    name = known.name if known is not None else ""
    given = context.bundle(given, range(channel + 1, x.dim()))
    rows = rows_along(given, channel, x.shape[channel])
    crossing = known is not None and context.crossing(rows, name_of(func))
    if crossing and (weight.shape[:2] != (1, 1) or bias is not None):
        context.produce(name, outof, weight.shape[outof])
        return refuse(context, func, args, kwargs, out, "the input of a convolution has other units in other images")
    key = ("convolution", name, known.formula if known is not None else kernel, image, spelled_out)
    why = f"the input of {name} has a fixed width"
    if known is None or crossing:  # one kernel for all channels, which may have been put into the batch
        if known is not None:
            context.pin_tensor(weight, f"{name} is applied to several units, each by itself")
        made = context.make((key, "filter"), [rows])
    elif groups == 1:
        met = context.meet(name, into, weight.shape[into], "in", rows, why)
        signatures = context.signature(mix(seed("sum"), context.contracted(met, rows, name)), rows)
        units = context.produce(name, outof, weight.shape[outof])
        made = context.make(key, [codes(signatures)[:, None], units[None]], [False, True])
    elif transposed and weight.shape[:2] != (groups, 1):
        context.produce(name, outof, weight.shape[outof])
        return refuse(context, func, args, kwargs, out, f"a transposed convolution with groups={groups}")
    else:
        made = _grouped(context, key, name, weight, rows, groups)
    if isinstance(bias, Tensor):
        if bias.numel() != made.shape[1]:  # shapes alone do not show that
            raise ValueError(f"a bias of {bias.numel()} for {made.shape[1]} channels")
        made = _plus_bias(context, key, bias, made)
    shape = given.shape[:channel]
    made = np.moveaxis(made.reshape(*shape, -1, *[1] * (x.dim() - channel - 1)), len(shape), channel)
    context.set(out, made)
    return None


def _grouped(context: Context, key: object, name: str, weight: Tensor, rows: np.ndarray, groups: int) -> np.ndarray:
    """A group, with all that goes in and comes out, is one block: it is replicated as a whole, and `groups` grows."""
    o = weight.shape[0]
    inputs = rows.reshape(len(rows), groups, -1)
    role = "each" if o == groups and weight.shape[1] == 1 else "out"
    met = _first_of(rows, groups, o // groups)
    units = context.meet(name, 0, o, role, met, f"the input of {name} has a fixed width") if role == "each" else None
    if units is None:
        units = context.produce(name, 0, o)
        mine = units.reshape(groups, -1)
        context.fuse(np.concatenate([mine, inputs.transpose(1, 0, 2).reshape(groups, -1)], axis=1))
        stuck = (context.roots(inputs) == FIXED).any(axis=(0, 2))
        context.pin(mine[stuck], f"the input of {name} has a fixed width")
    places = np.arange(inputs.shape[-1])
    sums = total(mix(mix(seed("grouped"), places), ids_of(inputs)))  # [rows, groups]
    signatures = context.signature(mix(seed("sum"), sums), rows)
    each = np.repeat(signatures, o // groups, axis=1)
    return context.make(key, [codes(each), units[None], met], [False, True, role == "each"])


def _first_of(rows: np.ndarray, groups: int, each: int) -> np.ndarray:
    """[rows, groups * each]: one input of the group of each output."""
    return np.repeat(rows.reshape(len(rows), groups, -1)[:, :, 0], each, axis=1)


def _plus_bias(context: Context, key: object, bias: Tensor, made: np.ndarray) -> np.ndarray:
    added = array(context, bias, bias.dim() - 1, made)
    if bias.numel() > 1 and (context.roots(added) == FIXED).any():
        context.pin(made, "its bias has a fixed width")
    return context.make((key, "bias"), [made, np.broadcast_to(added.reshape(1, -1), (1, made.shape[1]))])


@register("mm", "addmm", "linear")
def linear(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A matrix product with a weight on the right sums over its input features and makes new units."""
    kind = name_of(func)
    if kind == "addmm":
        bias, x, right = args[:3]
    else:
        x, right, bias = args[0], args[1], args[2] if len(args) > 2 else None
    known = context.weight(right)
    if known is None:
        mixing = context.is_parameter(x) and not context.is_parameter(right) and _over_places(context, right, 0)
        if kind == "mm" and not context.is_parameter(right) and (mixing or not context.is_parameter(x)):
            return _between(context, func, x[None], right[None], out[None])
        if kind != "linear" and (part := context.parameters.rows(right)) is not None:
            return _by_rows(context, func, ("linear", part[0], numbers(kwargs)), x, bias, part, out)
        if bias is None and (vector := _as_vector(context, right, 0 if kind == "linear" else 1)) is not None:
            return _with_vector(context, func, x, vector, out)
        return _computed(context, func, args, kwargs, out, right.shape[0 if kind == "linear" else 1])
    name, dims = known.name, known.dims
    # F.linear has the weight as [out, in]; mm and addmm have it on the right, as [in, out].
    into, outof = (dims[1], dims[0]) if kind == "linear" else (dims[0], dims[1])
    features, produced = (right.shape[1], right.shape[0]) if kind == "linear" else (right.shape[0], right.shape[1])
    given = array(context, x)
    rows = rows_along(given, x.dim() - 1, features)
    context.carriers.used(x, (name, into))
    key = ("linear", name, known.formula, numbers(kwargs))
    if context.has_units(given) and given.shape[-1] == 1 < features:
        return _along(context, key, name, given, (into, features), (outof, produced), bias, out)
    crossing = context.crossing(rows, name_of(func))
    if crossing:
        made = _within(context, key, name, rows, (into, features), (outof, produced))
    else:
        met = context.meet(name, into, features, "in", rows, f"the input of {name} has a fixed width")
        signatures = context.signature(mix(seed("sum"), context.contracted(met, rows, name)), rows)
        units = context.produce(name, outof, produced)
        made = context.make(key, [codes(signatures)[:, None], units[None]], [False, True])
    if isinstance(bias, Tensor):
        if crossing:
            context.pin_tensor(bias, f"{name} is applied to several units")
            made = context.make((key, "bias"), [made, array(context, bias).reshape(1, -1)], [True, False])
        else:
            made = _plus_bias(context, key, bias, made)
    context.set(out, made.reshape(*given.shape[:-1], produced))
    return None


@register("mv")
def matrix_times_vector(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A sum over features, weighted by a parameter (the scores of additive attention)."""
    x, vector = args
    if context.is_parameter(x) or context.weight(vector) is None:
        return unknown(context, func, args, kwargs, out)
    return _with_vector(context, func, x, vector, out)


def _as_vector(context: Context, t: Tensor, dim: int) -> Tensor | None:
    """The parameter that a matrix of size 1 along a dimension is, as a vector; None if it is not one."""
    if t.shape[dim] != 1:
        return None
    vector = t.select(dim, 0)
    return None if context.weight(vector) is None else vector


def _with_vector(context: Context, func: Any, x: Tensor, vector: Tensor, out: Tensor) -> None:
    """x [..., n] times a parameter [n], which is like a layer with a single unit, that stays one."""
    known = context.weight(vector)
    assert known is not None
    given, features = array(context, x), len(vector)
    rows = rows_along(given, x.dim() - 1, features)
    if context.crossing(rows, name_of(func)) or (context.has_units(given) and given.shape[-1] == 1 < features):
        return refuse(context, func, (x, vector), {}, out, f"{known.name} is applied to several units")
    context.carriers.used(x, (known.name, 0))
    met = context.meet(known.name, 0, features, "in", rows, f"the input of {known.name} has a fixed width")
    sums = context.signature(mix(seed("sum"), context.contracted(met, rows, known.name)), rows)
    made = context.make(("linear", known.name, known.formula), [codes(sums)], [False])
    context.set(out, made.reshape(given.shape[:-1] + (1,) * (out.dim() - x.dim() + 1)))


def _by_rows(
    context: Context,
    func: Any,
    key: object,
    x: Tensor,
    bias: Tensor | None,
    part: tuple[str, int, int],
    out: Tensor,
) -> None:
    """A product with some of the rows of a weight makes some of its units: queries of one sequence, keys and values of
    another."""
    name, produced, first = part
    rows = rows_along(array(context, x), 1, x.shape[1])
    if context.crossing(rows, name_of(func)):
        return refuse(context, func, (x,), {}, out, f"a part of {name} is applied to several units")
    met = context.meet(name, 1, x.shape[1], "in", rows, f"the input of {name} has a fixed width")
    signatures = context.signature(mix(seed("sum"), context.contracted(met, rows, name)), rows)
    every = context.produce(name, 0, produced)
    units = every[first : first + out.shape[1]]
    context.taken(every, units)
    made = context.make(key, [codes(signatures)[:, None], units[None]], [False, True])
    if isinstance(bias, Tensor):
        made = _plus_bias(context, key, bias, made)
    context.set(out, made)
    return None


def _along(
    context: Context,
    key: object,
    name: str,
    given: np.ndarray,
    into: tuple[int, int],
    outof: tuple[int, int],
    bias: Tensor | None,
    out: Tensor,
) -> None:
    """A matrix along a dimension without units (the tokens of each channel, as in an MLP-Mixer): it stays as it is, and
    what it makes is again one family of values for each unit."""
    why = f"{name} mixes what belongs to one unit"
    left, right = context.produce(name, *into), context.produce(name, *outof)
    context.pin(left, why)
    context.pin(right, why)
    fixed = []
    if isinstance(bias, Tensor):
        context.pin_tensor(bias, why)
        fixed = [array(context, bias)]
    terms = total(mix(mix(seed("matrix"), ids_of(left))[:, None], ids_of(right)).reshape(-1))
    key = (key, int(terms), *(int(total(mix(seed("bias"), ids_of(f).ravel()))) for f in fixed))
    context.set(out, context.make(key, [given]))


def _within(
    context: Context, key: object, name: str, rows: np.ndarray, into: tuple[int, int], outof: tuple[int, int]
) -> np.ndarray:
    """One matrix for the rows of several units (features of each head, say). It stays as it is, and
    what it makes of a row is replicated with the row."""
    why = f"{name} is applied to several units, within each"
    left, right = context.produce(name, *into), context.produce(name, *outof)
    context.pin(left, why)
    context.pin(right, why)
    replicas = context.fuse(rows)
    sums = total(mix(mix(seed("term"), ids_of(left)), ids_of(rows)))
    signatures = context.signature(mix(seed("sum"), sums), rows)
    return context.derive(key, [signatures[:, None], right[None]], rows[:, :1], replicas[:, None])


@register("bmm", "baddbmm")
def batched(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Products between activations: see `_between`. What is added to them (a mask of attention) may have no units."""
    start = 1 if name_of(func) == "baddbmm" else 0
    x, y = args[start : start + 2]
    if not start and y.shape[0] == 1:  # `torch.einsum` with a matrix of weights, or a vector
        if context.weight(y[0]) is not None:
            return linear(context, func, (x[0], y[0]), kwargs, out[0])
        if x.shape[0] == 1 and (vector := _as_vector(context, y[0], 1)) is not None:
            return _with_vector(context, func, x[0], vector, out[0])
    if not start and x.shape[0] == 1 and context.weight(x[0]) is not None:
        return linear(context, func, (y[0].t(), x[0].t()), kwargs, out[0].t())
    both = context.is_parameter(x), context.is_parameter(y)
    mixing = both == (True, False) and _over_places(context, y, 1)
    if any(both) and not mixing and not (both == (False, True) and _over_places(context, x, 2)):
        return refuse(context, func, args, kwargs, out, "a batch of matrices of parameters")
    added = array(context, args[0]) if start and kwargs.get("beta", 1) != 0 else None
    if added is not None and context.has_units(added):
        return refuse(context, func, args, kwargs, out, "units are added to a product of matrices")
    _between(context, func, x, y, out, numbers(kwargs))
    if added is not None:
        made = array(context, out)
        added = added.reshape((1,) * made.ndim)
        added = told_apart(context, args[0], added, [d for d in range(made.ndim) if varies(context, made, d)])
        context.set(out, context.make("baddbmm", [made, added], [True, False]))
    return None


def _over_places(context: Context, t: Tensor, dim: int) -> bool:
    """Whether a tensor has units, and none along a dimension: what is summed up along it are places (the nodes of a
    graph, by its adjacency), unit by unit."""
    codes = array(context, t)
    return codes.shape[dim] == 1 < t.shape[dim] and context.has_units(codes)


def _between(context: Context, func: Any, x: Tensor, y: Tensor, out: Tensor, key: object = ()) -> None:
    """x [b, n, k] times y [b, k, m]: all the units of a batch entry (a head of attention) become one block. A matrix
    without units (of a graph's edges) that sums over places does so unit by unit."""
    a, b = array(context, x), array(context, y)
    if context.has_units(a) != context.has_units(b):
        # What has no units may be another matrix for each entry.
        a = told_apart(context, x, a, [0] if varies(context, b, 0) else [])
        b = told_apart(context, y, b, [0] if varies(context, a, 0) else [])
    if context.has_units(a) != context.has_units(b) and a.shape[2] == b.shape[1] == 1:
        made = context.make(("matmul", x.shape[2], key), [a, b], [context.has_units(a), context.has_units(b)])
        return context.set(out, made)
    if not context.has_units(a) and not context.has_units(b):
        sums = total(mix(seed(("fixed", x.shape[2])), np.concatenate([np.unique(ids_of(a)), np.unique(ids_of(b))])))
        nothing = np.full(1, FIXED)
        return context.set(
            out, context.derive(("matmul", key), [np.atleast_1d(sums).astype(np.int64)], nothing, nothing - 1)
        )
    key = ("matmul", key)
    by_row = _by_row(context, func, a, b.transpose(0, 2, 1), x.shape[2], ("left", key))
    if by_row is not None:
        return context.set(out, by_row)
    by_row = _by_row(context, func, b.transpose(0, 2, 1), a, x.shape[2], ("right", key))
    if by_row is not None:
        return context.set(out, by_row.transpose(0, 2, 1))
    return context.set(out, product(context, a, b, x.shape[2], key))


def _by_row(context: Context, func: Any, a: np.ndarray, b: np.ndarray, k: int, key: object) -> np.ndarray | None:
    """Codes [b, n, 1] of the product of codes [b, n, k] and [b, m, k], where the rows of each matrix on the left are of
    several units (the features of each head), and the one on the right has none of these (a table of positions): it
    stays as it is, and what is made of a row is replicated with the row. None, if it is not like that."""
    if a.shape[1] == 1 or a.shape[2] == 1 or np.isin(units := context.roots(a), context.roots(b))[units > FIXED].any():
        return None
    origin = int(context.units.axes_at(context.roots(b)).max())
    if not context.crossing(a[0], f"{name_of(func)} with {origin}"):
        return None
    context.pin(b, f"{func} applies it to several units")
    rows = a.reshape(-1, a.shape[2])
    replicas = context.fuse(rows)
    context.head(rows)
    tables = ids_of(b).reshape(len(b), -1)
    other = total(mix(mix(seed(("table", b.shape[1:])), np.arange(tables.shape[1])), tables))
    other = np.repeat(np.broadcast_to(other, (a.shape[0],)), a.shape[1])
    sums = total(mix(mix(seed(("row", k)), np.arange(a.shape[2])), ids_of(rows)))
    signatures = context.signature(mix(sums, other), rows)
    return np.asarray(context.derive(key, [signatures], rows[:, 0], replicas).reshape(*a.shape[:2], 1))


def product(context: Context, a: np.ndarray, b: np.ndarray, k: int, key: object) -> np.ndarray:
    """Codes [b, n, m] of the product of codes [b, n, k] and [b, k, m], compact."""
    batch = max(a.shape[0], b.shape[0])
    a, b = np.broadcast_to(a, (batch, *a.shape[1:])), np.broadcast_to(b, (batch, *b.shape[1:]))
    wide = max(a.shape[2], b.shape[1])
    every = np.concatenate([a.reshape(batch, -1), b.reshape(batch, -1)], axis=1)
    replicas = context.fuse(every)
    context.head(every)
    left = np.broadcast_to(a, (*a.shape[:2], wide))[:, :, None, :]
    right = np.broadcast_to(b, (batch, wide, b.shape[2])).transpose(0, 2, 1)[:, None]
    terms = mix(mix(seed("pair"), ids_of(left)), ids_of(right))
    with np.errstate(over="ignore"):
        sums = total(terms) * np.uint64(k // wide)
    # Some value of each entry that has a unit; else any.
    units = np.take_along_axis(every, np.argmax(context.roots(every) > FIXED, axis=1)[:, None], 1)
    signatures = context.signature(mix(seed("product"), sums), every)
    return context.derive(key, [signatures], units[:, :, None], replicas[:, None, None])


@register(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
)  # fmt: skip
def attention(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """softmax(q k^T) v: each head is a block, q and k its inner places, v what comes out of it."""
    q, k, v = args[:3]
    given = [array(context, q), *(_repeated(array(context, t), q.shape[1] // t.shape[1]) for t in (k, v))]
    result, *rest = tensors(out)
    where = [d for d in range(2) if any(varies(context, g, d) for g in given)]
    given = [told_apart(context, t, g, where) for t, g in zip((q, k, v), given, strict=True)]
    heads = np.broadcast_shapes(*[g.shape[:2] for g in given])
    flat = [np.broadcast_to(g, (*heads, *g.shape[2:])).reshape(-1, *g.shape[2:]) for g in given]
    if any(g.shape[1] > 1 for g in flat) or not any(context.has_units(g) for g in flat):
        return refuse(context, func, args, kwargs, out, "attention over tokens of different origin")
    masks = [a for a in [*args[3:], *kwargs.values()] if isinstance(a, Tensor)]
    mask = [_of_heads(context, m, where) for m in masks if m.is_floating_point()]
    # A mask holds biases of the heads, perhaps, in the dimension of the heads.
    biases = [np.broadcast_to(m[..., :1, :1], (*heads, 1, 1)).reshape(-1, 1, 1) for m in mask]
    tokens = q.shape[-2], k.shape[-2]
    key = (
        "attention",
        tokens,
        q.shape[-1],
        numbers([a for a in args[3:] if not isinstance(a, Tensor)]),
        numbers(kwargs),
    )
    inner = np.concatenate([flat[1].transpose(0, 2, 1), *biases], axis=1) if biases else flat[1].transpose(0, 2, 1)
    outer = np.concatenate([flat[0], *[np.full((len(flat[0]), 1, 1), 0) for _ in biases]], axis=2)
    scores = product(context, outer, inner, max(outer.shape[2], 1), key)
    replicas = context.fuse(np.concatenate([some.reshape(len(some), -1) for some in (flat[2], scores)], axis=1))
    # A head's features stand at different places, though all are weighted by the same scores.
    made = context.derive((key, "values"), [scores, flat[2]], flat[2], replicas[:, None, None])
    context.set(result, made.reshape(*heads, 1, -1))
    for t in rest:
        if t.is_floating_point() and t.dim():
            context.set(t, np.full((1,) * t.dim(), FIXED))
    return None


def _of_heads(context: Context, mask: Tensor, where: list[int]) -> np.ndarray:
    """The codes of a mask, with as many dimensions as what is attended to."""
    codes = array(context, mask)
    codes = codes.reshape((1,) * (4 - codes.ndim) + codes.shape)
    return told_apart(context, mask, codes, where)


def _repeated(given: np.ndarray, times: int) -> np.ndarray:
    """Keys or values of grouped queries: each of their heads is for as many consecutive heads of queries."""
    return np.repeat(given, times, axis=1) if given.shape[1] > 1 else given


@register("embedding")
def embedding(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A table of rows: what is looked up has the units of the columns."""
    weight, index = args[:2]
    known = context.parameters.handle(weight, whole=True)
    if context.has_units(array(context, index)):
        return refuse(context, func, args, kwargs, out, "what is looked up depends on units")
    if known is None or known.dims != (0, 1):
        return refuse(context, func, args, kwargs, out, "the table is computed, not a parameter")
    context.units.looked_up.add(known.name)
    units = context.produce(known.name, 1, weight.shape[1])
    which = array(context, index).reshape(-1)[:1]
    made = context.make(("embedding", known.name), [units, which], [True, False])
    context.set(out, made.reshape((1,) * index.dim() + (-1,)))
    return None
