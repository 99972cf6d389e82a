"""The tensors that a plan is given, held against what it was made for.

There may be a thousand of them, and to look at one takes as long as to grow it. So they are compared column by column,
in loops that are not Python's, and one by one only where something is wrong.
"""

from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from n2n_kernels.ops import checks
from n2n_kernels.ops.gather_scale.forms import Forms
from n2n_kernels.ops.gather_scale.request import Kind


@dataclass(frozen=True, eq=False)
class Sources:
    """The tensors to read, and their memory as it is now: they may be given other memory later."""

    tensors: list[Tensor]
    storages: list[torch.UntypedStorage]
    addresses: np.ndarray  # int64 [tensors]
    odd: list[int]  # positions of those at addresses that are not multiples of their dtype


class Expected:
    """What the sources must be: of these kinds, on this device."""

    def __init__(self, kinds: list[Kind], device: torch.device) -> None:
        self._kinds, self._device = kinds, device
        self._columns = {
            "dtype": [kind.dtype for kind in kinds],
            "shape": [kind.shape for kind in kinds],
            # Whether a tensor is on the CPU takes half of the time that its device does.
            **({"is_cpu": [True] * len(kinds)} if device.type == "cpu" else {"device": [device] * len(kinds)}),
        }
        self._itemsizes = np.array([kind.dtype.itemsize for kind in kinds], dtype=np.int64)

    def check(self, srcs: list[Tensor]) -> Sources:
        checks.check_length("srcs", srcs, len(self._kinds), "the plan")
        if any(list(map(attrgetter(what), srcs)) != column for what, column in self._columns.items()):
            for i, (src, kind) in enumerate(zip(srcs, self._kinds, strict=True)):
                if src.shape != kind.shape or src.dtype != kind.dtype or src.device != self._device:
                    raise ValueError(
                        f"srcs[{i}] ({src.dtype}, shape {tuple(src.shape)}, on {src.device}) is not what the plan was "
                        f"made for ({kind.dtype}, shape {tuple(kind.shape)}, on {self._device})"
                    )
        checks.check_types("srcs", srcs)
        if any(map(Tensor.is_neg, srcs)):
            for i, src in enumerate(srcs):
                checks.check_memory(f"srcs[{i}]", src)
        addresses = np.fromiter(map(Tensor.data_ptr, srcs), np.int64, len(srcs))
        odd = np.flatnonzero(addresses % self._itemsizes).tolist()
        return Sources(srcs, list(map(Tensor.untyped_storage, srcs)), addresses, odd)

    def check_reach(self, sources: Sources, forms: Forms) -> None:
        """A storage may have been freed, or be shorter than it was when its tensor was made."""
        n = len(sources.tensors)
        begins = np.fromiter(map(Tensor.storage_offset, sources.tensors), np.int64, n) * self._itemsizes
        there = np.fromiter(map(torch.UntypedStorage.nbytes, sources.storages), np.int64, n)
        for i in np.flatnonzero((begins + forms.bytes > there) & (forms.bytes > 0)).tolist():
            checks.check_memory(f"srcs[{i}]", sources.tensors[i])
