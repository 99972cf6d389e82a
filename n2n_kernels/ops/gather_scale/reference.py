"""gather_scale in plain torch: the definition that the kernels are held to, bit for bit."""

import math

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import dtypes, rng
from n2n_kernels.ops.gather_scale.bound import BoundGatherScale, Item
from n2n_kernels.ops.gather_scale.request import NOISES, AxisMap


def run(bound: BoundGatherScale) -> None:
    for item in bound.items():
        run_item(item, bound.noise, bound.seed)


def run_item(item: Item, noise: str, seed: int) -> None:
    item.out.copy_(_grown(item, noise, seed))


def _grown(item: Item, noise: str, seed: int) -> Tensor:
    w, kind = item.src, item.kind
    w = w[item.rows] if kind.out_map is None else w.index_select(0, _on(w, kind.out_map.index[item.rows]))
    if kind.in_map is not None:
        w = w.index_select(1, _on(w, kind.in_map.index))
    if item.sigma == 0 and kind.out_scale is None and kind.in_scale is None:
        return w
    if noise == "replicas" and item.sigma and kind.out_map is not None:
        return _with_replica_noise(item, kind.out_map, w, seed)
    if noise == "cancelling" and item.sigma and kind.in_map is not None:
        return _with_cancelling_noise(item, kind.in_map, w, seed)
    return _finish(w, _scaled(item, w))


def _with_replica_noise(item: Item, out_map: AxisMap, w: Tensor, seed: int) -> Tensor:
    x = _scaled(item, w)
    begin = item.begin * math.prod(w.shape[1:])
    index = torch.arange(begin, begin + w.numel(), dtype=torch.int64, device=w.device).view(w.shape)
    z = rng.noise(rng.words(index, seed=seed, tensor_id=item.tensor_id, stream=NOISES["replicas"])).to(x.dtype)
    noisy = _along(w, 0, _on(w, out_map.order[item.rows] > 0)) & w.isfinite()
    return _finish(w, torch.where(noisy, x + z * _number(x, item.sigma), x))


def _with_cancelling_noise(item: Item, in_map: AxisMap, w: Tensor, seed: int) -> Tensor:
    """A unit's replicas take z[0] - z[1], z[1] - z[2], ..., z[r-1] - z[0], which sum to zero; the last one is made of
    what the others, as stored, leave of the whole."""
    following, here = in_map.next, np.arange(len(in_map.index))
    x = _scaled(item, w)
    z, z_next = (_replica_noise(item, in_map, w, order, seed) for order in (in_map.order, in_map.order[following]))
    delta = (z - z_next).to(x.dtype)
    perturbed = _finish(w, torch.where(w.isfinite(), x + delta * _number(x, item.sigma), x))

    shares = np.ones(len(here)) if item.kind.in_scale is None else item.kind.in_scale.values
    whole = _scaled(item, w, in_scale=in_map.replica_sums(shares))
    others = torch.zeros_like(x)
    replica = following  # of each unit's last replica: walks the others, first to last
    last = following < here
    for _ in range(in_map.most_replicas() - 1):
        walking = _along(w, 1, _on(w, last & (replica != here)))
        others = torch.where(walking, others + perturbed.index_select(1, _on(w, replica)).to(x.dtype), others)
        replica = np.where(replica != here, following[replica], replica)
    is_last = _along(w, 1, _on(w, last)) & w.isfinite()
    alone = _along(w, 1, _on(w, following == here))
    result = torch.where(is_last, _finish(w, whole - others), perturbed)
    return torch.where(alone, _finish(w, x), result)


def _replica_noise(item: Item, in_map: AxisMap, w: Tensor, order: np.ndarray, seed: int) -> Tensor:
    """z of the replica number `order` of each column's unit: half a word of (student row, unit, kernel element)."""
    units, kernel = item.src.shape[1], math.prod(w.shape[2:])
    rows = torch.arange(item.begin, item.begin + w.shape[0], device=w.device).view(-1, 1, 1)
    inside = torch.arange(kernel, device=w.device)
    index = ((rows * units + _on(w, in_map.index).view(-1, 1)) * kernel + inside).view(w.shape)
    z = torch.zeros_like(index)
    for stream in range(int(order.max(initial=0)) // 2 + 1):
        word = rng.words(index, seed=seed, tensor_id=item.tensor_id, stream=NOISES["cancelling"] + stream)
        mine = _along(w, 1, _on(w, order // 2 == stream))
        z = torch.where(mine, rng.half_noise(word, _along(w, 1, _on(w, order % 2)).expand_as(word)), z)
    return z


def _scaled(item: Item, w: Tensor, in_scale: np.ndarray | None = None) -> Tensor:
    """(w * c_in) * c_out in the compute dtype."""
    x = w.to(dtypes.TABLE[w.dtype].compute)
    if in_scale is None and item.kind.in_scale is not None:
        in_scale = item.kind.in_scale.values
    if in_scale is not None:
        x = x * _along(w, 1, _on(w, in_scale).to(x.dtype))
    if item.kind.out_scale is not None:
        x = x * _along(w, 0, _on(w, item.kind.out_scale.values[item.rows]).to(x.dtype))
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
