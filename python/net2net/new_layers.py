"""new_layers: the layers that deepening inserts, and what they hold so that the function stays.

- `identity`: a convolution with an identity kernel, batch normalisation that is undone, an idempotent activation (Chen
  et al., ICLR 2016, section 2.4);
- `paired`: x = 1/kappa [Q^-1, -Q^-1] phi([Q; -Q] x), for an invertible matrix Q and phi(x) - phi(-x) = kappa x (DESIGN,
  section 2.5);
- `maxout`: an identity kernel with each row several times, and the largest of them.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from n2n_kernels import identity_
from net2net import plan_fields
from net2net.activations import Activation
from net2net.modules import Maxout

CONVOLUTIONS: dict[int, type[_ConvNd]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, type[_BatchNorm]] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

FACTORS = ("orthogonal", "identity")


@dataclass(frozen=True)
class Insertion:
    """New layers at one place.

    Attributes:
        module: the module that is wrapped together with the new layers.
        method: `"identity"` and `"maxout"` stand behind the module, `"paired"` before it.
        activation: of the new layers; None for maxout.
        channels: of the place.
        kernel_sizes: per new layer, of its first convolution; `()` for linear layers.
        layer: the convolution or linear layer at the place, whose optimizer options the new layers take.
        leading: of identity layers: True where the activation stands before the new convolution (the wrapped module's
            output is the input of the existing activation), False where it stands behind (it is its output).
        groups: of the new convolutions.
        norm: the batch normalisation whose settings the new ones take; None: the new layers have none.
        eps, momentum: of that normalisation.
        mean, var: per new layer, the statistics that its normalisation undoes, one per channel that it normalises;
            None: 0 and 1.
        factor: of paired layers: Q is a random orthogonal matrix, or the identity.
        seed: of Q.
        pieces: of maxout.
    """

    module: str
    method: str
    activation: Activation | None
    channels: int
    kernel_sizes: list[tuple[int, ...]]
    layer: str
    leading: bool = False
    groups: int = 1
    norm: str | None = None
    eps: float = 1e-5
    momentum: float | None = 0.1
    mean: list[list[float]] | None = None
    var: list[list[float]] | None = None
    factor: str = "orthogonal"
    seed: int = 0
    pieces: int = 2

    @property
    def before(self) -> bool:
        return self.method == "paired"

    @property
    def normed(self) -> int:
        """The channels that each new normalisation has."""
        return 2 * self.channels if self.method == "paired" else self.channels

    def check(self) -> None:
        """ValueError if these are not layers that keep the function: for what comes from a file."""
        needs = {"identity": "idempotent", "paired": "kappa", "maxout": None}
        plan_fields.name("module of insertions", self.module)
        plan_fields.name(f"layer of {self.module}", self.layer)
        if plan_fields.text(f"method of {self.module}", self.method) not in needs:
            raise ValueError(f"method (={self.method!r}) of {self.module} must be one of {', '.join(map(repr, needs))}")
        need = needs[self.method]
        if need is not None and not getattr(self.activation, need, None):
            raise ValueError(f"the activation of {self.module} is not one for {self.method} layers")
        if self.factor not in FACTORS:
            known = ", ".join(map(repr, FACTORS))
            raise ValueError(f"factor (={self.factor!r}) of {self.module} must be one of {known}")
        for what in ("channels", "groups", "pieces"):
            plan_fields.whole(f"{what} of {self.module}", getattr(self, what), 1)
        plan_fields.whole(f"seed of {self.module}", self.seed)
        plan_fields.flag(f"leading of {self.module}", self.leading)
        if self.channels % self.groups:
            raise ValueError(f"{self.module} cannot have {self.channels} channels in {self.groups} groups")
        self._check_sizes()
        self._check_norm()

    def _check_sizes(self) -> None:
        if not self.kernel_sizes:
            raise ValueError(f"kernel_sizes of {self.module} names no layers")
        if any(len(size) > max(CONVOLUTIONS) for size in self.kernel_sizes):
            raise ValueError(f"kernel sizes of {self.module} have more than {max(CONVOLUTIONS)} dimensions")
        if any(k < 1 or k % 2 == 0 for size in self.kernel_sizes for k in size):
            raise ValueError(f"kernel sizes of {self.module} must be odd and positive")
        if self.groups > 1 and () in self.kernel_sizes:
            raise ValueError(f"groups (={self.groups}) of {self.module}: linear layers have none")

    def _check_norm(self) -> None:
        if self.norm is not None:
            plan_fields.text(f"norm of {self.module}", self.norm)
        plan_fields.number(f"eps of {self.module}", self.eps, 0)
        if self.momentum is not None:
            plan_fields.number(f"momentum of {self.module}", self.momentum, 0, 1)
        for what, moments in (("mean", self.mean), ("var", self.var)):
            for values in moments or []:
                if len(values) != self.normed:
                    raise ValueError(f"{what} of {self.module} has {len(values)} entries, not {self.normed}")
                for value in values:
                    if what == "mean":
                        plan_fields.number(f"mean of {self.module}", value)
                    elif plan_fields.number(f"var of {self.module}", value, 0) + self.eps == 0:
                        raise ValueError(f"var of {self.module} is 0, and so is eps: there is nothing to divide by")
            if moments is not None and len(moments) != len(self.kernel_sizes):
                raise ValueError(f"{what} of {self.module} is of {len(moments)} layers, not {len(self.kernel_sizes)}")

    def numbers(self) -> int:
        """So many the weights of the new layers have, or somewhat more."""
        rows = self.channels * {"paired": 2, "maxout": self.pieces}.get(self.method, 1)
        kernels = sum(math.prod(size) + self.before for size in self.kernel_sizes)
        return rows * (self.channels // self.groups) * kernels

    def names(self) -> list[str]:
        """The names of the new layers beside the wrapped module (one `nn.Sequential` each)."""
        return [f"grown{i}" for i in range(len(self.kernel_sizes))]


def build(insertion: Insertion, example: Tensor) -> dict[str, nn.Sequential]:
    """The new layers by name, of the dtype and on the device of `example`; `fill` has still to be called."""
    place = {"dtype": example.dtype, "device": example.device}
    return {name: _layer(insertion, i, place) for i, name in enumerate(insertion.names())}


def tensors(insertion: Insertion, i: int, name: str, example: Tensor) -> dict[str, Tensor]:
    """The state dict of the i-th new layer, which is called `name`, of the dtype and on the device of `example`; on the
    meta device without values."""
    layer = _layer(insertion, i, {"dtype": example.dtype, "device": example.device})
    if not example.is_meta:
        fill([(insertion, i, layer)])
    return {f"{name}.{key}": t for key, t in layer.state_dict().items()}


def fill(layers: Iterable[tuple[Insertion, int, nn.Module]]) -> None:
    """Gives the new layers (each the i-th one of its insertion) their values. Identity kernels are written in one
    launch per number of groups."""
    identities: dict[int, list[Tensor]] = {}
    for insertion, i, layer in layers:
        parts = dict(layer.named_children())
        if insertion.method == "paired":
            _factorise(insertion, i, parts["expand"], parts["contract"])
        elif insertion.method == "maxout":
            _replicate(insertion, parts)
        else:
            weight = cast(Tensor, parts["conv" if "conv" in parts else "linear"].weight)
            identities.setdefault(insertion.groups, []).append(weight)
        _fill_vectors(insertion, i, layer)
    for groups, weights in identities.items():
        identity_(weights, groups=groups)


def vectors(insertion: Insertion, i: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of the i-th new layer but its weights, by name, on the CPU."""
    layer = _layer(insertion, i, {"dtype": dtype, "device": torch.device("cpu")})  # nothing touches its weights' memory
    _fill_vectors(insertion, i, layer)
    tensors = [*layer.named_parameters(), *layer.named_buffers()]
    return {name: t.detach() for name, t in tensors if t.dim() < 2}


