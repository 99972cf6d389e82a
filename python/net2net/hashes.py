"""Hashes of expressions, on whole arrays: 64 bits, which no expression shares with another by chance."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_29, _32 = np.uint64(29), np.uint64(32)


def mix(state: Any, x: np.ndarray) -> np.ndarray:
    """uint64: `state` (uint64) with the integers `x` stirred in; neither commutative nor associative."""
    with np.errstate(over="ignore"):
        h = (state ^ x.view(np.uint64)) * _FIRST
        h = (h ^ (h >> _29)) * _SECOND
        return np.asarray(h ^ (h >> _32))


def seed(key: object) -> np.ndarray:
    """uint64: where `mix` starts for an operation with its numbers, spelled out in `key`."""
    return np.frombuffer(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), dtype=np.uint64).reshape(())


def expression(key: object, operands: Iterable[np.ndarray]) -> np.ndarray:
    """uint64: for each element, the operation `key` on the operands with these ids there, in this order."""
    state = seed(key)
    for ids in operands:
        state = mix(state, ids)
    return state


def digest(*content: object) -> bytes:
    """16 bytes that stand for arrays, in their shapes, and for anything else by its `repr`."""
    state = hashlib.blake2b(digest_size=16)
    for x in content:
        state.update(repr(x.shape if isinstance(x, np.ndarray) else x).encode())
        if isinstance(x, np.ndarray):
            state.update(np.ascontiguousarray(x).data)
    return state.digest()


def total(terms: np.ndarray) -> np.ndarray:
    """uint64: the sum of hashes over the last dimension, in whatever order."""
    with np.errstate(over="ignore"):
        return np.asarray(terms.sum(-1, dtype=np.uint64))


class Table:
    """Numbers by hash, for whole arrays at once: open addressing, in place of a dictionary that is asked in a loop."""

    def __init__(self) -> None:
        self._size = 0
        self._hashes = np.zeros(1 << 14, dtype=np.uint64)
        self._numbers = np.full(1 << 14, -1)

    def get(self, hashes: np.ndarray) -> np.ndarray:
        """int64, of the shape of `hashes`: the number of each, or -1."""
        at = self._slots(hashes)
        found = np.asarray(self._numbers[at])
        other = np.flatnonzero((found >= 0) & (self._hashes[at] != hashes))
        while len(other):
            at[other] = self._slots(at[other] + 1)
            found[other] = self._numbers[at[other]]
            other = other[(found[other] >= 0) & (self._hashes[at[other]] != hashes[other])]
        return found

    def add(self, hashes: np.ndarray, numbers: np.ndarray) -> None:
        """Adds hashes that are distinct and not there yet."""
        self._size += len(hashes)
        if 3 * self._size > len(self._numbers):
            taken = self._numbers >= 0
            before = self._hashes[taken], self._numbers[taken]
            size = 1 << (6 * self._size - 1).bit_length()
            self._hashes, self._numbers = np.zeros(size, dtype=np.uint64), np.full(size, -1)
            self._put(*before)
        self._put(hashes, numbers)

    def _put(self, hashes: np.ndarray, numbers: np.ndarray) -> None:
        at = self._slots(hashes)
        while len(at):
            free = self._numbers[at] < 0
            self._hashes[at[free]] = hashes[free]
            # Of several that want one slot, one has got it.
            got = free & (self._hashes[at] == hashes)
            self._numbers[at[got]] = numbers[got]
            at, hashes, numbers = self._slots(at[~got] + 1), hashes[~got], numbers[~got]

    def _slots(self, at: np.ndarray) -> np.ndarray:
        return (at & at.dtype.type(len(self._numbers) - 1)).astype(np.int64)
