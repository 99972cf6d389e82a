"""Growing tensors in place of one another, a chunk at a time: for what does not fit into memory twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from net2net.launches import Prepared, run

#: A chunk, as positions in a list, and its launch.
Part = tuple[Prepared, slice]

#: A chunk holds at most this part of all bytes, or else one tensor that is larger.
_SHARE = 1 / 32


def cut(tensors: Sequence[Tensor]) -> list[slice]:
    """The list in chunks, of which there are at most 64."""
    limit = sum(t.nbytes for t in tensors) * _SHARE
    begins, size = [0], 0
    for i, t in enumerate(tensors):
        if i and size + t.nbytes > limit:
            begins.append(i)
            size = 0
        size += t.nbytes
    return [slice(begin, end) for begin, end in zip(begins, [*begins[1:], len(tensors)], strict=True)]


def placeholder(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of this shape without memory to speak of, which is given its data later."""
    return torch.empty((), dtype=like.dtype, device=like.device).expand(torch.Size(shape))


def hand_over(
    parts: Sequence[Part], old: list[Tensor], new: list[Tensor], noise_std: Tensor | float = 0.0, seed: int = 0
) -> None:
    """Gives the placeholders `new` what the tensors `old` grow into, and empties these, chunk by chunk."""
    for launch, part in parts:
        grown = run(launch, old[part], noise_std[part] if isinstance(noise_std, Tensor) else noise_std, seed)
        for target, data, source in zip(new[part], grown, old[part], strict=True):
            target.data = data
            source.grad = None
            source.data = torch.empty(0, dtype=source.dtype, device=source.device)
