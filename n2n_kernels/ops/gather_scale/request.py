"""What a call of gather_scale asks for: checked once, in the form that every backend starts from.

Lists are long and repetitive: a network's tensors share maps, and many share shapes. So everything that depends on a
tensor's shape, dtype, maps and scales alone is found once per `Kind`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import dtypes, rng
from n2n_kernels.layout import memory_format
from n2n_kernels.lazy import lazy
from n2n_kernels.ops import checks
from n2n_kernels.ops.memory import check_types

NOISES = {"replicas": 1, "cancelling": 2}  # n2n::Noise, and the (first) stream of the noise's counter

Axis = Sequence[Tensor | None]


class Call(NamedTuple):
    """The tensors and what becomes of their axes: the op's first arguments, in the order of its schema."""

    srcs: Sequence[Tensor]
    out_maps: Axis
    in_maps: Axis
    out_scales: Axis
    in_scales: Axis


def as_axis(name: str, given: Axis | None, count: int) -> list[Tensor | None]:
    """A list with an entry per tensor; None for the whole argument is None for each."""
    return [None] * count if given is None else checks.tensor_list(name, given, optional=True)


def as_call(
    srcs: Sequence[Tensor], out_maps: Axis | None, in_maps: Axis | None, out_scales: Axis | None, in_scales: Axis | None
) -> Call:
    sources = checks.tensor_list("srcs", srcs)
    n = len(sources)
    return Call(
        sources,
        as_axis("out_maps", out_maps, n),
        as_axis("in_maps", in_maps, n),
        as_axis("out_scales", out_scales, n),
        as_axis("in_scales", in_scales, n),
    )


def as_tensor_ids(tensor_ids: Sequence[int] | None, count: int) -> list[int]:
    return list(range(count)) if tensor_ids is None else checks.integer_list("tensor_ids", tensor_ids)


def as_stds(noise_std: float | Sequence[float], count: int) -> list[float]:
    if isinstance(noise_std, Sequence | np.ndarray) and not isinstance(noise_std, str):
        if set(map(type, noise_std)) == {float}:
            return list(noise_std)
        return [checks.number(f"noise_std[{i}]", s) for i, s in enumerate(noise_std)]
    return [checks.number("noise_std", noise_std)] * count


def _stable_argsort(keys: np.ndarray) -> np.ndarray:
    """Of integers that are not negative."""
    # NumPy sorts integers of 16 bits by their digits, in a fifth of the time.
    return np.argsort(keys.astype(np.uint16) if keys.max(initial=0) < 2**16 else keys, kind="stable")


def _sums_before(count: np.ndarray) -> np.ndarray:
    """int64 [n + 1]: the sum of the entries before each, and of all."""
    sums = np.zeros(len(count) + 1, dtype=np.int64)
    np.cumsum(count, out=sums[1:])
    return sums


@dataclass(frozen=True, eq=False)
class AxisMap:
    """A checked map and what backends derive from it. Tensors that share a map share this object."""

    index: np.ndarray  # int64 [n'], student -> teacher

    @lazy
    def prefix(self) -> int:
        """So many first entries are 0, 1, 2, ..."""
        other = self.index != np.arange(len(self.index))
        first = int(other.argmax()) if other.size else 0
        return first if other[first : first + 1].any() else len(self.index)

    @lazy
    def count(self) -> np.ndarray:
        """int64 [n]: how many replicas each unit has."""
        return np.bincount(self.index)

    @lazy
    def by_unit(self) -> np.ndarray:
        """int64 [n']: the student's indices, sorted by the unit that they copy, the earlier replica first."""
        return _stable_argsort(self.index)

    @lazy
    def begins(self) -> np.ndarray:
        """int64 [n + 1]: where each unit's replicas begin in `by_unit`."""
        return _sums_before(self.count)

    @lazy
    def units(self) -> np.ndarray:
        """int64 [n, 4]: each unit, its first and its last replica, and how many it has; those with most come first."""
        replicas = np.stack([self.by_unit[self.begins[:-1]], self.by_unit[self.begins[1:] - 1]])
        units = np.stack([np.arange(len(self.count)), *replicas, self.count], axis=1)
        return units[_stable_argsort(self.count.max(initial=0) - self.count)]

    @lazy
    def order(self) -> np.ndarray:
        """int64 [n']: how many of the unit's replicas come before."""
        order = np.empty(len(self.index), dtype=np.int64)
        order[self.by_unit] = np.arange(len(self.index)) - self.begins[self.index[self.by_unit]]
        return order

    @lazy
    def seen(self) -> np.ndarray:
        """bool [n']: whether the entry's unit occurs before."""
        seen = np.ones(len(self.index), dtype=bool)
        seen[self.by_unit[self.begins[:-1]]] = False
        return seen

    @lazy
    def replicas(self) -> np.ndarray:
        """int64 [n']: how many replicas the entry's unit has."""
        return self.count[self.index]

    @lazy
    def next(self) -> np.ndarray:
        """int64 [n']: the next replica of the same unit, cyclically; itself where there is only one."""
        following = self.begins[self.index] + (self.order + 1) % self.replicas
        return self.by_unit[following]

    def most_replicas(self) -> int:
        return int(self.replicas.max(initial=0))

    def replica_sums(self, values: np.ndarray) -> np.ndarray:
        """float64 [n']: the sum of `values` over the replicas of each entry's unit, added in order."""
        return np.bincount(self.index, weights=values)[self.index]


