"""Kernels of another size: a kernel with zeros around it, and more padding, is the same function with more to learn."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from net2net.kernel_plan import KernelPlan, check_size
from net2net.plan_parts import Inventory
from net2net.running import Inputs
from net2net.scalars import plain
from net2net.skeleton import check_model
from net2net.verify import check_growth

Size = int | Sequence[int]


def plan_kernels(model: nn.Module, example_inputs: Inputs, sizes: Mapping[str, Size]) -> KernelPlan:
    """Plans larger convolution kernels; nothing is changed yet.

    A kernel is padded with zeros on all sides and the convolution's padding grows by as much (times the dilation): a
    3x3 kernel becomes a 5x5 one with `padding + 1`. Transposed convolutions too.

    Args:
        model: any module. It is not touched.
        example_inputs: as for the other plans; sizes do not depend on them.
        sizes: names or shell-style patterns of convolutions -> their new kernel size, an int or one per dimension. It
            must differ from the old one by an even number, so that there is as much on either side.

    Raises:
        ValueError: for a bad argument, by name and value: a name that fits no convolution, a size that does not fit, a
            weight that other modules share or that is computed.
    """
    tensors = check_model(model)
    wanted = _wanted(model, sizes)
    shared = set(tensors.aliases) | set(tensors.aliases.values())
    for name in wanted:
        if f"{name}.weight" not in tensors.parameters:
            raise ValueError(f"sizes[{name!r}]: its weight is computed (parametrised), not a parameter")
        if f"{name}.weight" in shared:
            raise ValueError(f"sizes[{name!r}]: its weight is shared with another module")
    return KernelPlan(Inventory.of(model), [], {name: size for name, (_, size) in wanted.items()})


def enlarge_kernels(model: nn.Module, example_inputs: Inputs, sizes: Mapping[str, Size]) -> nn.Module:
    """A model with larger convolution kernels that computes the same function.

    Args:
        model: any module. It is not touched.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for its forward, on which teacher
            and student are compared.
        sizes: see `plan_kernels`.

    Returns:
        A new module of the same class.

    Raises:
        ValueError: what `plan_kernels` refuses.
        RuntimeError: if the student's outputs differ from the teacher's by more than rounding explains.
    """
    student = plan_kernels(model, example_inputs, sizes).apply(model)
    check_growth(model, student, example_inputs)
    return student


def _wanted(model: nn.Module, sizes: Mapping[str, Size]) -> dict[str, tuple[_ConvNd, tuple[int, ...]]]:
    if not isinstance(sizes, Mapping) or not sizes:
        raise ValueError(f"sizes (={sizes!r}) must map names of convolutions to kernel sizes")
    wanted: dict[str, tuple[_ConvNd, tuple[int, ...]]] = {}
    for pattern, size in sizes.items():
        matching = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _ConvNd) and fnmatch.fnmatchcase(name, pattern)
        }
        if not matching:
            raise ValueError(f"sizes[{pattern!r}] fits no convolution")
        for name, module in matching.items():
            new = _fitting(pattern, size, module)
            if name in wanted and wanted[name][1] != new:
                raise ValueError(f"sizes[{pattern!r}] (={size!r}) contradicts another entry for {name}")
            wanted[name] = module, new
    return wanted


def _fitting(pattern: str, size: Size, module: _ConvNd) -> tuple[int, ...]:
    dims = len(module.kernel_size)
    size = plain(size)
    new = (size,) * dims if isinstance(size, int) else tuple(size) if isinstance(size, tuple | list) else ()
    if len(new) != dims or not all(isinstance(k, int) and not isinstance(k, bool) for k in new):
        raise ValueError(f"sizes[{pattern!r}] (={size!r}) must be an int, or {dims} of them")
    check_size(f"sizes[{pattern!r}] (={size!r})", new, tuple(module.kernel_size))
    return new
