"""The shapes on which gather_scale is tested, and its definition once more, in float64."""

from dataclasses import dataclass
from typing import Any

import torch
from kernel_cases import LAYOUTS, place, random_weights, shuffled_map, uniform_split, widening_map
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A teacher's shape and the student's widths; None leaves an axis."""

    shape: tuple[int, ...]
    out_width: int | None = None
    in_width: int | None = None


SMALL = [
    Case((7,), 11),
    Case((6, 5), 9, 8),
    Case((4, 3, 5), None, 6),
    Case((5, 4, 3, 3), 8, 7),
    Case((3, 4, 5, 2), 5, None),
    Case((3, 4, 2, 3, 2), 4, 6),
    Case((1, 1, 3, 3), 3, 2),
    Case((2, 3, 1, 1), 4, 5),
    Case((4, 6, 2, 2)),
]

#: One tensor of each kind, for what does not depend on shapes: Triton's interpreter takes its time for each row.
FEW = [Case((2,), 3), Case((2, 2), 3, 4), Case((2, 3, 2, 2), 3, 5)]

#: Several tiles of 4,096 elements, with rows that straddle them, rows longer than one, and exactly one.
LARGE = [Case((40, 13, 3, 3), 66, 21), Case((1, 4097), 2, 5000), Case((64, 64)), Case((5000,), 8200)]


@dataclass(frozen=True)
class Teacher:
    """One tensor's arguments, on the CPU. Scales are float64 numbers that float32 holds."""

    values: Tensor
    out_map: Tensor | None
    in_map: Tensor | None
    out_scale: Tensor | None
    in_scale: Tensor | None

    @property
    def student_shape(self) -> tuple[int, ...]:
        shape = list(self.values.shape)
        for d, g in ((0, self.out_map), (1, self.in_map)):
            if g is not None:
                shape[d] = len(g)
        return tuple(shape)


def teacher(case: Case, dtype: torch.dtype, seed: int, *, scaled: bool = True, shuffled: bool = False) -> Teacher:
    make = shuffled_map if shuffled else widening_map
    values = random_weights(case.shape, dtype, seed)
    out_map = None if case.out_width is None else make(case.shape[0], case.out_width, seed + 1)
    in_map = None if case.in_width is None else make(case.shape[1], case.in_width, seed + 2)
    out_scale = in_scale = None
    if scaled:
        if out_map is not None:
            out_scale = 0.5 + torch.rand(len(out_map), generator=torch.Generator().manual_seed(seed))
        in_scale = None if in_map is None else uniform_split(in_map).float()
    return Teacher(
        values,
        out_map,
        in_map,
        None if out_scale is None else out_scale.double(),
        None if in_scale is None else in_scale.double(),
    )


def teachers(
    cases: list[Case], dtype: torch.dtype, *, layout: str = "contiguous", scaled: bool = True, shuffled: bool = False
) -> list[Teacher]:
    """Those of the cases that can lie in this layout."""
    fitting = [case for case in cases if len(case.shape) in LAYOUTS[layout].dims]
    return [teacher(case, dtype, 10 * i, scaled=scaled, shuffled=shuffled) for i, case in enumerate(fitting)]


def arguments(given: list[Teacher], device: torch.device, *, layout: str = "contiguous") -> dict[str, Any]:
    """What gather_scale takes. Maps and scales stay on the CPU, where they are usually made."""
    return {
        "srcs": [place(t.values, layout, device) for t in given],
        "out_maps": [t.out_map for t in given],
        "in_maps": [t.in_map for t in given],
        "out_scales": [t.out_scale for t in given],
        "in_scales": [t.in_scale for t in given],
    }


def along(x: Tensor, dim: int, values: Tensor) -> Tensor:
    return values.view([-1 if d == dim else 1 for d in range(x.dim())])


def definition(t: Teacher) -> Tensor:
    """U[o, i, k] = W[g_o[o], g_i[i], k] * c_i[i] * c_o[o], in float64 on the CPU."""
    u = t.values.double()
    if t.out_map is not None:
        u = u[t.out_map]
    if t.in_map is not None:
        u = u[:, t.in_map]
    if t.in_scale is not None:
        u = u * along(u, 1, t.in_scale)
    if t.out_scale is not None:
        u = u * along(u, 0, t.out_scale)
    return u


def assert_as_defined(got: list[Tensor], given: list[Teacher]) -> None:
    """The students `got` are what the definition says, as nearly as their dtypes allow."""
    for i, (u, t) in enumerate(zip(got, given, strict=True)):
        assert u.dtype == t.values.dtype
        assert tuple(u.shape) == t.student_shape
        # A half is computed in float32 and rounded once; float32 and float64 round after each of two products.
        epsilon = torch.finfo(u.dtype).eps
        bound = 0.5001 * epsilon if u.element_size() == 2 else 1.0001 * epsilon
        expected = definition(t)
        error = (u.cpu().double() - expected).abs()
        denormal = torch.finfo(u.dtype).smallest_normal * epsilon
        assert (error <= bound * expected.abs() + denormal).all(), f"tensor {i} of shape {t.student_shape}"
