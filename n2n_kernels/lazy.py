"""Attributes that are found when they are first asked for.

As `functools.cached_property`, which until Python 3.12 has one lock per attribute for all objects: a process that is
forked while another thread holds it would wait for it for ever. Here two threads may both find the value.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class lazy(Generic[T]):  # noqa: N801  (a decorator)
    """A method without arguments as an attribute, kept in the object's `__dict__`."""

    def __init__(self, find: Callable[[Any], T]) -> None:
        self._find = find
        self.__doc__ = find.__doc__

    def __get__(self, instance: Any, _owner: type) -> T:
        value = instance.__dict__[self._find.__name__] = self._find(instance)
        return value
