"""gather_scale in plain torch: the definition that the kernels are held to, bit for bit."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import dtypes, rng
from n2n_kernels.ops.gather_scale.bound import BoundGatherScale, Item
from n2n_kernels.ops.gather_scale.request import NOISES, AxisMap


@dataclass(frozen=True, eq=False)
class Part:
    """A rectangle of a student tensor: so many rows and columns, by their numbers in the student, and the teacher's
    weights there. `item` has maps and scales of the whole tensor, and its teacher's shape."""

    item: Item
    rows: np.ndarray  # int64 [rows]
    columns: np.ndarray  # int64 [columns]
    w: Tensor  # [rows, columns, *K], neither scaled nor perturbed

    def at_columns(self, positions: np.ndarray) -> "Part":
        return Part(self.item, self.rows, self.columns[positions], self.w.index_select(1, _on(self.w, positions)))

    def as_columns(self, columns: np.ndarray) -> "Part":
        """The same weights as other columns, of the same units, have them."""
        return Part(self.item, self.rows, columns, self.w)


def run(bound: BoundGatherScale) -> None:
    for item in bound.items():
        w, kind = item.src, item.kind
        if kind.out_map is not None:
            w = w.index_select(0, _on(w, kind.out_map.index))
        if kind.in_map is not None:
            w = w.index_select(1, _on(w, kind.in_map.index))
        columns = np.arange(w.shape[1] if w.dim() > 1 else 1)
        item.out.copy_(grown(Part(item, np.arange(w.shape[0]), columns, w), bound.noise, bound.seed))


def grown(part: Part, noise: str, seed: int) -> Tensor:
    """The student's values. They do not depend on which part of the student this is."""
    item, kind = part.item, part.item.kind
    if item.sigma == 0 and kind.out_scale is None and kind.in_scale is None:
        return part.w
    if noise == "replicas" and item.sigma and kind.out_map is not None:
        return _with_replica_noise(part, kind.out_map, seed)
    if noise == "cancelling" and item.sigma and kind.in_map is not None:
        return _with_cancelling_noise(part, kind.in_map, seed)
    return _finish(part.w, _scaled(part))


def _with_replica_noise(part: Part, out_map: AxisMap, seed: int) -> Tensor:
    w, item = part.w, part.item
    x = _scaled(part)
    columns = item.kind.student_shape[1] if w.dim() > 1 else 1
    index = _index(part, columns, part.columns)
    z = rng.noise(rng.words(index, seed=seed, tensor_id=item.tensor_id, stream=NOISES["replicas"])).to(x.dtype)
    noisy = _along(w, 0, _on(w, out_map.order[part.rows] > 0)) & w.isfinite()
    return _finish(w, torch.where(noisy, x + z * _number(x, item.sigma), x))


def _with_cancelling_noise(part: Part, in_map: AxisMap, seed: int) -> Tensor:
    """A unit's replicas take z[0] - z[1], z[1] - z[2], ..., z[r-1] - z[0], which sum to zero; the last one is made of
    what the others, as stored, leave of the whole."""
    w, item, here = part.w, part.item, part.columns
    following = in_map.next[here]
    alone = _along(w, 1, _on(w, following == here))
    result = torch.where(alone, _finish(w, _scaled(part)), _perturbed(part, in_map, seed))
    last = np.flatnonzero(following < here)
    if not last.size:
        return result
    tail = part.at_columns(last)
    shares = np.ones(len(in_map.index)) if item.kind.in_scale is None else item.kind.in_scale.values
    whole = _scaled(tail, in_scale=in_map.replica_sums(shares))
    others = torch.zeros_like(whole)
    replica = following[last]  # walks the others, first to last
    for _ in range(in_map.most_replicas() - 1):
        walking = _along(w, 1, _on(w, replica != tail.columns))
        stored = _perturbed(tail.as_columns(replica), in_map, seed).to(whole.dtype)
        others = torch.where(walking, others + stored, others)
        replica = np.where(replica != tail.columns, in_map.next[replica], replica)
    at = _on(w, last)
    rest = torch.where(tail.w.isfinite(), _finish(tail.w, whole - others), result.index_select(1, at))
    return result.index_copy(1, at, rest)


def _perturbed(part: Part, in_map: AxisMap, seed: int) -> Tensor:
    w, x = part.w, _scaled(part)
    order, order_next = in_map.order[part.columns], in_map.order[in_map.next[part.columns]]
    z, z_next = (_replica_noise(part, in_map, o, seed) for o in (order, order_next))
    delta = (z - z_next).to(x.dtype)
    return _finish(w, torch.where(w.isfinite(), x + delta * _number(x, part.item.sigma), x))


def _replica_noise(part: Part, in_map: AxisMap, order: np.ndarray, seed: int) -> Tensor:
    """z of the replica number `order` of each column's unit: half a word of (student row, unit, kernel element)."""
    w, kind = part.w, part.item.kind
    index = _index(part, kind.shape[1], in_map.index[part.columns])
    z = torch.zeros_like(index)
    for stream in range(int(order.max(initial=0)) // 2 + 1):
        word = rng.words(index, seed=seed, tensor_id=part.item.tensor_id, stream=NOISES["cancelling"] + stream)
        mine = _along(w, 1, _on(w, order // 2 == stream))
        z = torch.where(mine, rng.half_noise(word, _along(w, 1, _on(w, order % 2)).expand_as(word)), z)
    return z


def _index(part: Part, row: int, inside_row: np.ndarray) -> Tensor:
    """int64, of the shape of the part: (student row, what is given of each column, kernel element) as one number, for
    rows of so many columns."""
    w = part.w
    kernel = math.prod(w.shape[2:])
    rows = _on(w, part.rows).view(-1, 1, 1)
    inside = torch.arange(kernel, device=w.device)
    return ((rows * row + _on(w, inside_row).view(-1, 1)) * kernel + inside).view(w.shape)


def _scaled(part: Part, in_scale: np.ndarray | None = None) -> Tensor:
    """(w * c_in) * c_out in the compute dtype."""
    w, kind = part.w, part.item.kind
    x = w.to(dtypes.TABLE[w.dtype].compute)
    if in_scale is None and kind.in_scale is not None:
        in_scale = kind.in_scale.values
    if in_scale is not None:
        x = x * _along(w, 1, _on(w, in_scale[part.columns]).to(x.dtype))
    if kind.out_scale is not None:
        x = x * _along(w, 0, _on(w, kind.out_scale.values[part.rows]).to(x.dtype))
    return x


def _finish(w: Tensor, x: Tensor) -> Tensor:
    """`x` rounded to the dtype of `w`; a NaN of `w` stays as it is, and a NaN made here is one fixed pattern."""
    dtype = dtypes.TABLE[w.dtype]
    made = torch.where(x.isnan(), torch.full_like(w, dtype.quiet_nan, dtype=dtype.bits).view(w.dtype), x.to(w.dtype))
    return torch.where(w.isnan(), w, made)


def _on(w: Tensor, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(w.device)


def _number(x: Tensor, value: float) -> Tensor:
    """A scalar rounded to the dtype of `x` before it is used, as the kernels round it."""
    return torch.tensor(value, dtype=x.dtype, device=x.device)


def _along(w: Tensor, dim: int, values: Tensor) -> Tensor:
    """`values` shaped to broadcast along `dim` of `w`."""
    return values.view([-1 if d == dim else 1 for d in range(w.dim())])
