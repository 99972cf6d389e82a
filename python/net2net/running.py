"""Running a forward: the user's own, and each operation in it."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from net2net.skeleton import lazy_zeros, named_tensors, own_random_state

Inputs = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """`model` on example inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


#: By this FlexAttention is made to run as it is written, on whatever torch has it.
_FLEX_EAGER = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"


@contextlib.contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Here a forward is run for what it does: without gradients, operation by operation; and it leaves the random state
    as it was."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    checks = torch.distributions.Distribution._validate_args
    # Transformer layers' fused inference path hides their parameters' use in one opaque operation.
    torch.backends.mha.set_fastpath_enabled(False)
    # And distributions look at their parameters' values, only to see that these are sound.
    torch.distributions.Distribution.set_default_validate_args(False)
    # FlexAttention would compile itself, which no mode can look into.
    flex: Any = sys.modules.get("torch.nn.attention.flex_attention")
    eager = getattr(flex, _FLEX_EAGER, None)
    if eager is not None:
        setattr(flex, _FLEX_EAGER, True)
    try:
        with torch.no_grad(), own_random_state(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.distributions.Distribution.set_default_validate_args(checks)
        if eager is not None:
            setattr(flex, _FLEX_EAGER, eager)


#: The memory of models whose copies are being run.
_SEALED: set[int] = set()


@contextlib.contextmanager
def sealed(model: nn.Module) -> Iterator[None]:
    """Here copies of `model` are run, which must not write to its own tensors: a hook may hold these in a closure,
    which is no other one in a copy."""
    own = {t.untyped_storage()._cdata for _, t in named_tensors(model)} - _SEALED
    _SEALED.update(own)
    try:
        yield
    finally:
        _SEALED.difference_update(own)


def check_seal(func: Any, args: Any, kwargs: Any) -> None:
    """Raises RuntimeError if an operation would write to what is sealed."""
    for i in written(func) if _SEALED else ():
        for t in _in([args[i] if i < len(args) else kwargs.get(func._schema.arguments[i].name)]):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata in _SEALED:
                raise RuntimeError(f"{func} would write to the model itself, which a hook or another function holds")


@contextlib.contextmanager
def one_draw() -> Iterator[None]:
    """Whatever is drawn here, the random state moves on by one number, on the CPU: what is drawn afterwards, and which
    way code goes by it, does not depend on the width of what was masked before."""
    generator = torch.default_generator  # `torch.manual_seed` would seed all devices, also those that nobody puts back
    seed = int(torch.randint(2**62, ()))
    after = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(after)


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


#: Of tensors with so many elements it is quicker to find out the shape of an operation's result than the values.
_LARGE = 2**14


def is_large(t: Tensor) -> bool:
    return t.numel() >= _LARGE and t.is_floating_point()


#: Normalisations: only the first of their results is read by anything but a backward pass. (The others' shapes on the
#: meta device may not be those on another one.)
_NORMS = {"aten::native_layer_norm", "aten::native_group_norm"}

#: What comes beside the maxima are the places that they are at: of all zeros, any.
_POOLS = {"aten::max_pool2d_with_indices", "aten::max_pool3d_with_indices"}


def of_no_value(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation whose operands hold no values that matter: a floating-point tensor in memory of its
    own is zeros, which take neither time nor memory; what is written in place stays as it is; anything else is
    computed."""
    returns, name = func._schema.returns, func._schema.name
    if name == "aten::native_batch_norm":
        # The meta device would take long. (Torch has checked the sizes before, and that statistics move is not needed.)
        x, training = args[0], args[5]
        few = _Shape((x.shape[1] if training else 0,), (1,), x.dtype)
        return _zeros((_described(torch.empty_like(x, device="meta")), few, few), args)
    if len(returns) == 1 or name in _NORMS or name in _POOLS:
        alias = returns[0].alias_info
        try:
            out = _shapes(func, args, kwargs)
            if alias is None and (name in _POOLS or all(t.dtype.is_floating_point for t in _each(out))):
                return _zeros(out, args)
            if alias is not None and written(func) == [0] and _described(args[0]) == out:
                return args[0]
        except Exception:  # it may have no implementation for shapes alone; if it is wrong, it will raise again
            pass
    return computed(func, args, kwargs)


class _Shape(NamedTuple):
    """All of a tensor but its values, its device and its place in memory."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Items(NamedTuple):
    """Arguments in a list, a tuple or a dict."""

    kind: type
    names: tuple[str, ...]
    items: tuple[Any, ...]


class _Value(NamedTuple):
    """An argument of another kind. Its type counts: 1, 1.0 and True are equal."""

    kind: type
    value: Any


def _shapes(func: Any, args: Any, kwargs: Any) -> Any:
    """The `_Shape` of an operation's result, or a tuple of them."""
    return _shapes_of(func, _described(args), _described(kwargs))


@functools.lru_cache(maxsize=4096)
def _shapes_of(func: Any, args: _Items, kwargs: _Items) -> Any:
    """Networks repeat their blocks, and it takes a millisecond to ask."""
    out = func(*_meta(args), **_meta(kwargs))
    return tuple(map(_described, out)) if isinstance(out, tuple) else _described(out)


def _described(given: Any) -> Any:
    if isinstance(given, Tensor):
        return _Shape(tuple(given.shape), given.stride(), given.dtype)
    if isinstance(given, dict):
        return _Items(dict, tuple(given), tuple(map(_described, given.values())))
    if isinstance(given, (list, tuple)):
        return _Items(type(given), (), tuple(map(_described, given)))
    return _Value(type(given), given)


def _meta(described: Any) -> Any:
    """What was described, with tensors on the meta device."""
    if isinstance(described, _Shape):
        return torch.empty_strided(described.size, described.stride, dtype=described.dtype, device="meta")
    if isinstance(described, _Value):
        return described.value
    items = map(_meta, described.items)
    return dict(zip(described.names, items, strict=True)) if described.kind is dict else described.kind(list(items))


@functools.lru_cache(maxsize=1024)
def written(func: Any) -> list[int]:
    """Which of its arguments an operation writes to."""
    aliases = [a.alias_info for a in func._schema.arguments]
    return [i for i, alias in enumerate(aliases) if alias is not None and alias.is_write]


def _each(out: Any) -> tuple[Any, ...]:
    return out if isinstance(out, tuple) and not isinstance(out, _Shape) else (out,)


def _in(args: Any) -> Iterator[Any]:
    for a in args:
        if isinstance(a, (list, tuple)):
            yield from _in(a)
        else:
            yield a


def _zeros(out: Any, args: Any) -> Any:
    device = next(a.device for a in _in(args) if isinstance(a, Tensor))

    def zeros(shape: Any) -> Any:  # they are dense, in whatever memory format
        if not isinstance(shape, _Shape):
            return shape.value
        return lazy_zeros((math.prod(shape.size),), shape.dtype, device).as_strided(shape.size, shape.stride)

    made = tuple(map(zeros, _each(out)))
    return made[0] if isinstance(out, _Shape) else made
