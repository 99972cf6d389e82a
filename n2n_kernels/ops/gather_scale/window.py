"""A part of gather_scale's result without the rest: a range of positions on one axis, as a rank of a sharded network
holds it.

The part has the bits that it has in the whole. Where there is no noise that is a `gather_scale` of its own, with the
maps and scales of the range. Noise depends on what is outside of the range too: which rows are first copies, which
columns are one unit's replicas, and the places of elements in the whole student.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import rng
from n2n_kernels.ops.gather_scale import reference, request
from n2n_kernels.ops.gather_scale.bound import Item
from n2n_kernels.ops.gather_scale.plan import GatherScalePlan
from n2n_kernels.ops.gather_scale.request import Kind

#: Elements that are made at a time where there is noise: their random numbers take some forty times the memory.
_PIECE = 2**16


@dataclass(frozen=True, eq=False)
class Whole:
    """A tensor of which parts are to be grown.

    Attributes:
        shape: of the whole teacher tensor, `[O, I, *K]` or `[O]`.
        dtype: float32, float64, bfloat16 or float16.
        out_map, in_map, out_scale, in_scale: as for `gather_scale`, of the whole.
        tensor_id: of the noise.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    out_map: Tensor | None = None
    in_map: Tensor | None = None
    out_scale: Tensor | None = None
    in_scale: Tensor | None = None
    tensor_id: int = 0

    def units(self, dim: int, begin: int, end: int) -> np.ndarray:
        """int64, ascending: the teacher's positions on axis 0 or 1 that the student's positions [begin, end) copy."""
        index = (self.out_map, self.in_map)[dim]
        return np.arange(begin, end) if index is None else np.unique(index[begin:end].numpy())

    def grow(
        self, src: Tensor, out: Tensor, *, dim: int, begin: int, sigma: float = 0.0, noise: str, seed: int = 0
    ) -> None:
        """Writes the student's positions from `begin` on, as many as `out` has on axis `dim`, into `out`.

        Args:
            src: the teacher's positions `units(...)` of that range, in any layout.
            sigma: the factor on the integer noise, see `sigma_of`.
            noise, seed: as for `gather_scale`.
        """
        end = begin + out.shape[dim]
        if out.numel() == 0:
            return
        noisy = sigma != 0 and (self.out_map if noise == "replicas" else self.in_map) is not None and out.dim() > 1
        if noisy:
            self._with_noise(src, out, dim, begin, sigma, noise, seed)
            return
        maps, scales = [self.out_map, self.in_map], [self.out_scale, self.in_scale]
        if (index := maps[dim]) is not None:
            maps[dim] = torch.from_numpy(np.unique(index[begin:end].numpy(), return_inverse=True)[1])
        if (scale := scales[dim]) is not None:
            scales[dim] = scale[begin:end]
        GatherScalePlan([src], maps[:1], maps[1:], out_scales=scales[:1], in_scales=scales[1:])([src], [out])

    def _with_noise(self, src: Tensor, out: Tensor, dim: int, begin: int, sigma: float, noise: str, seed: int) -> None:
        kind = self._kind()
        item = Item(src, out, kind, sigma, self.tensor_id)
        ranges = [np.arange(n) for n in out.shape[:2]]
        ranges[dim] += begin
        froms = [r if m is None else m.index[r] for r, m in zip(ranges, (kind.out_map, kind.in_map), strict=True)]
        froms[dim] = np.searchsorted(np.unique(froms[dim]), froms[dim])
        columns = torch.from_numpy(froms[1]).to(src.device)
        step = max(1, _PIECE // max(1, out[0].numel()))
        for at in range(0, out.shape[0], step):
            rows = slice(at, at + step)
            w = src.index_select(0, torch.from_numpy(froms[0][rows]).to(src.device)).index_select(1, columns)
            out[rows] = reference.grown(reference.Part(item, ranges[0][rows], ranges[1], w), noise, seed)

    def _kind(self) -> Kind:
        whole = torch.empty(self.shape, dtype=self.dtype, device="meta")
        return request.kinds(
            request.as_call([whole], [self.out_map], [self.in_map], [self.out_scale], [self.in_scale])
        )[0]


def sigma_of(noise_std: float, noise: str, dtype: torch.dtype) -> float:
    """The factor on the integer noise for a standard deviation that was measured: what is not finite, negative or too
    large for the dtype gives no noise, as in a `GatherScalePlan`."""
    sigma = rng.sigma(noise_std, noise)
    return sigma if 0 <= sigma <= torch.finfo(dtype).max / rng.LARGEST[noise] else 0.0


__all__ = ["Whole", "sigma_of"]
