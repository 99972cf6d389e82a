"""modules: those few classes of ours that a grown network may hold, where torch.nn has none."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Maxout(nn.Module):
    """The largest of each `pieces` neighbouring channels (Goodfellow et al., ICML 2013).

    Args:
        pieces: how many channels share one output; the input's number of channels must be a multiple of it.
        dim: the dimension of the channels.

    Shape: [..., C * pieces, ...] -> [..., C, ...].
    """

    def __init__(self, pieces: int, dim: int = 1) -> None:
        super().__init__()
        self.pieces = pieces
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        # `max` and not `amax`: the gradient must go to one of equal pieces, or equal ones would stay so for ever.
        dim = self.dim if self.dim >= 0 else x.dim() + self.dim
        return x.unflatten(dim, (-1, self.pieces)).max(dim + 1).values

    def extra_repr(self) -> str:
        return f"pieces={self.pieces}, dim={self.dim}"


class Chain(nn.ModuleDict):
    """Modules one after the other, each called with the first's further arguments: `nn.Sequential` for blocks that take
    more than one."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        for module in self.values():
            x = module(x, *args, **kwargs)
        return x
