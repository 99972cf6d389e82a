"""gather_scale in plain torch: the definition that the kernels are held to, bit for bit."""

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import dtypes, rng
from n2n_kernels.ops.gather_scale.request import NOISES, Item, Request


def run(request: Request) -> None:
    for item in request.items:
        item.out.copy_(_grown(item, request.noise, request.seed))


def _grown(item: Item, noise: str, seed: int) -> Tensor:
    w = item.src
    if item.out_map is not None:
        w = w.index_select(0, _on(w, item.out_map.index))
    if item.in_map is not None:
        w = w.index_select(1, _on(w, item.in_map.index))
    if item.sigma == 0 and item.out_scale is None and item.in_scale is None:
        return w
    if noise == "replicas" and item.noisy_rows:
        return _with_replica_noise(item, w, seed)
    if noise == "cancelling" and item.noisy_columns:
        return _with_cancelling_noise(item, w, seed)
    return _finish(w, _scaled(item, w))


def _with_replica_noise(item: Item, w: Tensor, seed: int) -> Tensor:
    assert item.out_map is not None
    x = _scaled(item, w)
    z = _noise(item, w, "replicas", seed).to(x.dtype)
    noisy = _along(w, 0, _on(w, item.out_map.seen().astype(bool))) & w.isfinite()
    return _finish(w, torch.where(noisy, x + z * _number(x, item.sigma), x))


def _with_cancelling_noise(item: Item, w: Tensor, seed: int) -> Tensor:
    """The replicas' perturbations sum to zero; the last one takes what the others, as stored, leave of the whole."""
    assert item.in_map is not None
    following = item.in_map.next().astype(np.int64)
    here = np.arange(len(following))
    z = _noise(item, w, "cancelling", seed)
    x = _scaled(item, w)
    delta = (z - z.index_select(1, _on(w, following))).to(x.dtype)
    perturbed = _finish(w, torch.where(w.isfinite(), x + delta * _number(x, item.sigma), x))

    shares = np.ones(len(here)) if item.in_scale is None else item.in_scale
    whole = _scaled(item, w, in_scale=item.in_map.replica_sums(shares))
    others = torch.zeros_like(x)
    replica = following  # of each unit's last replica: walks the others, first to last
    last = following < here
    for _ in range(item.in_map.most_replicas() - 1):
        walking = _along(w, 1, _on(w, last & (replica != here)))
        others = torch.where(walking, others + perturbed.index_select(1, _on(w, replica)).to(x.dtype), others)
        replica = np.where(replica != here, following[replica], replica)
    is_last = _along(w, 1, _on(w, last)) & w.isfinite()
    alone = _along(w, 1, _on(w, following == here))
    result = torch.where(is_last, _finish(w, whole - others), perturbed)
    return torch.where(alone, _finish(w, x), result)


def _scaled(item: Item, w: Tensor, in_scale: np.ndarray | None = None) -> Tensor:
    """(w * c_in) * c_out in the compute dtype."""
    x = w.to(dtypes.TABLE[w.dtype].compute)
    in_scale = item.in_scale if in_scale is None else in_scale
    if in_scale is not None:
        x = x * _along(w, 1, _on(w, in_scale).to(x.dtype))
    if item.out_scale is not None:
        x = x * _along(w, 0, _on(w, item.out_scale).to(x.dtype))
    return x


def _noise(item: Item, w: Tensor, noise: str, seed: int) -> Tensor:
    index = torch.arange(w.numel(), dtype=torch.int64, device=w.device).view(w.shape)
    return rng.noise(index, seed=seed, tensor_id=item.tensor_id, stream=NOISES[noise])


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
