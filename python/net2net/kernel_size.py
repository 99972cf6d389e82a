"""Kernels of another size: a kernel with zeros around it, and more padding, is the same function with more to learn."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from n2n_kernels.layout import memory_format
from net2net.running import Inputs
from net2net.skeleton import check_model, rebuild
from net2net.verify import check_growth

Size = int | Sequence[int]


def enlarge_kernels(model: nn.Module, example_inputs: Inputs, sizes: Mapping[str, Size]) -> nn.Module:
    """A model with larger convolution kernels that computes the same function.

    A kernel is padded with zeros on all sides and the convolution's padding grows by as much (times the dilation): a
    3x3 kernel becomes a 5x5 one with `padding + 1`. Transposed convolutions too.

    Args:
        model: any module. It is not touched.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for its forward, on which teacher
            and student are compared.
        sizes: names or shell-style patterns of convolutions -> their new kernel size, an int or one per dimension. It
        must
            differ from the old one by an even number, so that there is as much on either side.

    Returns:
        A new module of the same class.

    Raises:
        ValueError: for a bad argument, by name and value: a name that fits no convolution, a size that does not fit, a
            weight that other modules share or that is computed.
        RuntimeError: if the student's outputs differ from the teacher's by more than rounding explains.
    """
    tensors = check_model(model)
    wanted = _wanted(model, sizes)
    shared = set(tensors.aliases) | set(tensors.aliases.values())
    grown = {}
    for name, (module, size) in wanted.items():
        if f"{name}.weight" not in tensors.parameters:
            raise ValueError(f"sizes[{name!r}]: its weight is computed (parametrised), not a parameter")
        if f"{name}.weight" in shared:
            raise ValueError(f"sizes[{name!r}]: its weight is shared with another module")
        grown[f"{name}.weight"] = _padded(module.weight.detach(), _more(module, size))
    student = rebuild(model, grown, tensors)
    for name, (module, size) in wanted.items():
        _resize(student.get_submodule(name), size, _more(module, size))
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
    new = (size,) * dims if isinstance(size, int) else tuple(size)
    if len(new) != dims or not all(isinstance(k, int) and not isinstance(k, bool) for k in new):
        raise ValueError(f"sizes[{pattern!r}] (={size!r}) must be an int, or {dims} of them")
    for old, k in zip(module.kernel_size, new, strict=True):
        if k < old or (k - old) % 2:
            raise ValueError(
                f"sizes[{pattern!r}] (={size!r}) must be the old size {tuple(module.kernel_size)} plus even numbers"
            )
    return new


def _more(module: _ConvNd, size: tuple[int, ...]) -> list[int]:
    """What is added on each side, per dimension."""
    return [(k - old) // 2 for old, k in zip(module.kernel_size, size, strict=True)]


def _padded(weight: Tensor, more: list[int]) -> Tensor:
    around = [n for m in reversed(more) for n in (m, m)]
    return F.pad(weight, around).contiguous(memory_format=memory_format(weight))


def _resize(module: nn.Module, size: tuple[int, ...], more: list[int]) -> None:
    assert isinstance(module, _ConvNd)
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
