"""Shards: how a tensor is spread over the ranks of a process group, and what of it this rank has."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor


def _tensor_module() -> Any:
    # Where nobody has imported it, nothing is sharded by it; to import it takes a while.
    return sys.modules.get("torch.distributed.tensor")


def is_sharded(t: Tensor) -> bool:
    """Whether `t` is a DTensor."""
    module = _tensor_module()
    return module is not None and isinstance(t, module.DTensor)


def local(t: Tensor) -> Tensor:
    """What this rank has of `t`, in the same memory: of a usual tensor all of it."""
    t = t.detach()
    if is_sharded(t):
        t = cast(Any, t).to_local()
    return t


@dataclass(frozen=True)
class Spread:
    """How a tensor is spread: over the ranks of `group`, in equal pieces (the last ones shorter, or empty) of axis
    `dim`, as `torch.chunk` cuts; or `dim` is None, and every rank has all of it."""

    dim: int | None = None
    group: Any = None
    rank: int = 0
    ranks: int = 1

    @staticmethod
    def of(name: str, t: Tensor) -> Spread:
        """TypeError, by name, if `t` is spread in another way."""
        if not is_sharded(t):
            return Spread()
        module = _tensor_module()
        placements, mesh = cast(Any, t).placements, cast(Any, t).device_mesh
        found = Spread()
        for mesh_dim, placement in enumerate(placements):
            if type(placement) is module.Replicate:
                continue
            if type(placement) is not module.Shard or found.dim is not None:
                raise TypeError(
                    f"{name} is placed as {tuple(placements)}; what can be grown are shards along one axis of the "
                    "mesh, replicated along the others"
                )
            group = mesh.get_group(mesh_dim)
            found = Spread(placement.dim, group, mesh.get_local_rank(mesh_dim), mesh.size(mesh_dim))
        return found

    def bounds(self, extent: int, rank: int | None = None) -> tuple[int, int]:
        """The first position that a rank (this one) has on axis `dim`, of so many, and the one past its last."""
        size = -(-extent // self.ranks)
        rank = self.rank if rank is None else rank
        return min(rank * size, extent), min((rank + 1) * size, extent)

    def begins(self, shape: Sequence[int]) -> list[int]:
        """For each axis of a tensor of this shape, the first position that is here."""
        return [self.bounds(n)[0] if dim == self.dim else 0 for dim, n in enumerate(shape)]

    def local_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """What this rank has of a tensor of this shape."""
        if self.dim is None:
            return tuple(shape)
        begin, end = self.bounds(shape[self.dim])
        return (*shape[: self.dim], end - begin, *shape[self.dim + 1 :])

    def window(self, whole: Tensor) -> Tensor:
        """This rank's part of a tensor that it has as a whole: a view."""
        if self.dim is None:
            return whole
        begin, end = self.bounds(whole.shape[self.dim])
        return whole.narrow(self.dim, begin, end - begin)


def put(name: str, target: Tensor, whole: Tensor) -> None:
    """Gives `target` the values `whole`: this rank's part of them, if it is sharded."""
    local(target).copy_(Spread.of(name, target).window(whole))


def like(target: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor of another dtype, spread as `target` is."""
    mine = torch.empty_like(local(target), dtype=dtype)
    if not is_sharded(target):
        return mine
    made: Tensor = _tensor_module().DTensor.from_local(
        mine,
        cast(Any, target).device_mesh,
        cast(Any, target).placements,
        run_check=False,
        shape=target.shape,
        stride=target.stride(),
    )
    return made
