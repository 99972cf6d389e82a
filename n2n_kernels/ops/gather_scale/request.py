"""One call of gather_scale as data: what was asked for, checked once, in the form that every backend starts from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import rng
from n2n_kernels.layout import memory_format
from n2n_kernels.ops import checks

NOISES = {"replicas": 1, "cancelling": 2}  # n2n::Noise, and the stream of the noise's counter


@dataclass(frozen=True, eq=False)
class AxisMap:
    """A checked map and what backends derive from it. Tensors that share a map share this object."""

    index: np.ndarray  # int64 [n'], student -> teacher

    def seen(self) -> np.ndarray:
        """int32 [n']: 1 where the entry's unit has occurred before, the paper's "all but the first copy"."""
        seen = np.ones(len(self.index), dtype=np.int32)
        seen[np.unique(self.index, return_index=True)[1]] = 0
        return seen

    def next(self) -> np.ndarray:
        """int32 [n']: the next replica of the same unit, cyclically; itself where there is only one."""
        order = np.argsort(self.index, kind="stable")
        runs = np.flatnonzero(np.diff(self.index[order], prepend=-1))
        following = np.roll(order, -1)
        ends = np.append(runs[1:], len(order)) - 1
        following[ends] = order[runs]
        nxt = np.empty(len(order), dtype=np.int32)
        nxt[order] = following
        return nxt

    def most_replicas(self) -> int:
        return int(np.bincount(self.index).max(initial=0))

    def replica_sums(self, values: np.ndarray) -> np.ndarray:
        """float64 [n']: the sum of `values` over the replicas of each entry's unit, added in the order of the entries."""
        return np.bincount(self.index, weights=values)[self.index]


@dataclass(frozen=True, eq=False)
class Item:
    """One tensor's part."""

    src: Tensor
    out: Tensor
    out_map: AxisMap | None
    in_map: AxisMap | None
    out_scale: np.ndarray | None  # float64
    in_scale: np.ndarray | None
    sigma: float  # factor on the integer noise
    tensor_id: int

    @property
    def noisy_rows(self) -> bool:
        return self.sigma != 0 and self.out_map is not None

    @property
    def noisy_columns(self) -> bool:
        return self.sigma != 0 and self.in_map is not None


@dataclass(frozen=True, eq=False)
class Request:
    items: list[Item]
    noise: str
    seed: int


class _Maps:
    """Checks maps and scales; each distinct tensor is read once, however many entries name it."""

    def __init__(self) -> None:
        self._maps: dict[tuple[int, int], AxisMap] = {}
        self._scales: dict[int, np.ndarray] = {}

    def axis_map(self, name: str, given: Tensor, units: int) -> AxisMap:
        if (id(given), units) not in self._maps:
            if given.dtype != torch.int64 or given.dim() != 1:
                raise ValueError(f"{name} (={given.dtype}, {given.dim()}-D) must be a 1-D int64 tensor")
            index = given.detach().cpu().numpy()
            wrong = np.flatnonzero((index < 0) | (index >= units))
            if wrong.size:
                at = int(wrong[0])
                raise ValueError(f"{name}[{at}] (={index[at]}) is outside the teacher's {units} units")
            dropped = np.flatnonzero(np.bincount(index, minlength=units) == 0)
            if dropped.size:
                raise ValueError(f"{name} drops unit {int(dropped[0])}: every one of the {units} units must occur")
            self._maps[id(given), units] = AxisMap(index.copy())
        return self._maps[id(given), units]

    def scale(self, name: str, given: Tensor, length: int) -> np.ndarray:
        if id(given) not in self._scales:
            if not given.is_floating_point() or given.dim() != 1:
                raise ValueError(f"{name} (={given.dtype}, {given.dim()}-D) must be a 1-D floating-point tensor")
            values = given.detach().cpu().double().numpy().copy()
            if not np.isfinite(values).all():
                at = int(np.flatnonzero(~np.isfinite(values))[0])
                raise ValueError(f"{name}[{at}] (={values[at]}) must be finite")
            self._scales[id(given)] = values
        if len(self._scales[id(given)]) != length:
            raise ValueError(f"{name} has {len(self._scales[id(given)])} entries, but the student's axis has {length}")
        return self._scales[id(given)]


def student_shape(src: Tensor, out_map: Tensor | None, in_map: Tensor | None) -> list[int]:
    shape = list(src.shape)
    if out_map is not None:
        shape[0] = out_map.shape[0]
    if in_map is not None:
        shape[1] = in_map.shape[0]
    return shape


def student_like(src: Tensor, out_map: Tensor | None, in_map: Tensor | None) -> Tensor:
    """An uninitialised student tensor, in the teacher's dtype, device and memory format."""
    return torch.empty(
        student_shape(src, out_map, in_map),
        dtype=src.dtype,
        device=src.device,
        memory_format=memory_format(src),
    )


def build(
    srcs: Sequence[Tensor],
    out_maps: Sequence[Tensor | None],
    in_maps: Sequence[Tensor | None],
    out_scales: Sequence[Tensor | None],
    in_scales: Sequence[Tensor | None],
    noise_std: Sequence[float],
    noise: str,
    seed: int,
    tensor_ids: Sequence[int],
    out: Sequence[Tensor] | None,
) -> Request:
    """Checks everything, then allocates what `out` does not give. Nothing is written."""
    _check_scalars(noise_std, noise, seed, tensor_ids)
    for name, given in (
        ("out_maps", out_maps), ("in_maps", in_maps), ("out_scales", out_scales), ("in_scales", in_scales),
        ("noise_std", noise_std), ("tensor_ids", tensor_ids),
    ):  # fmt: skip
        checks.check_length(name, given, len(srcs), "srcs")
    if out is not None:
        checks.check_length("out", out, len(srcs), "srcs")
    for i, src in enumerate(srcs):
        checks.check_tensor(f"srcs[{i}]", src, dims=range(1, 6))
    if not srcs:
        return Request([], noise, seed)
    checks.check_one_device("srcs", srcs)

    maps = _Maps()
    parts = []
    for i, src in enumerate(srcs):
        g_out, g_in = out_maps[i], in_maps[i]
        if src.dim() == 1 and (g_in is not None or in_scales[i] is not None):
            raise ValueError(f"srcs[{i}] is 1-D and has no input axis, but in_maps[{i}] or in_scales[{i}] is given")
        om = None if g_out is None else maps.axis_map(f"out_maps[{i}]", g_out, src.shape[0])
        im = None if g_in is None else maps.axis_map(f"in_maps[{i}]", g_in, src.shape[1])
        shape = student_shape(src, g_out, g_in)
        if math.prod(shape[1:]) >= 2**31:
            raise ValueError(
                f"srcs[{i}] would have rows of {math.prod(shape[1:])} elements; fewer than 2**31 are supported"
            )
        s_out, s_in = out_scales[i], in_scales[i]
        so = None if s_out is None else maps.scale(f"out_scales[{i}]", s_out, shape[0])
        si = None if s_in is None else maps.scale(f"in_scales[{i}]", s_in, shape[1])
        parts.append((om, im, so, si, shape))
    if out is not None:
        _check_out(out, srcs, [p[-1] for p in parts])

    targets = out or [student_like(s, om, im) for s, om, im in zip(srcs, out_maps, in_maps, strict=True)]
    items = [
        Item(src, target, om, im, so, si, rng.sigma(std), tid)
        for src, target, (om, im, so, si, _), std, tid in zip(srcs, targets, parts, noise_std, tensor_ids, strict=True)
    ]
    return Request(items, noise, seed)


def _check_scalars(noise_std: Sequence[float], noise: str, seed: int, tensor_ids: Sequence[int]) -> None:
    if noise not in NOISES:
        raise ValueError(f"noise (={noise!r}) must be one of {', '.join(map(repr, NOISES))}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed (={seed}) must be in [0, 2**63)")
    for i, std in enumerate(noise_std):
        if not (math.isfinite(std) and std >= 0):
            raise ValueError(f"noise_std[{i}] (={std}) must be finite and not negative")
    for i, tid in enumerate(tensor_ids):
        if not 0 <= tid < 2**32:
            raise ValueError(f"tensor_ids[{i}] (={tid}) must be in [0, 2**32)")


def _check_out(out: Sequence[Tensor], srcs: Sequence[Tensor], shapes: list[list[int]]) -> None:
    for i, (target, src, shape) in enumerate(zip(out, srcs, shapes, strict=True)):
        checks.check_tensor(f"out[{i}]", target, dims=range(1, 6))
        for what, given, expected in (
            ("shape", tuple(target.shape), tuple(shape)),
            ("dtype", target.dtype, src.dtype),
            ("device", target.device, src.device),
        ):
            if given != expected:
                raise ValueError(f"out[{i}].{what} (={given}) must be {expected}")
    checks.check_writable("out", out)
    checks.check_disjoint("out", out, "srcs", srcs)