@dataclass(frozen=True, eq=False)
class Scale:
    """A checked vector of factors. Tensors that share one share this object."""

    values: np.ndarray  # float64


@dataclass(frozen=True, eq=False)
class Kind:
    """What tensors of one shape and dtype, with the same maps and scales, have in common."""

    shape: torch.Size
    dtype: torch.dtype
    student_shape: torch.Size
    out_map: AxisMap | None
    in_map: AxisMap | None
    out_scale: Scale | None
    in_scale: Scale | None

    @property
    def empty(self) -> bool:
        return self.student_shape.numel() == 0


def kinds(call: Call) -> list[Kind]:
    """The kind of each tensor, after all that can be checked of them; values are read from maps and scales."""
    alike = check(call)
    check_types("srcs", call.srcs)
    values = _Values()
    known: dict[int, Kind] = {}
    for i in dict.fromkeys(alike):
        src, (om, im, so, si) = call.srcs[i], (axis[i] for axis in call[1:])
        known[i] = Kind(
            src.shape,
            src.dtype,
            _student_shape(src, om, im),
            values.axis_map(f"out_maps[{i}]", om, src.shape[0]),
            values.axis_map(f"in_maps[{i}]", im, src.shape[1] if src.dim() > 1 else 1),
            values.scale(f"out_scales[{i}]", so, src.dtype),
            values.scale(f"in_scales[{i}]", si, src.dtype),
        )
    return [known[i] for i in alike]


def rescaled(kinds: Sequence[Kind], out_scales: Axis, in_scales: Axis) -> list[Kind]:
    """The same kinds with other scales."""
    values = _Values()
    known: dict[object, Kind] = {}
    result = []
    for i, (kind, so, si) in enumerate(zip(kinds, out_scales, in_scales, strict=True)):
        key = id(kind), id(so), id(si)
        if key not in known:
            student = torch.empty(kind.student_shape, dtype=kind.dtype, device="meta")
            for side, dim, scale in (("out", 0, so), ("in", 1, si)):
                if scale is not None and scale.device.type == "meta":
                    raise ValueError(f"{side}_scales[{i}].device (={scale.device}) has no values")
                _check_axis(side, i, student, dim, None, scale)
            known[key] = replace(
                kind,
                out_scale=values.scale(f"out_scales[{i}]", so, kind.dtype),
                in_scale=values.scale(f"in_scales[{i}]", si, kind.dtype),
            )
        result.append(known[key])
    return result


class _Values:
    """Reads and checks maps and scales; each distinct tensor is read once, however many entries name it."""

    def __init__(self) -> None:
        self._maps: dict[tuple[int, int], AxisMap] = {}
        self._scales: dict[tuple[int, torch.dtype], Scale] = {}

    def axis_map(self, name: str, given: Tensor | None, units: int) -> AxisMap | None:
        if given is None:
            return None
        key = id(given), units
        if key not in self._maps:
            checked = AxisMap(given.detach().cpu().numpy().copy())
            index = checked.index
            if index.size and (index.min() < 0 or index.max() >= units):
                at = int(np.argmax((index < 0) | (index >= units)))
                raise ValueError(f"{name}[{at}] (={index[at]}) is outside the teacher's {units} units")
            if len(checked.count) < units or not checked.count.all():
                dropped = int(np.argmin(np.bincount(index, minlength=units)))
                raise ValueError(f"{name} drops unit {dropped}: every one of the {units} units must occur")
            self._maps[key] = checked
        return self._maps[key]

    def scale(self, name: str, given: Tensor | None, dtype: torch.dtype) -> Scale | None:
        if given is None:
            return None
        key = id(given), dtype
        if key not in self._scales:
            values = given.detach().cpu().double().numpy().copy()
            finite = np.isfinite(values)
            if not finite.all():
                at = int(np.argmin(finite))
                raise ValueError(f"{name}[{at}] (={values[at]}) must be finite")
            # The sum covers every sum over a unit's replicas too, which cancelling noise multiplies by.
            size, compute = np.abs(values).sum(), dtypes.TABLE[dtype].compute
            if size > torch.finfo(compute).max:
                raise ValueError(f"{name} (its magnitudes sum to {size}) is too large for {compute}")
            self._scales[key] = Scale(values)
        return self._scales[key]


