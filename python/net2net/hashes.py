"""Hashes of expressions, on whole arrays: 64 bits, which no expression shares with another by chance."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_29, _32 = np.uint64(29), np.uint64(32)


def mix(state: Any, x: np.ndarray) -> np.ndarray:
    """uint64: `state` (uint64) with the integers `x` stirred in; neither commutative nor associative."""
    # `np.multiply`, since `*` complains of single numbers that go round, which is what they are meant to do.
    h = np.multiply(state ^ x.view(np.uint64), _FIRST)
    h = np.multiply(h ^ (h >> _29), _SECOND)
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


def content(t: Tensor) -> bytes:
    """The numbers in a tensor, as bytes."""
    # `contiguous` leaves a single element as it is, whose stride may be 0.
    dense = t.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
    return dense.view(torch.uint8).numpy().tobytes()


def total(terms: np.ndarray) -> np.ndarray:
    """uint64: the sum of hashes over the last dimension, in whatever order."""
    with np.errstate(over="ignore"):
        return np.asarray(terms.sum(-1, dtype=np.uint64))


class Table:
    """Numbers by hash, for whole arrays at once: open addressing, in place of a dictionary that is asked in a loop.

    Hashes and numbers are kept in the order in which they came, in which they are most often asked for again: whoever
    asks for what came as one array is answered from there. Only the slots, which are small, are read at random.
    """

    def __init__(self) -> None:
        self._size = 0
        self._hashes = np.empty(1 << 13, dtype=np.uint64)
        self._numbers = np.empty(1 << 13, dtype=np.int64)
        self._slots = np.full(1 << 15, -1, dtype=np.int32)  # where in the two others
        self._runs: dict[int, tuple[int, int]] = {}  # by its first hash, where an array that was new begins and ends

    def numbers(self, hashes: np.ndarray, add: Callable[[int], int]) -> np.ndarray:
        """int64 [n]: the number of each of the hashes [n]. Those that are not there yet are added, and numbered from
        what `add` returns when it is told how many they are."""
        known = self._as_before(hashes)
        if len(known) < len(hashes):
            found = self._looked_up(hashes[len(known) :], add)
            return np.concatenate([known, found]) if len(known) else found
        return known

    def _as_before(self, hashes: np.ndarray) -> np.ndarray:
        """The numbers of as many of the hashes, from the first, as came in this order before."""
        begin, end = self._runs.get(int(hashes[0]), (0, 0)) if len(hashes) else (0, 0)
        count = min(end - begin, len(hashes))
        differ = self._hashes[begin : begin + count] != hashes[:count]
        if differ.any():
            count = int(differ.argmax())
        return self._numbers[begin : begin + count].copy()

    def _looked_up(self, hashes: np.ndarray, add: Callable[[int], int]) -> np.ndarray:
        count, before = len(hashes), self._size
        self._make_room(before + count)
        # To begin with, each has an entry of its own.
        self._hashes[before : before + count] = hashes
        mine = np.arange(before, before + count, dtype=np.int32)
        at = self._first(hashes)
        entry = self._claimed(at, mine)
        left = np.flatnonzero(self._hashes.take(entry) != hashes)
        while len(left):
            at[left] = slots = self._next(at.take(left))
            entry[left] = claimed = self._claimed(slots, mine.take(left))
            left = left[self._hashes.take(claimed) != hashes.take(left)]
        new = entry == mine
        found = int(np.count_nonzero(new))
        if 0 < found < count:
            # The entries of those that were there, or are there twice, are given up.
            rank = np.cumsum(new, dtype=np.int32) + np.int32(before - 1)
            self._slots[at[new]] = rank[new]
            self._hashes[before : before + found] = hashes[new]
            moved = entry >= before
            entry[moved] = rank[entry[moved] - before]
        if found:
            self._size += found
            first = add(found)
            self._numbers[before : self._size] = np.arange(first, first + found)
            self._runs[int(self._hashes[before])] = before, self._size
        return np.asarray(self._numbers.take(entry))

    def _claimed(self, at: np.ndarray, mine: np.ndarray) -> np.ndarray:
        """The entries that these slots lead to: whoever finds a free one puts its own there. (Of several that want one
        slot, one gets it; if it has the same hash, that is theirs as well.)"""
        entry = self._slots.take(at)
        free = np.flatnonzero(entry < 0)
        if len(free):
            slots = at.take(free)
            self._slots[slots] = mine.take(free)
            entry[free] = self._slots.take(slots)
        return entry

    def _make_room(self, size: int) -> None:
        if size <= len(self._hashes):
            return
        room = (2 << (size - 1).bit_length()) - len(self._hashes)
        self._hashes = np.concatenate([self._hashes, np.empty(room, dtype=np.uint64)])
        self._numbers = np.concatenate([self._numbers, np.empty(room, dtype=np.int64)])
        self._slots = np.full(4 * len(self._hashes), -1, dtype=np.int32)
        which = np.arange(self._size, dtype=np.int32)
        at = self._first(self._hashes[: self._size])
        while len(at):
            left = np.flatnonzero(self._claimed(at, which) != which)
            at, which = self._next(at.take(left)), which.take(left)

    def _first(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes & np.uint64(len(self._slots) - 1)).astype(np.int64)

    def _next(self, at: np.ndarray) -> np.ndarray:
        return np.asarray((at + 1) & (len(self._slots) - 1))
