"""One call of gather_scale as data: what was asked for, checked once, in the form that every backend starts from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import dtypes, rng
from n2n_kernels.layout import memory_format
from n2n_kernels.ops import checks

NOISES = {"replicas": 1, "cancelling": 2}  # n2n::Noise, and the stream of the noise's counter

Optionals = Sequence[Tensor | None]


class Call(NamedTuple):
    """The op's arguments as they were given: those of its schema, in order, up to the backend."""

    srcs: Sequence[Tensor]
    out_maps: Optionals
    in_maps: Optionals
    out_scales: Optionals
    in_scales: Optionals
    noise_std: Sequence[float]
    noise: str
    seed: int
    tensor_ids: Sequence[int]


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
        """float64 [n']: the sum of `values` over the replicas of each entry's unit, added in order."""
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
    """Reads and checks maps and scales; each distinct tensor is read once, however many entries name it."""

    def __init__(self) -> None:
        self._maps: dict[tuple[int, int], AxisMap] = {}
        self._scales: dict[tuple[int, torch.dtype], np.ndarray] = {}

    def axis_map(self, name: str, given: Tensor | None, units: int) -> AxisMap | None:
        if given is None:
            return None
        key = id(given), units
        if key not in self._maps:
            index = given.detach().cpu().numpy()
            wrong = np.flatnonzero((index < 0) | (index >= units))
            if wrong.size:
                at = int(wrong[0])
                raise ValueError(f"{name}[{at}] (={index[at]}) is outside the teacher's {units} units")
            dropped = np.flatnonzero(np.bincount(index, minlength=units) == 0)
            if dropped.size:
                raise ValueError(f"{name} drops unit {int(dropped[0])}: every one of the {units} units must occur")
            self._maps[key] = AxisMap(index.copy())
        return self._maps[key]

    def scale(self, name: str, given: Tensor | None, dtype: torch.dtype) -> np.ndarray | None:
        if given is None:
            return None
        key = id(given), dtype
        if key not in self._scales:
            values = given.detach().cpu().double().numpy().copy()
            wrong = np.flatnonzero(~np.isfinite(values))
            if wrong.size:
                at = int(wrong[0])
                raise ValueError(f"{name}[{at}] (={values[at]}) must be finite")
            # The sum covers every sum over a unit's replicas too, which cancelling noise multiplies by.
            size, compute = np.abs(values).sum(), dtypes.TABLE[dtype].compute
            if size > torch.finfo(compute).max:
                raise ValueError(f"{name} (its magnitudes sum to {size}) is too large for {compute}")
            self._scales[key] = values
        return self._scales[key]


def _student_shape(src: Tensor, out_map: Tensor | None, in_map: Tensor | None) -> list[int]:
    shape = list(src.shape)
    if out_map is not None:
        shape[0] = out_map.shape[0]
    if in_map is not None:
        shape[1] = in_map.shape[0]
    return shape


def students_like(call: Call) -> list[Tensor]:
    """Uninitialised student tensors, in the teacher's dtypes, device and memory formats."""
    return [
        torch.empty(_student_shape(s, om, im), dtype=s.dtype, device=s.device, memory_format=memory_format(s))
        for s, om, im in zip(call.srcs, call.out_maps, call.in_maps, strict=True)
    ]


def build(call: Call, out: Sequence[Tensor] | None) -> Request:
    """Checks everything, then allocates what `out` does not give. Nothing is written."""
    check(call, out)
    maps = _Maps()
    parts = []
    for i, src in enumerate(call.srcs):
        checks.check_memory(f"srcs[{i}]", src)
        om = maps.axis_map(f"out_maps[{i}]", call.out_maps[i], src.shape[0])
        im = maps.axis_map(f"in_maps[{i}]", call.in_maps[i], src.shape[1] if src.dim() > 1 else 1)
        so = maps.scale(f"out_scales[{i}]", call.out_scales[i], src.dtype)
        si = maps.scale(f"in_scales[{i}]", call.in_scales[i], src.dtype)
        parts.append((om, im, so, si, rng.sigma(call.noise_std[i]), call.tensor_ids[i]))
    if out is not None:
        for i, target in enumerate(out):
            checks.check_memory(f"out[{i}]", target)
        checks.check_writable("out", out)
        checks.check_disjoint("out", out, "srcs", call.srcs)
    else:
        out = students_like(call)
    items = [Item(src, target, *part) for src, target, part in zip(call.srcs, out, parts, strict=True)]
    return Request(items, call.noise, call.seed)