def identity_columns(insertion: Insertion) -> Tensor:
    """int64: for each row of the weight of an identity or maxout layer the column of its one."""
    pieces = insertion.pieces if insertion.method == "maxout" else 1
    rows = torch.arange(insertion.channels).repeat_interleave(pieces)
    return rows % (insertion.channels // insertion.groups)


def expansion(insertion: Insertion, i: int, example: Tensor) -> nn.Module:
    """The first part of a paired layer, by itself: what its normalisation will see."""
    layer = _layer(insertion, i, {"dtype": example.dtype, "device": example.device})
    fill([(insertion, i, layer)])
    return layer.get_submodule("expand")


def _layer(insertion: Insertion, i: int, place: dict[str, Any]) -> nn.Sequential:
    c, size = insertion.channels, insertion.kernel_sizes[i]
    dims, point = len(size), (1,) * len(size)

    def affine(units: int, width: int, size: tuple[int, ...], bias: bool) -> nn.Module:
        # `skip_init`: all values are written afterwards.
        if not dims:
            return nn.utils.skip_init(nn.Linear, units, width, bias=bias, **place)
        padding = tuple(k // 2 for k in size)
        return nn.utils.skip_init(
            CONVOLUTIONS[dims], units, width, size, padding=padding, groups=insertion.groups, bias=bias, **place
        )

    bias = insertion.norm is None
    parts: dict[str, nn.Module] = {}
    kind = "conv" if dims else "linear"
    if insertion.method == "maxout":
        parts[kind] = affine(c, c * insertion.pieces, size, True)
        parts["act"] = Maxout(insertion.pieces, 1 if dims else -1)
        return nn.Sequential(OrderedDict(parts))
    assert insertion.activation is not None
    activation = insertion.activation.make().to(**place)
    norm = {} if bias else {"norm": _norm(insertion, NORMS[dims], place)}
    if insertion.method == "paired":
        parts = {"expand": affine(c, 2 * c, size, bias), **norm, "act": activation}
        parts["contract"] = affine(2 * c, c, point, False)
    elif insertion.leading:
        parts = {"act": activation, kind: affine(c, c, size, bias), **norm}
    else:
        parts = {kind: affine(c, c, size, bias), **norm, "act": activation}
    return nn.Sequential(OrderedDict(parts))


def _norm(insertion: Insertion, kind: type[_BatchNorm], place: dict[str, Any]) -> _BatchNorm:
    return kind(insertion.normed, eps=insertion.eps, momentum=insertion.momentum, **place)


def _fill_vectors(insertion: Insertion, i: int, layer: nn.Module) -> None:
    parts = dict(layer.named_children())
    if "norm" in parts:
        _undo(insertion, i, cast(_BatchNorm, parts["norm"]))
    for name, p in layer.named_parameters():
        if name.endswith(".bias") and not name.startswith("norm."):
            p.detach().zero_()


def _undo(insertion: Insertion, i: int, norm: _BatchNorm) -> None:
    """Makes batch normalisation the identity: weight sqrt(var + eps), bias mean (DESIGN, section 2.3).

    In eval mode that holds for any statistics; in train mode for those of the data.
    """
    n = insertion.normed
    # In double, then rounded once: a float32 square root of float32 statistics would cost float64 models their
    # exactness.
    mean = torch.tensor(insertion.mean[i] if insertion.mean else [0.0] * n, dtype=torch.float64)
    var = torch.tensor(insertion.var[i] if insertion.var else [1.0] * n, dtype=torch.float64)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    if norm.running_var.is_meta:
        return
    norm.weight.data.copy_((norm.running_var.double().cpu() + insertion.eps).sqrt())
    norm.bias.data.copy_(norm.running_mean)


def _factorise(insertion: Insertion, i: int, expand: nn.Module, contract: nn.Module) -> None:
    """[Q; -Q] into the middle of `expand`, [Q^-1, -Q^-1] / kappa into `contract`, for each group."""
    first, last = cast(Tensor, expand.weight).detach(), cast(Tensor, contract.weight).detach()
    if first.is_meta:
        return
    factor, inverse = factors(insertion, i, first.dtype)
    middle_of(first.zero_()).copy_(factor)
    middle_of(last).copy_(inverse)


def middle_of(weight: Tensor) -> Tensor:
    """The matrix at the middle of a kernel: a view."""
    for k in weight.shape[2:]:
        weight = weight.select(2, k // 2)
    return weight


def factors(insertion: Insertion, i: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """float64 matrices: [Q; -Q] and [Q^-1, -Q^-1] / kappa of each group, one below the other."""
    assert insertion.activation is not None
    assert insertion.activation.kappa is not None
    # Q is rounded to the layer's dtype first, and the rounded one inverted: so only the inverse's rounding is left.
    q = _factors(insertion, i, insertion.groups, insertion.channels // insertion.groups).to(dtype).double()
    inverse = torch.linalg.inv(q) / insertion.activation.kappa
    return torch.cat([q, -q], 1).flatten(0, 1), torch.cat([inverse, -inverse], 2).flatten(0, 1)


def _factors(insertion: Insertion, i: int, groups: int, c: int) -> Tensor:
    """float64 [groups, c, c]: for each group an orthogonal matrix, uniformly distributed (Mezzadri, 2007)."""
    if insertion.factor == "identity":
        return torch.eye(c, dtype=torch.float64).expand(groups, c, c)
    # A seed of each layer's own, which neither the order of the layers nor their number changes.
    digest = hashlib.sha256(f"{insertion.seed}/{insertion.module}/{i}".encode()).digest()
    rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    q, r = torch.linalg.qr(torch.randn(groups, c, c, dtype=torch.float64, generator=rng))
    return q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)


def _replicate(insertion: Insertion, parts: dict[str, nn.Module]) -> None:
    weight = cast(Tensor, parts["conv" if "conv" in parts else "linear"].weight).detach()
    once = torch.empty((insertion.channels, *weight.shape[1:]), dtype=weight.dtype, device=weight.device)
    identity_([once], groups=insertion.groups)
    weight.copy_(once.repeat_interleave(insertion.pieces, 0))
