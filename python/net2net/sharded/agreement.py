"""What all ranks must do alike: where one cannot, the others would wait for it for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor


@contextmanager
def all_or_none(sharded: Tensor) -> Iterator[None]:
    """What is done inside is done by all ranks over which this DTensor lies, or an exception is raised on each of them:
    its own on a rank where there was one, a ValueError that tells of it on the others."""
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    told = f"{type(mine).__name__}: {mine}" if mine is not None else None
    found = [(rank, text) for rank, text in _everyone(sharded, told) if text is not None]
    if mine is not None:
        raise mine
    if found:
        rank, text = found[0]
        raise ValueError(f"rank {rank} cannot grow its part: {text}")


def check_equal(name: str, mine: object, sharded: Tensor) -> None:
    """ValueError, on all ranks, if this is another thing on one of them: what each sends would not be what others wait
    for."""
    (_, first), *_ = everyone = _everyone(sharded, mine)
    if different := [rank for rank, theirs in everyone if theirs != first]:
        raise ValueError(f"{name} is not the same on all ranks: that of rank {different} is another")


def _everyone(sharded: Any, mine: object) -> list[tuple[int, Any]]:
    """What each rank has."""
    known: list[tuple[int, Any]] = [(dist.get_rank(), mine)]
    # Along each axis of the mesh, a rank passes on what it was told along those before.
    for group in sharded.device_mesh.get_all_groups():
        theirs: list[Any] = [None] * group.size()
        dist.all_gather_object(theirs, known, group=group)
        known = [pair for pairs in theirs for pair in pairs]
    return known
