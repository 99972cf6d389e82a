"""KernelPlan: larger convolution kernels as data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from n2n_kernels.layout import memory_format
from net2net import plan_fields
from net2net.launches import Entry, Law
from net2net.optimizer import MOMENTA, StateTensor
from net2net.plan import GrowthPlan
from net2net.plan_parts import Inventory, Skipped, module_of


class KernelPlan(GrowthPlan):
    """A step to larger kernels.

    Momentum is zero around a kernel, as its weights are there. What scales an optimizer's steps (second moments) is as
    large as the kernel has it on average: with zeros and an old step count, the first steps of the new weights would be
    several times the rate.

    Attributes:
        sizes: name of a convolution -> its new kernel size.
    """

    kind = "kernel"

    def __init__(self, inventory: Inventory, skipped: list[Skipped], sizes: dict[str, tuple[int, ...]]) -> None:
        super().__init__(inventory, skipped)
        self.sizes = sizes
        self._weights = {f"{name}.weight": size for name, size in sizes.items()}

    def summary(self) -> str:
        width = max(map(len, self.sizes), default=0)
        lines = [f"kernel: {len(self.sizes)} convolutions"]
        for name, size in self.sizes.items():
            before = self.shapes[f"{name}.weight"][2:]
            lines.append(f"  {name:<{width}}  {'x'.join(map(str, before))} -> {'x'.join(map(str, size))}")
        return "\n".join(lines)

    def student_shape(self, name: str) -> tuple[int, ...]:
        shape = self.shapes[name]
        return (*shape[:2], *self._weights[name]) if name in self._weights else shape

    def _law(self, entry: Entry) -> Law:
        return Law()  # all are copied as they are, then some padded

    def _finish(self, student: nn.Module) -> None:
        for name, size in self.sizes.items():
            module = module_of(student, name)
            if not isinstance(module, _ConvNd):
                raise ValueError(f"{name} is a {type(module).__name__} in model, but this plan is for a convolution")
            _resize(module, size)

    def _fill(self, student: nn.Module) -> None:
        for name, size in self.sizes.items():
            weight = student.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            weight.data = _padded(weight.data, size)

    def _fill_state(self, name: str, state: StateTensor, value: Tensor) -> None:
        if name in self._weights:
            value.data = self._completed(name, value.data, state.key)

    def _completed(self, name: str, rows: Tensor, key: str | None = None) -> Tensor:
        if name not in self._weights:
            return rows
        return _padded(rows, self._weights[name], by_mean=key is not None and key not in MOMENTA)

    def _renamed(self, name: str) -> str:
        return name

    def _new_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._completed(name, tensors[name]) for name in self._weights}

    def _neighbours(self) -> dict[str, list[str]]:
        return {}

    def _body(self) -> dict[str, Any]:
        return {"sizes": {name: list(size) for name, size in self.sizes.items()}}

    @classmethod
    def _from_body(cls, body: dict[str, Any], inventory: Inventory, skipped: list[Skipped]) -> KernelPlan:
        sizes = {name: plan_fields.wholes(f"the size of {name}", size, 1) for name, size in body["sizes"].items()}
        shared = {*inventory.aliases, *inventory.aliases.values()}
        for name, size in sizes.items():
            shape = inventory.shape(f"{name}.weight")
            if len(shape) < 3 or f"{name}.weight" in shared:
                raise ValueError(f"the weight of {name} (of shape {shape}) is not a convolution's own")
            check_size(f"the size of {name}", size, shape[2:])
        return cls(inventory, skipped, sizes)


def check_size(what: str, size: tuple[int, ...], old: tuple[int, ...]) -> None:
    """ValueError if a kernel of the size `old` cannot become this one."""
    if len(size) != len(old) or any(k < before or (k - before) % 2 for before, k in zip(old, size, strict=True)):
        raise ValueError(f"{what} must be the old size {old} plus even numbers")


def _padded(t: Tensor, size: tuple[int, ...], *, by_mean: bool = False) -> Tensor:
    """`t`, of a kernel's shape, with zeros around it, or with the mean that it has over the kernel."""
    kernel = tuple(range(2, t.dim()))
    around = t.mean(kernel, keepdim=True) if by_mean else t.new_zeros(())
    padded = torch.empty((*t.shape[:2], *size), dtype=t.dtype, device=t.device, memory_format=memory_format(t))
    padded.copy_(around)
    inside = [slice((k - n) // 2, (k - n) // 2 + n) for n, k in zip(t.shape[2:], size, strict=True)]
    index = (slice(None), slice(None), *inside)
    padded[index] = t
    return padded


def _resize(module: _ConvNd, size: tuple[int, ...]) -> None:
    more = [(k - old) // 2 for old, k in zip(module.kernel_size, size, strict=True)]  # on each side, per dimension
    module.kernel_size = size
    sides: list[int] = []
    if module.padding == "same":  # which is worked out from the kernel
        for i, k in reversed(list(enumerate(size))):
            total = module.dilation[i] * (k - 1)
            sides += [total // 2, total - total // 2]
    else:
        before = (0,) * len(size) if isinstance(module.padding, str) else module.padding
        padding = tuple(p + m * d for p, m, d in zip(before, more, module.dilation, strict=True))
        module.padding = padding
        sides = [p for p in reversed(padding) for _ in (0, 1)]
    module._reversed_padding_repeated_twice = sides
