"""The rules: for each operation, what it means for the units that pass through it.

One table, from the name of an ATen operation to a short function. An operation that is in no table pins all the units
it is
given: it is never assumed to be element-wise. (Element-wise operations are recognised by the tag that PyTorch itself
    gives
them.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from net2net.labels import along, compact, spread
from net2net.trace import Context
from net2net.units import CONSTANT, FIXED

Rule = Callable[[Context, Any, Any, Any, Any], None]

_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the decorated function as the rule for these ATen operations (without namespace and overload)."""

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
        return function

    return register


def name_of(func: Any) -> str:
    return (
        func.overloadpacket.__name__
        if func.namespace == "aten"
        else f"{func.namespace}::{func.overloadpacket.__name__}"
    )


def rule_for(func: Any) -> Rule:
    """The rule for an operation: its own, the one for element-wise operations or views, or the one that pins."""
    name = name_of(func)
    if name in _RULES:
        return _RULES[name]
    # An in-place operation means for units what its out-of-place form means.
    if name.endswith("_") and not name.endswith("__") and name[:-1] in _RULES:
        return _RULES[name[:-1]]
    if torch.Tag.pointwise in func.tags and torch.Tag.nondeterministic_seeded not in func.tags:
        return pointwise
    if _is_view(func):
        return view
    return unknown


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _all_fixed(t: Tensor) -> Tensor:
    return torch.full((1,) * t.dim(), FIXED, dtype=torch.int32).expand(t.shape)