def _student_shape(src: Tensor, out_map: Tensor | None, in_map: Tensor | None) -> torch.Size:
    shape = list(src.shape)
    if out_map is not None:
        shape[0] = out_map.shape[0]
    if in_map is not None:
        shape[1] = in_map.shape[0]
    return torch.Size(shape)


def students_like(call: Call) -> list[Tensor]:
    """Uninitialised student tensors, in the teacher's dtypes, device and memory formats."""
    return [
        empty_like(src, _student_shape(src, om, im))
        for src, om, im in zip(call.srcs, call.out_maps, call.in_maps, strict=True)
    ]


def empty_like(src: Tensor, shape: torch.Size) -> Tensor:
    """Uninitialised, of another shape, but otherwise like the teacher's."""
    return torch.empty(shape, dtype=src.dtype, device=src.device, memory_format=memory_format(src))


def check(call: Call) -> list[int]:
    """Everything that can be told from dtypes, shapes and devices, so for fake tensors too.

    Returns:
        For each tensor the first one of which all that is the same, its maps and scales too: perhaps itself.
    """
    for name, given in zip(Call._fields[1:], call[1:], strict=True):
        checks.check_length(name, given, len(call.srcs), "srcs")
    alike = checks.alike(call.srcs, *(map(id, axis) for axis in call[1:]))
    for i in dict.fromkeys(alike):
        src, (om, im, so, si) = call.srcs[i], (axis[i] for axis in call[1:])
        checks.check_tensor(f"srcs[{i}]", src, dims=range(1, 6))
        _check_axis("out", i, src, 0, om, so)
        _check_axis("in", i, src, 1, im, si)
        row = math.prod(_student_shape(src, om, im)[1:])
        if row >= 2**31:
            raise ValueError(f"srcs[{i}] would have rows of {row} elements; fewer than 2**31 are supported")
    if call.srcs:
        checks.check_one_device("srcs", call.srcs)
    return alike


def check_targets(srcs: Sequence[Tensor], shapes: Sequence[torch.Size], out: Sequence[Tensor]) -> None:
    """The same for tensors to write to."""
    checks.check_length("out", out, len(srcs), "srcs")
    for i, (target, src, shape) in enumerate(zip(out, srcs, shapes, strict=True)):
        checks.check_tensor(f"out[{i}]", target, dims=range(1, 6))
        if target.shape != shape:
            raise ValueError(f"out[{i}].shape (={tuple(target.shape)}) must be {tuple(shape)}")
        if target.dtype != src.dtype:
            raise ValueError(f"out[{i}].dtype (={target.dtype}) must be {src.dtype}")
        if target.device != src.device:
            raise ValueError(f"out[{i}].device (={target.device}) must be {src.device}")


def student_shapes(call: Call) -> list[torch.Size]:
    return [_student_shape(*given) for given in zip(call.srcs, call.out_maps, call.in_maps, strict=True)]


def check_noise_name(noise: object) -> None:
    if noise not in NOISES:
        raise ValueError(f"noise (={noise!r}) must be one of {', '.join(map(repr, NOISES))}")


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed (={seed}) must be in [0, 2**63)")


def check_tensor_ids(tensor_ids: Sequence[int], count: int) -> None:
    checks.check_length("tensor_ids", tensor_ids, count, "srcs")
    if count and min(tensor_ids) >= 0 and max(tensor_ids) < 2**32:
        return
    for i, tid in enumerate(tensor_ids):
        if not 0 <= tid < 2**32:
            raise ValueError(f"tensor_ids[{i}] (={tid}) must be in [0, 2**32)")


def check_noise_stds(noise_std: Sequence[float], noise: str, srcs: Sequence[Tensor]) -> None:
    checks.check_length("noise_std", noise_std, len(srcs), "srcs")
    if not any(noise_std):
        return
    limits = {dtype: torch.finfo(dtype).max for dtype in dtypes.TABLE}
    for i, (std, src) in enumerate(zip(noise_std, srcs, strict=True)):
        if not (math.isfinite(std) and std >= 0):
            raise ValueError(f"noise_std[{i}] (={std}) must be finite and not negative")
        # Infinities would not cancel.
        if rng.sigma(std, noise) * rng.LARGEST > limits[src.dtype]:
            raise ValueError(f"noise_std[{i}] (={std}) is too large for srcs[{i}], which is {src.dtype}")


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
        if index.shape[0] >= 2**31:
            raise ValueError(f"{side}_maps[{i}] has {index.shape[0]} entries; fewer than 2**31 are supported")
        length = index.shape[0]
    if scale is not None:
        if not scale.is_floating_point():
            raise TypeError(f"{side}_scales[{i}].dtype (={scale.dtype}) must be a floating-point type")
        if scale.shape[0] != length:
            raise ValueError(
                f"{side}_scales[{i}] has {scale.shape[0]} entries, but the student's axis {dim} has {length}"
            )
