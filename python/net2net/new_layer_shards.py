"""The values of new layers whose parameters are sharded: each rank writes its own part of what `new_layers.fill` would
write, and makes no more of it than that (but for paired layers, whose factors are only known as a whole)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from net2net import new_layers
from net2net.new_layers import Insertion
from net2net.shards import Spread, local, put


def fill(layers: Iterable[tuple[Insertion, int, nn.Module]]) -> None:
    """Gives the new layers (each the i-th one of its insertion), all of whose values are unknown, their values.

    Raises:
        TypeError: for a weight that is sharded along its kernel.
    """
    for insertion, i, layer in layers:
        tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        whole = new_layers.vectors(insertion, i, next(t.dtype for t in tensors.values() if t.is_floating_point()))
        for name, t in tensors.items():
            if name in whole:
                put(name, t, whole[name])
            else:
                _fill_weight(insertion, i, name, t)


def _fill_weight(insertion: Insertion, i: int, name: str, weight: Tensor) -> None:
    spread = Spread.of(name, weight)
    if spread.dim is not None and spread.dim > 1:
        raise TypeError(f"{name} of {insertion.module} is sharded along axis {spread.dim}; it can be along 0 or 1")
    middle = new_layers.middle_of(local(weight).zero_())
    if insertion.method == "paired":
        factor, inverse = new_layers.factors(insertion, i, weight.dtype)
        middle.copy_(spread.window(factor if name.startswith("expand.") else inverse))
        return
    ones = torch.stack([torch.arange(weight.shape[0]), new_layers.identity_columns(insertion)])
    if spread.dim is not None:
        begin, end = spread.bounds(weight.shape[spread.dim])
        ones = ones[:, (begin <= ones[spread.dim]) & (ones[spread.dim] < end)]
        ones[spread.dim] -= begin
    rows, columns = ones.to(middle.device)
    middle[rows, columns] = 1
