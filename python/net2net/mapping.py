"""Maps and splits: which teacher unit each student unit copies, and how replicas share its outgoing weights."""

from __future__ import annotations

import numpy as np

MAPPINGS = ("random", "balanced", "importance", "gradient")
SPLITS = ("uniform", "dyadic", "random")
#: All units in order, and again; for groups whose replicas the user's code only takes so. Not for users to choose.
WHOLE = "whole"


def make_map(
    units: int, width: int, mapping: str, rng: np.random.Generator, scores: np.ndarray | None = None
) -> np.ndarray:
    """int64 [width]: the teacher unit of each student unit. The first `units` entries are the identity.

    `random` draws the rest uniformly with replacement (Chen et al., ICLR 2016, section 2.3). `balanced` replicates all
    units as equally often as possible, in a random order. `importance` and `gradient` give each further replica to the
    unit with the highest of the `scores` [units] per replica that it has.
    """
    extra = width - units
    if mapping == WHOLE:
        return np.tile(np.arange(units), width // max(units, 1))
    if scores is not None:
        rest = _by_score(scores, extra)
    elif mapping == "random":
        rest = rng.integers(0, units, extra) if units else np.zeros(0, dtype=np.int64)
    else:
        rounds = -(-extra // units) if units else 0
        rest = np.concatenate([rng.permutation(units) for _ in range(rounds)] or [np.zeros(0, dtype=np.int64)])[:extra]
    return np.concatenate([np.arange(units), rest]).astype(np.int64)


def _by_score(scores: np.ndarray, extra: int) -> np.ndarray:
    replicas = np.ones(len(scores))
    rest = np.empty(extra, dtype=np.int64)
    for i in range(extra):
        rest[i] = np.argmax(scores / replicas)
        replicas[rest[i]] += 1
    return rest


def make_split(index: np.ndarray, split: str, rng: np.random.Generator) -> np.ndarray:
    """float64 [len(index)]: each student unit's share of its teacher unit's outgoing weights; a unit's shares sum to 1.

    `uniform` is 1/r for r replicas (the paper). `dyadic` halves: 1/2, 1/4, ..., the last two alike, so that scaling by
    a share is exact in every floating-point format. `random` draws shares of which the largest is at most three times
    the smallest, so that replicas learn at different speeds.
    """
    replicas = np.bincount(index)[index]
    if split == "uniform":
        return 1.0 / replicas
    if split == "random":
        drawn = rng.uniform(0.5, 1.5, len(index))
        return np.asarray(drawn / np.bincount(index, weights=drawn)[index])
    rank = ranks(index)
    return np.exp2(-np.minimum(rank + 1, replicas - 1).astype(np.float64))


def check_map(name: str, index: np.ndarray, units: int) -> None:
    """Raises ValueError if `index` names a unit that is not there, or leaves one out."""
    if index.ndim != 1 or ((index < 0) | (index >= units)).any():
        raise ValueError(f"{name} has an entry outside the teacher's {units} units")
    found = np.unique(index)
    if len(found) != units:
        # Not by a list of all units: a file may say that there are very many.
        missing = int(np.append(found != np.arange(len(found)), True).argmax())
        raise ValueError(f"{name} drops unit {missing}: every one of the {units} units must occur")


def check_split(name: str, split: np.ndarray, index: np.ndarray) -> None:
    """Raises ValueError if the shares of some unit's replicas are not positive, or do not sum to 1."""
    if split.shape != index.shape or not (np.isfinite(split) & (split > 0)).all():
        raise ValueError(f"{name} must hold one positive number per student unit ({len(index)})")
    sums = np.bincount(index, weights=split)
    wrong = np.flatnonzero(np.abs(sums - 1) > 1e-9)
    if wrong.size:
        raise ValueError(f"{name} sums to {sums[wrong[0]]} for unit {int(wrong[0])}, not to 1")


def share_out(units: list[int], total: int) -> list[int]:
    """Widths of segments of these many units that add up to `total` (at least the units), in proportion."""
    scale = total / sum(units)
    exact = [n * scale for n in units]
    widths = [max(n, int(x)) for n, x in zip(units, exact, strict=True)]
    # Largest remainder first; ties go to the earlier segment.
    for i in sorted(range(len(units)), key=lambda i: widths[i] - exact[i])[: max(0, total - sum(widths))]:
        widths[i] += 1
    return widths


def ranks(index: np.ndarray) -> np.ndarray:
    """int64: for each entry, how many earlier ones are equal to it."""
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    rank = np.empty(len(index), dtype=np.int64)
    rank[order] = np.arange(len(index)) - np.repeat(starts, np.diff(starts, append=len(index)))
    return rank
