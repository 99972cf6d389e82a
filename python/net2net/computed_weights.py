"""Weights that a layer computes from its parameters, and what must be done to these so that the student computes what
the plan says.

A plan's laws are linear: a weight's entries are gathered and scaled. Weight normalisation,

    w = g v / |v|        (Salimans and Kingma, NIPS 2016),

is not linear in v, but is where g / |v| stays as it is. So v is grown like any weight, and then

    g'_j = g_i(j) |v'_j| / |v_i(j)|.

Weight standardisation (Qiao et al., 2019) takes from each row of a weight its mean m and divides by its standard
deviation s, w = (v - m) / s. It is linear in v - m where m and s stay as they are. With d = v - m and r_i replicas of
input i, each of them j with the coefficient c_ij,

    v'_ij = m + c_ij d_i,    sum_j c_ij = 1

keeps m, and the sum over replicas is that of the teacher. To keep s over n' entries instead of n,

    sum_i d_i^2 sum_j c_ij^2 = (n' / n) sum_i d_i^2

must hold in each row. With c_ij = 1 / r_i + a u_ij, where the u_ij of a unit sum to 0 and their squares to 1 (or are 0,
if it has one replica), this is an equation for a, row by row, that has a solution unless all of these d_i are 0. (Then
a u_ij is added as it is, instead of a u_ij d_i.) Replicas then differ as they do by cancelling noise, which these
weights need not have besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from net2net import plan_fields
from net2net.dynamics import GrownAxis
from net2net.mapping import ranks
from net2net.plan_parts import Inventory


@dataclass(frozen=True)
class Normalised:
    """`weight` is divided by its norm over all of its axes but `dim`, and multiplied by `gain`."""

    weight: str
    gain: str
    dim: int

    @property
    def mended(self) -> str:
        """What changes beside moving."""
        return self.gain

    @property
    def needed(self) -> tuple[str, ...]:
        """The grown tensors that it takes."""
        return self.weight, self.gain

    def mend(self, tensors: Mapping[str, Tensor], axes: Sequence[GrownAxis]) -> None:
        """Changes the student's `tensors`; `axes` are those of the weight on which units have got replicas."""
        wide, gain = tensors[self.weight], tensors[self.gain]
        if wide.is_meta:
            return
        before, after = (_norm(v, self.dim) for v in (_folded(wide, axes), wide))
        for axis in axes:
            if axis.dim == self.dim:
                before = before[axis.index.to(before.device)]
        ratio = torch.where(before > 0, after / before, 1.0)
        shape = [-1 if d == self.dim else 1 for d in range(gain.dim())]
        gain.copy_(gain.double() * ratio.view(shape))


@dataclass(frozen=True)
class Standardised:
    """The rows of `weight` are made to have the mean 0 and the variance 1, over all of its axes but the first."""

    weight: str
    #: The variance is the sum of squares divided by so many less than there are.
    correction: int

    @property
    def mended(self) -> str:
        return self.weight

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.weight,)

    def mend(self, tensors: Mapping[str, Tensor], axes: Sequence[GrownAxis]) -> None:
        inputs = next((axis for axis in axes if axis.dim == 1), None)
        wide = tensors[self.weight]
        if inputs is None or wide.is_meta:
            return
        old = _folded(wide, [inputs])
        rest = tuple(range(1, wide.dim()))
        mean = old.mean(rest, keepdim=True)
        index = inputs.index.to(wide.device)
        apart = old - mean
        squares = apart.square().flatten(2).sum(2) if wide.dim() > 2 else apart.square()  # [rows, inputs]
        replicas = torch.bincount(index, minlength=old.shape[1]).to(torch.float64)
        entries = old[0].numel(), wide[0].numel()
        if entries[0] <= self.correction:  # there is no variance
            return
        wanted = (entries[1] - self.correction) / (entries[0] - self.correction)
        missing = wanted * squares.sum(1) - (squares / replicas).sum(1)
        several = (squares * (replicas > 1)).sum(1)
        flat = several <= _FLAT * squares.sum(1)
        size = torch.where(flat, 0.0, missing / several).clamp(min=0).sqrt()
        spread = _apart(index, replicas)
        share = 1 / replicas[index] + size[:, None] * spread
        made = apart.index_select(1, index).mul_(share.view(*share.shape, *[1] * (wide.dim() - 2))).add_(mean)
        # Rows in which all that gets replicas is at the mean: there is nothing to scale, so something is added.
        places = entries[0] // old.shape[1] * int((replicas > 1).sum())
        added = torch.where(flat, missing.clamp(min=0) / places, 0.0).sqrt()[:, None] * spread
        wide.copy_(made.add_(added.view(*added.shape, *[1] * (wide.dim() - 2))))


#: If this part of a row's variance, or less, is that of what gets replicas, there is too little to scale.
_FLAT = 1e-12

Computed = Normalised | Standardised


def _norm(v: Tensor, dim: int) -> Tensor:
    """[n]: float64, of each position of an axis."""
    rest = [d for d in range(v.dim()) if d != dim]
    return torch.linalg.vector_norm(v, dim=rest, dtype=torch.float64)


def _folded(wide: Tensor, axes: Sequence[GrownAxis]) -> Tensor:
    """The teacher's weight, float64, from the student's: where weights are divided among replicas, their sum; elsewhere
    the first of them."""
    folded = wide.double()
    for axis in axes:
        index = axis.index.to(wide.device)
        shape = list(folded.shape)
        shape[axis.dim] = int(axis.index.max()) + 1
        if axis.split:
            folded = folded.new_zeros(shape).index_add_(axis.dim, index, folded)
        else:
            first = np.unique(axis.index.numpy(), return_index=True)[1]
            folded = folded.index_select(axis.dim, torch.from_numpy(first).to(wide.device))
    return folded


def _apart(index: Tensor, replicas: Tensor) -> Tensor:
    """u_ij of above: evenly spaced, so that no two replicas of a unit are alike."""
    count = replicas[index]
    rank = torch.from_numpy(ranks(index.cpu().numpy())).to(index.device)
    return (2 * rank - (count - 1)) * (3 / (count * (count.square() - 1)).clamp(min=1)).sqrt() * (count > 1)


def to_json(computed: Sequence[Computed]) -> list[dict[str, object]]:
    return [{"kind": type(c).__name__.lower(), **vars(c)} for c in computed]


def from_json(given: Sequence[Mapping[str, object]], inventory: Inventory) -> list[Computed]:
    """ValueError, or another error of damage, for what `to_json` has not made."""
    found: list[Computed] = []
    for item in given:
        weight = plan_fields.text("weight of computed", item["weight"])
        shape = inventory.shape(weight)
        what = f"of the weight computed from {weight}"
        if item["kind"] == "normalised":
            gain = plan_fields.text(f"gain {what}", item["gain"])
            dim = plan_fields.whole(f"dim {what}", item["dim"], 0, len(shape) - 1)
            if inventory.shape(gain) != tuple(n if d == dim else 1 for d, n in enumerate(shape)):
                raise ValueError(f"the gain {what} has the shape {inventory.shape(gain)}")
            found.append(Normalised(weight, gain, dim))
        elif item["kind"] == "standardised":
            correction = plan_fields.whole(f"correction {what}", item["correction"], 0)
            found.append(Standardised(weight, correction))
        else:
            raise ValueError(f"the kind {what} (={item['kind']!r}) is not known")
    return found
