"""How the same is done without this package, in torch: what the kernels are compared with."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Maps = Sequence[Tensor]
Optionals = Sequence[Tensor | None]


def _along_inputs(x: Tensor, scale: Tensor) -> Tensor:
    return scale.view(1, -1, *[1] * (x.dim() - 2))


def index_select(srcs: Sequence[Tensor], out_maps: Maps, in_maps: Optionals, in_scales: Optionals) -> list[Tensor]:
    """One axis after the other, then the scale: what most implementations of Net2Net do."""
    students = []
    for w, g_out, g_in, c_in in zip(srcs, out_maps, in_maps, in_scales, strict=True):
        u = w.index_select(0, g_out)
        if g_in is not None and c_in is not None:
            u = u.index_select(1, g_in)
            u.mul_(_along_inputs(u, c_in))
        students.append(u)
    return students


def indexing(srcs: Sequence[Tensor], out_maps: Maps, in_maps: Optionals, in_scales: Optionals) -> list[Tensor]:
    """Both axes at once by advanced indexing, then the scale."""
    students = []
    for w, g_out, g_in, c_in in zip(srcs, out_maps, in_maps, in_scales, strict=True):
        if g_in is None or c_in is None:
            students.append(w[g_out])
            continue
        u = w[g_out[:, None], g_in]
        students.append(u.mul_(_along_inputs(u, c_in)))
    return students


GROWTH: dict[str, Callable[[Sequence[Tensor], Maps, Optionals, Optionals], list[Tensor]]] = {
    "index_select": index_select,
    "indexing": indexing,
}


def dirac(tensors: Sequence[Tensor]) -> None:
    for t in tensors:
        torch.nn.init.dirac_(t)


def zero_and_strided_fill(tensors: Sequence[Tensor]) -> None:
    """An expert's way, two launches: the ones of a contiguous square weight lie evenly spaced."""
    for t in tensors:
        t.zero_()
        kernel = t[0, 0].numel()
        t.as_strided((t.shape[0],), (t.stride(0) + kernel,), t.storage_offset() + kernel // 2).fill_(1)


IDENTITY = {"dirac_": dirac, "zero_, strided fill_": zero_and_strided_fill}


def var_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    return mean, var


MOMENTS = {"var_mean": var_mean}
