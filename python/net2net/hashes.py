"""Hashes of expressions, on whole arrays: 64 bits, which no expression shares with another by chance."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9], dtype=np.uint64)


def mix(state: Any, x: np.ndarray) -> np.ndarray:
    """uint64: `state` (uint64) with the integers `x` stirred in; neither commutative nor associative."""
    with np.errstate(over="ignore"):
        h = (np.asarray(state, dtype=np.uint64) ^ x.astype(np.uint64)) * _MULTIPLIERS[0]
        h = (h ^ (h >> np.uint64(29))) * _MULTIPLIERS[1]
        return np.asarray(h ^ (h >> np.uint64(32)))


def seed(key: object) -> np.ndarray:
    """uint64: where `mix` starts for an operation with its numbers, spelled out in `key`."""
    return np.frombuffer(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), dtype=np.uint64).reshape(())


def expression(key: object, operands: Iterable[np.ndarray]) -> np.ndarray:
    """uint64: for each element, the operation `key` on the operands with these ids there, in this order."""
    state = seed(key)
    for ids in operands:
        state = mix(state, ids)
    return state


def total(terms: np.ndarray) -> np.ndarray:
    """uint64: the sum of hashes over the last dimension, in whatever order."""
    with np.errstate(over="ignore"):
        return np.asarray(terms.sum(-1, dtype=np.uint64))