def check(call: Call, out: Sequence[Tensor] | None) -> None:
    """Everything that can be told from numbers, dtypes, shapes and devices, so for fake tensors too."""
    _check_scalars(call)
    for name in ("out_maps", "in_maps", "out_scales", "in_scales", "noise_std", "tensor_ids"):
        checks.check_length(name, getattr(call, name), len(call.srcs), "srcs")
    if out is not None:
        checks.check_length("out", out, len(call.srcs), "srcs")
    for i, src in enumerate(call.srcs):
        checks.check_tensor(f"srcs[{i}]", src, dims=range(1, 6))
        _check_noise_fits(f"noise_std[{i}]", call.noise_std[i], f"srcs[{i}]", src)
        _check_axis("out", i, src, 0, call.out_maps[i], call.out_scales[i])
        _check_axis("in", i, src, 1, call.in_maps[i], call.in_scales[i])
        shape = _student_shape(src, call.out_maps[i], call.in_maps[i])
        if math.prod(shape[1:]) >= 2**31:
            raise ValueError(
                f"srcs[{i}] would have rows of {math.prod(shape[1:])} elements; fewer than 2**31 are supported"
            )
        if out is not None:
            _check_target(i, out[i], src, tuple(shape))
    if call.srcs:
        checks.check_one_device("srcs", call.srcs)


def check_noise_name(noise: object) -> None:
    if noise not in NOISES:
        raise ValueError(f"noise (={noise!r}) must be one of {', '.join(map(repr, NOISES))}")


def _check_scalars(call: Call) -> None:
    check_noise_name(call.noise)
    if not 0 <= call.seed < 2**63:
        raise ValueError(f"seed (={call.seed}) must be in [0, 2**63)")
    for i, std in enumerate(call.noise_std):
        if not (math.isfinite(std) and std >= 0):
            raise ValueError(f"noise_std[{i}] (={std}) must be finite and not negative")
    for i, tid in enumerate(call.tensor_ids):
        if not 0 <= tid < 2**32:
            raise ValueError(f"tensor_ids[{i}] (={tid}) must be in [0, 2**32)")


def _check_noise_fits(name: str, std: float, src_name: str, src: Tensor) -> None:
    # The largest perturbation is a difference of two samples. Infinities would not cancel.
    if rng.sigma(std) * 2 * rng.NOISE_BOUND > torch.finfo(src.dtype).max:
        raise ValueError(f"{name} (={std}) is too large for {src_name}, which is {src.dtype}")


def _check_axis(side: str, i: int, src: Tensor, dim: int, index: Tensor | None, scale: Tensor | None) -> None:
    if dim >= src.dim():
        if index is not None or scale is not None:
            raise ValueError(f"srcs[{i}] is 1-D and has no input axis, but in_maps[{i}] or in_scales[{i}] is given")
        return
    length = src.shape[dim]
    for name, given in ((f"{side}_maps[{i}]", index), (f"{side}_scales[{i}]", scale)):
        if given is not None:
            if given.dim() != 1:
                raise ValueError(f"{name} (shape {tuple(given.shape)}) must be 1-D")
            if given.device.type == "meta" != src.device.type:
                raise ValueError(f"{name}.device (={given.device}) has no values, but srcs[{i}] is on {src.device}")
    if index is not None:
        if index.dtype != torch.int64:
            raise TypeError(f"{side}_maps[{i}].dtype (={index.dtype}) must be torch.int64")
        length = index.shape[0]
    if scale is not None:
        if not scale.is_floating_point():
            raise TypeError(f"{side}_scales[{i}].dtype (={scale.dtype}) must be a floating-point type")
        if scale.shape[0] != length:
            raise ValueError(
                f"{side}_scales[{i}] has {scale.shape[0]} entries, but the student's axis {dim} has {length}"
            )


def _check_target(i: int, target: Tensor, src: Tensor, shape: tuple[int, ...]) -> None:
    checks.check_tensor(f"out[{i}]", target, dims=range(1, 6))
    for what, given, expected in (
        ("shape", tuple(target.shape), shape),
        ("dtype", target.dtype, src.dtype),
        ("device", target.device, src.device),
    ):
        if given != expected:
            raise ValueError(f"out[{i}].{what} (={given}) must be {expected}")
