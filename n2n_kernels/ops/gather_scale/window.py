"""A part of gather_scale's result without the rest: a range of positions on one axis, as a rank of a sharded network
holds it, made of those of the teacher's positions that it copies.

The part has the bits that it has in the whole. Where there is no noise that is a `gather_scale` of its own, with the
maps and scales of the range. Noise depends on what is outside of a range of rows too: on which rows are first copies,
and on the rows' numbers in the whole student, by which it is counted. So there the way of `rows` is taken, on any
device: the table lists these rows alone, and the student's address is such that they fall on the memory that there is.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from n2n_kernels.backends import choose
from n2n_kernels.lazy import lazy
from n2n_kernels.ops.gather_scale import reference, request
from n2n_kernels.ops.gather_scale.bound import BoundGatherScale, Item, Part
from n2n_kernels.ops.gather_scale.plan import GatherScalePlan
from n2n_kernels.ops.gather_scale.request import AxisMap, Kind, Scale
from n2n_kernels.ops.gather_scale.tasks import Column

#: Elements that the plain-torch definition makes at a time: random numbers take some forty times the memory.
_PIECE = 2**16


@dataclass(frozen=True, eq=False)
class RowRange(AxisMap):
    """A student's map of which only the rows from `begin` to `end` are made. `index` leads to the teacher's rows that
    there are, and is of no account outside of the range."""

    begin: int
    end: int
    earlier: np.ndarray  # int64 [n']: how many of the unit's replicas come before, in the whole student

    @lazy
    def by_unit(self) -> np.ndarray:
        """int64 [end - begin]: the range's rows, sorted by the unit that they copy."""
        return np.argsort(self.index[self.begin : self.end], kind="stable") + self.begin

    @lazy
    def count(self) -> np.ndarray:
        """int64 [n]: how many replicas each unit has in the range."""
        return np.bincount(self.index[self.begin : self.end])

    @lazy
    def order(self) -> np.ndarray:
        return self.earlier

    @lazy
    def seen(self) -> np.ndarray:
        return self.earlier > 0


@dataclass(frozen=True, eq=False)
class Whole:
    """A tensor of which parts are to be grown.

    Attributes:
        out_map, in_map, out_scale, in_scale: as for `gather_scale`, of the whole.
        tensor_id: of the noise.
        backend: as for `gather_scale`.
    """

    out_map: Tensor | None = None
    in_map: Tensor | None = None
    out_scale: Tensor | None = None
    in_scale: Tensor | None = None
    tensor_id: int = 0
    backend: str | None = None

    def units(self, dim: int, begin: int, end: int) -> np.ndarray:
        """int64, ascending: the teacher's positions on axis 0 or 1 that the student's positions [begin, end) copy."""
        index = (self.out_map, self.in_map)[dim]
        return np.arange(begin, end) if index is None else np.unique(index[begin:end].numpy())

    def grow(self, src: Tensor, out: Tensor, *, dim: int, begin: int) -> None:
        """Writes the student's positions from `begin`, as many as `out` has on axis `dim`, into `out`, without noise.

        Args:
            src: the teacher's positions `units(...)` of that range, in any layout.
        """
        if out.numel() == 0:
            return
        end = begin + out.shape[dim]
        maps, scales = [self.out_map, self.in_map], [self.out_scale, self.in_scale]
        if (index := maps[dim]) is not None:
            maps[dim] = torch.from_numpy(_places(index[begin:end].numpy()))
        if (scale := scales[dim]) is not None:
            scales[dim] = scale[begin:end]
        plan = GatherScalePlan(
            [src], maps[:1], maps[1:], out_scales=scales[:1], in_scales=scales[1:], backend=self.backend
        )
        plan([src], [out])

    def grow_noisy_rows(self, src: Tensor, out: Tensor, *, begin: int, noise_std: float, noise: str, seed: int) -> None:
        """The student's rows from `begin` on, with noise; `src` and `out` as for `grow`, along axis 0.

        Args:
            noise_std: absolute. What is not finite, negative or too large for the dtype gives no noise.
            noise, seed: as for `gather_scale`.
        """
        if out.numel() == 0:
            return
        src = src.contiguous()
        kind = self._kind(src, out, begin)
        plan = object.__new__(GatherScalePlan)
        plan._set([kind], noise, [self.tensor_id], src.device, choose(self.backend, src.device), None)
        std = torch.tensor([noise_std], dtype=torch.float64, device=src.device)
        bound = plan.bind([src], [out], noise_std=std, seed=seed)
        if bound.parts and all((part.prepared.tasks[:, Column.ROWS] != 0).all() for part in bound.parts):
            _move(bound, out, begin)
            bound.run()
            return
        # Single elements are not listed by a table.
        step = max(1, _PIECE // out[0].numel())
        sigma = bound.items()[0].sigma
        for at in range(0, len(out), step):
            piece = out[at : at + step]
            item = Item(src, piece, kind, sigma, self.tensor_id, begin + at, begin + at + len(piece))
            reference.run_item(item, noise, seed)

    def _kind(self, src: Tensor, out: Tensor, begin: int) -> Kind:
        end = begin + len(out)
        if self.out_map is None:
            index, earlier = np.zeros(end, dtype=np.int64), np.zeros(end, dtype=np.int64)
            places = np.arange(len(out))
        else:
            whole = AxisMap(self.out_map.numpy())
            index, earlier = np.zeros_like(whole.index), whole.order
            places = _places(whole.index[begin:end])
        index[begin:end] = places
        kind = request.kinds(request.as_call([src], None, [self.in_map], None, [self.in_scale]))[0]
        scale = None if self.out_scale is None else Scale(self.out_scale.double().numpy())
        rows = RowRange(index, begin, end, earlier)
        return replace(kind, student_shape=out.shape, out_map=rows, out_scale=scale)


def _places(index: np.ndarray) -> np.ndarray:
    """int64: where each entry is among the different ones."""
    return np.unique(index, return_inverse=True)[1]


def _move(bound: BoundGatherScale, out: Tensor, begin: int) -> None:
    """Moves the student to where its first row would be."""
    for n, part in enumerate(bound.parts):
        part.tasks[:, Column.DST] -= begin * out.stride(0) * out.itemsize
        # Which would have the processor told about all of the student's memory.
        bound.parts[n] = Part(replace(part.prepared, streaming=False), part.tasks)
