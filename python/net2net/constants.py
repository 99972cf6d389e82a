"""constants: which tensors a forward makes of nothing but numbers in its code (masks, positions, counts).

These have their values while a growth is planned, so that these may be looked at where rules know no more than that
they are fixed: a mask that a forward repeats for each head is the same for all of them, however it was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from net2net.hashes import digest

#: Larger ones are not looked at.
_ELEMENTS = 2**24


class Constants:
    """These tensors, by the memory that they are in."""

    def __init__(self) -> None:
        self.clear()

    def __contains__(self, t: Tensor) -> bool:
        made = self._made.get(t.untyped_storage()._cdata)
        return made is not None and not made.expired()

    def clear(self) -> None:
        self._made: dict[int, StorageWeakRef] = {}
        self._numbers = True  # whether numbers in Python are constants

    def discard(self, tensors: Iterable[Tensor]) -> None:
        for t in tensors:
            self._made.pop(t.untyped_storage()._cdata, None)

    def handed_out(self, t: Tensor) -> None:
        """Python has got the numbers of a tensor, and may write others to the same memory."""
        self._numbers = self._numbers and t in self
        self.discard([t])

    def saw(self, func: Any, given: Sequence[Tensor], made: Iterable[Tensor], written: Iterable[Tensor]) -> None:
        """An operation made tensors of the values `given`, and wrote to others of them."""
        if func is torch.ops.aten.lift_fresh.default and self._numbers:
            given = ()
        if torch.Tag.nondeterministic_seeded in func.tags or not all(t in self for t in given):
            return self.discard(written)
        for t in made:
            storage = t.untyped_storage()
            self._made[storage._cdata] = StorageWeakRef(storage)
            if len(self._made) % 1024 == 0:
                self._made = {key: alive for key, alive in self._made.items() if not alive.expired()}
        return None

    def alike(self, t: Tensor, dims: Sequence[int]) -> bytes | None:
        """What `t` holds at each of the positions along `dims`; None, if it is not a constant, or not the same at all
        of them."""
        if t not in self or t.is_meta or t.numel() > _ELEMENTS:
            return None
        first = t
        for d in dims:
            first = first.narrow(d, 0, 1)
            # Expanded dimensions need no look.
            t = t if t.stride(d) else t.narrow(d, 0, 1)
        content = _bits(first)
        if t.shape != first.shape and not (_bits(t) == content).all():
            return None
        return digest(str(t.dtype), content)


def _bits(t: Tensor) -> np.ndarray:
    """uint8 [*t.shape, bytes]: equal where nothing tells two values apart."""
    dense = t.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(*t.shape, 1)
    return dense.view(torch.uint8).numpy()
