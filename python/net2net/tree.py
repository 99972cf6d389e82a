"""A deep copy of a module tree: what `copy.deepcopy` makes of it, in a fraction of the time.

Modules of the usual kind, and the plain containers that they keep, are copied here. Everything else goes through
`copy.deepcopy` with the same memo, so that what is shared stays shared across both.
"""

from __future__ import annotations

import copy
import copyreg
import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from n2n_kernels import native

#: What `copy.deepcopy` returns as it is.
_SHARED = frozenset({type(None), bool, int, float, complex, str, bytes, FunctionType})

#: With these a class, or an object, says how it is copied. Of them, usual modules have what `object` has, ...
_HOOKS = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getnewargs_ex__", "__getnewargs__", "__getattribute__")
#: ... and of these what `nn.Module` has.
_MODULE_HOOKS = ("__getstate__", "__getattr__")

_ALL_HOOKS = frozenset({*_HOOKS, *_MODULE_HOOKS, "__setstate__"})

#: Older versions of torch leave that to Python.
_HAS_STATE = "__getstate__" in vars(nn.Module)

_CONTAINERS = frozenset({OrderedDict, dict, set, list})

#: No conjugate, quantised or packed tensors among these.
_PLAIN_DTYPES = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32})

_MISSING = object()


def deepcopy(x: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy(x, memo)`, faster where `x` is a module or made of modules.

    Tensors with a history (a computed weight, the last activation), which `copy.deepcopy` refuses, are copied without
    it where modules keep them as attributes.
    """
    return _Copier(x, memo).copy(x)


@contextmanager
def no_collections() -> Iterator[None]:
    """Pauses the garbage collector. Growing a model makes thousands of objects, none of them garbage, for which it
    would look through all of the program's memory again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Copier:
    def __init__(self, root: Any, memo: dict[Any, Any]) -> None:
        self._root = root
        self._memo = memo
        self._histories_known = False
        self._kept: list[Any] = memo.setdefault(id(memo), [])  # where copy.deepcopy keeps alive what it has an id of
        self._storages: dict[int, Any] = memo.setdefault("torch", {})  # where torch keeps those that tensors share
        # No bound methods: with these, it and all that it has copied would be freed by the garbage collector alone.
        self._copiers: dict[type, Callable[[_Copier, Any], Any]] = {
            dict: _Copier._dict,
            list: _Copier._list,
            tuple: _Copier._tuple,
            set: _Copier._set,
            Tensor: _Copier._tensor,
        }

    def copy(self, x: Any) -> Any:
        kind = type(x)
        if kind in _SHARED:
            return x
        known = self._memo.get(id(x), _MISSING)
        return self._new(x) if known is _MISSING else known

    def _new(self, x: Any) -> Any:
        """Of what is neither shared nor copied yet."""
        kind = type(x)
        copier = self._copiers.get(kind)
        if copier is None:
            copier = self._copiers[kind] = _Copier._module if _is_usual_module(kind) else _Copier._other
        return copier(self, x)

    def _remember(self, x: Any, y: Any) -> None:
        self._memo[id(x)] = y
        self._kept.append(x)

    def _other(self, x: Any) -> Any:
        if not self._histories_known and isinstance(self._root, nn.Module):
            seen: set[int] = set()
            stack: list[Any] = [self._root]
            while stack:  # not `modules()`, which wants names that are texts, and modules that have a hash
                module = stack.pop()
                if not isinstance(module, nn.Module) or id(module) in seen:
                    continue
                seen.add(id(module))
                stack += vars(module).get("_modules", {}).values()
                for value in vars(module).values():
                    if isinstance(value, Tensor) and not value.is_leaf:
                        self._memo.setdefault(id(value), value.detach().clone())
        self._histories_known = True
        return copy.deepcopy(x, self._memo)

    def _module(self, x: nn.Module) -> nn.Module:
        if not x.__dict__.keys().isdisjoint(_ALL_HOOKS):
            return self._other(x)
        # Its own dict, or a copy of it, which is no copy of what is in it.
        new = x.__getstate__() if _HAS_STATE else x.__dict__.copy()
        y = type(x).__new__(type(x))
        self._remember(x, y)
        _copy_values(new, new, self._memo, _SHARED, self._new)
        if type(x).__setstate__ is nn.Module.__setstate__:
            # That would add what modules of older versions of torch lack. (And theirs looks for parameters first.)
            object.__setattr__(y, "__dict__", new)
        else:
            y.__setstate__(new)
        return y

    def _dict(self, x: dict[Any, Any]) -> dict[Any, Any]:
        y: dict[Any, Any] = {}
        self._remember(x, y)
        _copy_values(x, y, self._memo, _SHARED, self._new)
        return y

    def _list(self, x: list[Any]) -> list[Any]:
        y: list[Any] = []
        self._remember(x, y)
        for value in x:
            y.append(value if type(value) in _SHARED else self.copy(value))
        return y

    def _tuple(self, x: tuple[Any, ...]) -> tuple[Any, ...]:
        return x if _SHARED.issuperset(map(type, x)) else self._other(x)

    def _set(self, x: set[Any]) -> set[Any]:
        if not _SHARED.issuperset(map(type, x)):
            return self._other(x)
        y = set(x)
        self._remember(x, y)
        return y

    def _tensor(self, x: Tensor) -> Tensor:
        """Counters and the like, of which a network has many."""
        if not x.is_leaf:
            y = x.detach().clone()
            self._remember(x, y)
            return y
        if (
            x.dtype not in _PLAIN_DTYPES
            or x.requires_grad
            or x.grad is not None
            or not (x.is_cpu or x.is_cuda)
            or not (x.layout is torch.strided and x.is_contiguous() and not x.is_neg())
            or x.__dict__
        ):
            return self._other(x)
        storage = x.untyped_storage()
        if storage._cdata in self._storages or storage.nbytes() != x.nbytes:  # other tensors may share it
            return self._other(x)
        y = x.clone()
        self._storages[storage._cdata] = y.untyped_storage()
        self._remember(x, y)
        return y


def _in_python(
    source: dict[Any, Any],
    target: dict[Any, Any],
    memo: dict[Any, Any],
    shared: frozenset[type],
    copy: Callable[[Any], Any],
) -> None:
    """Copies what is in `source` to `target`, which may be the same (then keys stay); `copy` is for what is neither
    empty nor shared, and not in the memo."""

    def copied(x: Any) -> Any:
        kind = type(x)
        if kind in shared or (kind is tuple and shared.issuperset(map(type, x))):
            return x
        known = memo.get(id(x), _MISSING)
        if known is not _MISSING:
            return known
        if kind in _CONTAINERS and not x:  # a module has more than a dozen, for its hooks
            empty = memo[id(x)] = kind()
            return empty
        return copy(x)

    for key, value in source.items():
        new = copied(value)
        target[key if source is target or type(key) is str else copied(key)] = new


#: The native module's does the same in a fraction of the time.
_copy_values = _in_python if native.missing is not None else native.module().copy_values


def _is_usual_module(kind: type) -> bool:
    """Whether `copy.deepcopy` copies a module's `__dict__` and nothing else, because its class has nothing to say about
    it."""
    return (
        issubclass(kind, nn.Module)
        and all(getattr(kind, hook, None) is getattr(object, hook, None) for hook in _HOOKS)
        and all(getattr(kind, hook, None) is getattr(nn.Module, hook, None) for hook in _MODULE_HOOKS)
        and kind not in copyreg.dispatch_table
        and not issubclass(kind, dict | list)
        and not copyreg._slotnames(kind)  # type: ignore[attr-defined]
    )
