"""map_runs: maps and shares as a plan's file has them: runs of consecutive positions as [first, length], runs of equal
shares as [share, length]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from net2net import plan_fields

#: So many positions may one axis have, and all maps of a plan together (1 GiB): a run states any number in a few bytes.
MOST_POSITIONS, MOST_IN_ALL = 2**24, 2**26


def written(index: np.ndarray, share: np.ndarray) -> dict[str, Any]:
    """`index` int64 [width] and `share` float64 [width] as JSON has them."""
    starts = np.flatnonzero(np.diff(index, prepend=-2) != 1)
    runs = np.stack([index[starts], np.diff(starts, append=len(index))], 1).tolist()
    equal = np.flatnonzero(np.append(True, np.diff(share) != 0)) if len(share) else np.zeros(0, dtype=np.int64)
    lengths = np.diff(equal, append=len(share)).tolist()
    return {"index": runs, "share": [[s, n] for s, n in zip(share[equal].tolist(), lengths, strict=True)]}


def read(maps: Sequence[dict[str, Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The (index, share) of each; ValueError for what cannot be a map, before any is written out."""
    total = 0
    for m in maps:
        positions = sum(plan_fields.whole("length of a run of a map", n, 1) for _, n in m["index"])
        shares = sum(plan_fields.whole("length of a run of shares", n, 1) for _, n in m["share"])
        if positions != shares:
            raise ValueError(f"a map has {positions} positions, but {shares} shares")
        total += plan_fields.whole("number of positions of a map", positions, 0, MOST_POSITIONS)
    plan_fields.whole("number of positions of all maps", total, 0, MOST_IN_ALL)
    return [_read(m) for m in maps]


def _read(m: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    index = [np.zeros(0, dtype=np.int64)]
    for first, n in m["index"]:
        plan_fields.whole("first position of a run of a map", first, 0, MOST_POSITIONS)
        index.append(np.arange(first, first + n, dtype=np.int64))
    share = [np.full(n, plan_fields.number("a share in a map", s), dtype=np.float64) for s, n in m["share"]]
    return np.concatenate(index), np.concatenate([np.zeros(0), *share])