def unknown(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """No rule: the units must stay as they are, and nothing is known of the result."""
    for t in _tensors((args, kwargs)):
        context.pin_tensor(t, f"there is no rule for {func}")
    for t in _tensors(out):
        context.set(t, _all_fixed(t))


@rule("_unsafe_view", "_reshape_alias")
def view(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A view shares its storage, and with it the labels. Whether its sizes still fit a wider tensor is for the check of
    the student's own forward to tell."""


def pointwise(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Units that meet in one element must be replicated alike; then equal inputs give equal outputs.

    An operand that is broadcast along the units of another one (a spatial gate) has one value for all of them, and
    needs no agreement; but its own unit must keep one replica, or it would no longer broadcast.
    """
    results = _tensors(out)
    if not results:
        return unknown(context, func, args, kwargs, out)
    context.numbers(func, [a for a in tree_leaves((args, kwargs)) if isinstance(a, int | float) or _is_number(a)])
    shape = results[0].shape
    operands = [t for t in _tensors((args, kwargs)) if t.dim() > 0]
    aligned = [_align(compact(context.of(t)), len(shape)) for t in operands]
    sizes = [(1,) * (len(shape) - t.dim()) + tuple(t.shape) for t in operands]
    merged = torch.full((1,) * len(shape), CONSTANT, dtype=torch.int32)
    where = f"{func} joins it to a tensor whose width is fixed"
    for i, mine in enumerate(aligned):
        over = [d for d, n in enumerate(sizes[i]) if n == 1 and any(a.shape[d] > 1 for a in aligned)]
        if over:
            context.pin(mine, f"{func} broadcasts it over other units")
            # Its value may differ from element to element where it is not broadcast, but never from replica to replica.
            continue
        context.join(merged, mine, where)
        merged = torch.maximum(merged, mine)
    for mine in aligned:
        if (mine == FIXED).any():
            merged = torch.where(merged == CONSTANT, torch.maximum(merged, mine), merged)
    for t in results:
        context.set(t, merged.expand(shape) if t.shape == shape else _all_fixed(t))


def _is_number(a: Any) -> bool:
    return isinstance(a, Tensor) and a.dim() == 0


def _align(labels: Tensor, dims: int) -> Tensor:
    return labels.reshape((1,) * (dims - labels.dim()) + tuple(labels.shape))


for _name in (
    "clone", "_to_copy", "copy", "contiguous", "lift_fresh_copy", "native_dropout", "hardtanh", "hardswish",
    "hardsigmoid",
    "leaky_relu", "elu", "gelu", "silu", "mish", "softplus", "_prelu_kernel", "threshold", "relu6", "log_sigmoid",
):  # fmt: skip
    _RULES[_name] = pointwise


@rule("copy_")
def overwrite(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    context.set(args[0], _align(compact(context.of(args[1])), args[0].dim()).expand(args[0].shape))


@rule("zero", "fill")
def constant_write(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A constant agrees with the units that are there."""
    context.numbers(func, [a for a in args if isinstance(a, int | float)])


@rule(
    "zeros", "ones", "full", "empty", "empty_strided", "scalar_tensor", "new_zeros", "new_ones", "new_full",
    "new_empty",
    "new_empty_strided", "zeros_like", "ones_like", "full_like", "empty_like",
)  # fmt: skip
def constant(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    if name_of(func) in {"full", "new_full", "full_like", "scalar_tensor"}:
        context.numbers(func, [a for a in args if isinstance(a, int | float)])
    context.set(out, torch.full((1,) * out.dim(), CONSTANT, dtype=torch.int32).expand(out.shape))


@rule("bernoulli")
def dropped(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Dropout's mask. It differs from replica to replica, which is welcome (the paper, section 2.3), so that any units
    may be multiplied by it."""
    context.set(out, torch.full((1,) * out.dim(), CONSTANT, dtype=torch.int32).expand(out.shape))


@rule("sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "is_same_size")
def nothing(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Tells of shapes alone."""


@rule("cat")
def concatenate(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Units side by side (the paper, section 2.3: the remapping of a consumer takes the concatenation into account)."""
    tensors = [t for t in args[0] if t.shape != (0,)]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    parts = [compact(context.of(t)) for t in tensors]
    shape = [max(p.shape[d] for p in parts) for d in range(out.dim())]
    rows = [
        p.expand([t.shape[dim] if d == dim else n for d, n in enumerate(shape)])
        for p, t in zip(parts, tensors, strict=True)
    ]
    context.set(out, torch.cat(rows, dim).expand(out.shape))


@rule("constant_pad_nd")
def pad(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    labels = torch.ops.aten.constant_pad_nd(context.of(args[0]), args[1], CONSTANT)
    vector = along(labels, 1) if labels.dim() > 1 else None
    context.set(out, labels if vector is None else spread(vector, 1, out.shape))


@rule("roll", "flip", "repeat", "stack", "index_select", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "index")
def move(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Data movement: labels move as the data do. Indices are used as they are."""
    floating = [t for t in _tensors(args) if t.is_floating_point()]

    def labels_of(a: Any) -> Any:
        if isinstance(a, Tensor):
            return context.of(a).contiguous() if a.is_floating_point() else a.cpu()
        return [labels_of(x) for x in a] if isinstance(a, list | tuple) else a

    try:
        moved = func(*labels_of(args), **kwargs)
    except (RuntimeError, NotImplementedError):  # no integer kernel
        return unknown(context, func, args, kwargs, out)
    return context.set(out, moved) if floating else unknown(context, func, args, kwargs, out)


@rule(
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa", "upsample_trilinear3d",
    "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
)  # fmt: skip
def channelwise(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Each channel by itself: pooling, resizing and padding of images."""
    spatial = int(next(c for c in name_of(func).removesuffix("_aa") if c.isdigit()))
    x = args[0]
    channel = x.dim() - spatial - 1
    vector = context.along(x, channel)
    if vector is None:
        return unknown(context, func, args, kwargs, out)
    result, *indices = _tensors(out)
    context.set(result, spread(vector, channel, result.shape))
    for t in indices:
        context.set(t, _all_fixed(t))


@rule("mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp", "linalg_vector_norm", "var_mean", "any", "all")
def reduction(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A reduction over places, unit by unit. One over units would count replicas, so those units are pinned."""
    x = args[0]
    dims = kwargs.get("dim", next((a for a in args[1:] if isinstance(a, list | tuple)), None))
    dims = [dims] if isinstance(dims, int) else dims
    reduced = {d % x.dim() for d in dims} if dims else set(range(x.dim()))
    labels = compact(context.of(x))
    kept = _reduce(labels, reduced)
    if kept is None:
        kept = _reduce(compact(context.canonical(labels)), reduced)
    if kept is None:
        return unknown(context, func, args, kwargs, out)
    for t in _tensors(out):
        same_rank = t.dim() == x.dim()
        context.set(
            t,
            (kept if same_rank else kept.reshape([n for d, n in enumerate(kept.shape) if d not in reduced])).expand(
                t.shape
            ),
        )


def _reduce(labels: Tensor, dims: set[int]) -> Tensor | None:
    """`labels` with `dims` cut to size 1, or None if they vary along them."""
    for d in dims:
        first = labels.narrow(d, 0, 1)
        if labels.shape[d] > 1 and not (labels == first).all():
            return None
        labels = first
    return labels


@rule("_softmax", "_log_softmax", "cumsum", "cumprod")
def along_one_dim(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    x = args[0]
    labels = compact(context.of(x))
    if x.dim() == 0 or _reduce(labels, {args[1] % x.dim()}) is None:
        return unknown(context, func, args, kwargs, out)
    context.set(out, labels.expand(out.shape))


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution", "convolution_overrideable")
def convolution(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A convolution sums over its input channels and makes new units; a depthwise one works unit by unit."""
    x, weight, bias = args[:3]
    named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
    groups, transposed = named["groups"], named.get("transposed", False)
    known = context.parameter(weight)
    channel = x.dim() - (weight.dim() - 2) - 1
    vector = context.along(x, channel)
    if known is None or vector is None or transposed or known[1] != list(range(weight.dim())):
        if known is not None:
            context.axis_ids(known[0], int(transposed), weight.shape[int(transposed)], "out")  # so that it is listed
        return _refuse(context, func, args, out, _why_not(known is None, transposed, "convolution"))
    name = known[0]
    if groups == 1:
        context.join(vector, context.axis_ids(name, 1, weight.shape[1], "in"), f"the input of {name} has a fixed width")
        units = context.axis_ids(name, 0, weight.shape[0], "out")
    elif groups == x.shape[channel] == weight.shape[0]:
        units = context.axis_ids(name, 0, weight.shape[0], "each")
        context.join(vector, units, f"the input of {name} has a fixed width")
    else:
        context.axis_ids(name, 0, weight.shape[0], "out")
        return _refuse(context, func, args, out, f"a convolution with groups={groups} is neither dense nor depthwise")
    if bias is not None:
        context.join(context.of(bias), units, f"the bias added to {name} has a fixed width")
    context.set(out, spread(units, channel, out.shape))


@rule("mm", "addmm", "linear")
def linear(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A matrix product with a weight on the right sums over its input features and makes new units."""
    kind = name_of(func)
    if kind == "addmm":
        bias, x, right = args[:3]
    else:
        x, right, bias = args[0], args[1], args[2] if len(args) > 2 else None
    known = context.parameter(right)
    vector = context.along(x, -1 % x.dim())
    plain = bias is None or bias.dim() == 1
    scaled = kind == "addmm" and (kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1)
    if known is None or vector is None or not plain or scaled:
        return _refuse(context, func, args, out, _why_not(known is None, False, "matrix product"))
    name, dims = known
    # F.linear has the weight as [out, in]; mm and addmm have it on the right, as [in, out].
    into, outof = (dims[1], dims[0]) if kind == "linear" else (dims[0], dims[1])
    features, produced = (right.shape[1], right.shape[0]) if kind == "linear" else (right.shape[0], right.shape[1])
    if outof != 0:
        return _refuse(context, func, args, out, f"{name} is used transposed")
    context.join(vector, context.axis_ids(name, into, features, "in"), f"the input of {name} has a fixed width")
    units = context.axis_ids(name, outof, produced, "out")
    if bias is not None:
        context.join(context.of(bias), units, f"the bias added to {name} has a fixed width")
    context.set(out, spread(units, -1, out.shape))


def _why_not(computed: bool, transposed: bool, what: str) -> str:
    if computed:
        return f"the weight of a {what} is computed, not a parameter"
    return (
        "a transposed convolution" if transposed else f"the input of a {what} has different units at different places"
    )


def _refuse(context: Context, func: Any, args: Any, out: Any, why: str) -> None:
    for t in _tensors(args):
        context.pin_tensor(t, f"{func}: {why}")
    for t in _tensors(out):
        context.set(t, _all_fixed(t))


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "miopen_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update", "batch_norm",
)  # fmt: skip
def batch_norm(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Normalises unit by unit; its parameters and statistics are replicated with the units (the paper, section 2.3)."""
    x = args[0]
    channel = min(1, x.dim() - 1)
    vector = context.along(x, channel)
    if vector is None:
        return unknown(context, func, args, kwargs, out)
    for t in args[1:5]:
        if isinstance(t, Tensor):
            context.join(context.of(t).reshape(-1), vector, f"{func} joins it to a tensor whose width is fixed")
    result, *rest = _tensors(out)
    context.set(result, spread(vector, channel, result.shape))
    for t in rest:
        context.set(t, _all_fixed(t))


@rule("native_layer_norm", "native_group_norm", "_fused_rms_norm")
def mixing_norm(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A norm that averages over units keeps its statistics only if all of them are replicated equally often."""
    _refuse(context, func, args, out, "a norm that averages over units")
