"""snapshots: what a module is given that it may change (a cache of keys and values, a dict of results), as it was, so
that the module can be run again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from net2net.outputs import PLAIN

#: Objects within objects are looked into so far, and of a list or dict so many.
_DEEP, _LONG = 8, 1000

_OTHERS = (*PLAIN, Tensor, nn.Module, type, FunctionType, MethodType, ModuleType)


def taken(given: object) -> Callable[[], None]:
    """What puts lists, dicts and the attributes of objects in `given` back as they are now. (Tensors in them are not
    copied.)"""
    put_back: dict[int, Callable[[], object]] = {}
    _take(given, put_back, _DEEP)

    def all_back() -> None:
        for each in put_back.values():
            each()

    return all_back


def _take(held: Any, put_back: dict[int, Callable[[], object]], deep: int) -> None:
    if isinstance(held, _OTHERS) or id(held) in put_back or not deep:
        return
    if isinstance(held, tuple):
        items = list(held)
    elif isinstance(held, list):
        items = list(held)
        put_back[id(held)] = functools.partial(held.__setitem__, slice(None), items)
    else:
        contents = held if isinstance(held, dict) else getattr(held, "__dict__", None)
        if type(contents) is not dict:
            return
        items = list(contents.values())
        put_back[id(held)] = functools.partial(_refill, contents, dict(contents))
    for item in items[:_LONG]:
        _take(item, put_back, deep - 1)


def _refill(contents: dict[Any, Any], before: dict[Any, Any]) -> None:
    contents.clear()
    contents.update(before)
