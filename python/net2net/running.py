"""Running a forward: the user's own, and each operation in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from net2net.skeleton import lazy_zeros

Inputs = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """`model` on example inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


#: Operations whose result is not worth computing: the weights of a skeleton are zero anyway, and only structure is
#: asked for.
COSTLY = {
    "aten::convolution", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
}  # fmt: skip


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation's result; for the costly ones zeros of its shape, after the operation's own checks of shapes."""
    if func._schema.name not in COSTLY:
        return func(*args, **kwargs)
    return _zeros(_shapes(func, args, kwargs), args)


def of_no_value(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation whose operands hold no values that matter: new floating-point tensors are zeros, which
    take neither time nor memory; anything else is computed."""
    if any(r.alias_info is not None for r in func._schema.returns):  # it has another name for what it was given
        return func(*args, **kwargs)
    try:
        out = _shapes(func, args, kwargs)
        # Of several results, the lesser ones may have other shapes than on a real device.
        if isinstance(out, Tensor) and out.is_floating_point():
            return _zeros(out, args)
    except Exception:  # it may have no implementation for shapes alone; if it is wrong, it will raise again
        pass
    return func(*args, **kwargs)


def _shapes(func: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    return func(*args, **kwargs)


def _zeros(out: Any, args: Any) -> Any:
    device = next(a.device for a in tree_leaves(args) if isinstance(a, Tensor))

    def zeros(t: Any) -> Any:  # they are dense, in whatever memory format
        if not isinstance(t, Tensor):
            return t
        return lazy_zeros((t.numel(),), t.dtype, device).as_strided(t.shape, t.stride())

    return tuple(map(zeros, out)) if isinstance(out, tuple) else zeros(out)
