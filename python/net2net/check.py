"""check: holds a student to what was inferred about its teacher, by running the student's own forward.

Every position of a student's parameter axes has a known unit. The same rules as in inference say where units must
agree; here they must agree already. A hard-coded size, a slice at a fixed place or an attribute that code reads in
`forward` shows up as a disagreement or as an error of the forward itself, and names the units that it is about.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from net2net import labels as lab
from net2net.trace import Context, TraceError
from net2net.units import FIXED


class Check(Context):
    """Compares instead of joining. `unit_of[name, dim]` is the unit of each position of a student's axis, `widened[u]`
    tells whether unit u has more than one replica, `numbers` are those that the teacher's operations were given."""

    def __init__(
        self,
        model: nn.Module,
        unit_of: dict[tuple[str, int], np.ndarray],
        widened: np.ndarray,
        numbers: list[tuple[str, tuple[str, ...]]],
    ) -> None:
        super().__init__(model)
        self._numbers = numbers
        self._unit_of = unit_of
        self._widened = widened

    def axis_ids(self, name: str, dim: int, size: int, role: str) -> Tensor:
        units = self._unit_of.get((name, dim))
        if units is None:
            return torch.full((size,), FIXED, dtype=torch.int32)
        if len(units) != size:
            raise TraceError(f"{name} has {size} positions on axis {dim}, not {len(units)}{self.where()}", [units])
        return torch.from_numpy(units.astype(np.int32))

    def canonical(self, labels: Tensor) -> Tensor:
        return labels  # a student's labels are units from the start

    def join(self, a: Tensor, b: Tensor, why: str) -> None:
        a, b = lab.compact(a), lab.compact(b)
        try:
            a, b = torch.broadcast_tensors(a, b)
        except RuntimeError:
            raise self._failed("the student has other numbers of units here", a, b) from None
        left, right = a.numpy().ravel(), b.numpy().ravel()
        differ = (left > FIXED) & (right > FIXED) & (left != right)
        if differ.any():
            raise self._failed("the student has units here in another order than was inferred", a, b)
        self.pin(torch.from_numpy(np.concatenate([left[right == FIXED], right[left == FIXED]])), why)

    def pin(self, labels: Tensor, why: str) -> None:
        units = lab.compact(labels).numpy().ravel()
        if self._widened[units].any():
            raise self._failed(why, labels)

    def numbers(self, func: Any, values: list[Any]) -> None:
        super().numbers(func, values)
        at = len(self.seen_numbers) - 1
        if at >= len(self._numbers) or self.seen_numbers[at] != self._numbers[at]:
            raise RuntimeError(f"{func} is given a number that depends on the width")

    def _failed(self, why: str, *labels: Tensor) -> TraceError:
        units = np.concatenate([lab.compact(a).numpy().ravel() for a in labels])
        return TraceError(why + self.where(), [units])
