"""DeepenPlan: a deepening step as data, and the layers that it makes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from n2n_kernels import identity_
from net2net.launches import Entry, Law
from net2net.plan import GrowthPlan, Inventory, Skipped

CONVOLUTIONS: dict[int, type[_ConvNd]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, type[_BatchNorm]] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

#: The wrapped module's name within the module that takes its place.
LAYER = "layer"


@dataclass(frozen=True)
class Insertion:
    """Identity layers at one site.

    Attributes:
        module: the module that is wrapped, with the new layers behind it.
        leading: True where the activation stands before each new layer (the wrapped module's output is the input of the
            existing activation), False where it stands behind (it is its output).
        activation: class name and arguments of the activation, of `torch.nn`.
        channels: of the site.
        kernel_sizes: per new layer; `()` for a linear layer.
        layer: the convolution or linear layer before the site, whose optimizer options the new layers take.
        norm: the batch normalisation before the site whose settings the new ones take; None: the new layers have none.
        eps, momentum: of that normalisation.
        mean, var: statistics of the site, which the new normalisations undo; None: 0 and 1.
    """

    module: str
    leading: bool
    activation: tuple[str, dict[str, Any]]
    channels: int
    kernel_sizes: list[tuple[int, ...]]
    layer: str
    norm: str | None = None
    eps: float = 1e-5
    momentum: float | None = 0.1
    mean: list[float] | None = None
    var: list[float] | None = None

    def names(self) -> list[str]:
        """The names of the new layers in the student (one module each: the layer, its norm, its activation)."""
        return [f"grown{i}" for i in range(len(self.kernel_sizes))]


class DeepenPlan(GrowthPlan):
    """A deepening step.

    Attributes:
        insertions: the sites, and what is inserted there.
        inserted: names, in the student, of the new layers: modules with `conv` or `linear`, perhaps `norm`, and `act`.
    """

    kind = "deepen"

    def __init__(self, inventory: Inventory, skipped: list[Skipped], insertions: list[Insertion]) -> None:
        super().__init__(inventory, skipped)
        self.insertions = insertions
        self._wrapped = {i.module for i in insertions}

    @property
    def inserted(self) -> list[str]:
        return [f"{self._renamed(i.module, own=True)}.{name}" for i in self.insertions for name in i.names()]

    def summary(self) -> str:
        layers = sum(len(i.kernel_sizes) for i in self.insertions)
        lines = [f"deepen: {layers} new layers at {len(self.insertions)} places"]
        width = max([len(i.module) for i in self.insertions], default=0)
        for i in self.insertions:
            kernels = ", ".join("x".join(map(str, k)) if k else "linear" for k in i.kernel_sizes)
            exact = "" if i.norm is None else ", eval" if i.mean is None else ", eval and train"
            lines.append(f"  {i.module:<{width}}  {i.channels:>5} channels: {kernels}{exact}")
        lines += [f"  left alone: {s}" for s in self.skipped]
        return "\n".join(lines)

    def student_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def _law(self, entry: Entry) -> Law:
        return Law()

    def _finish(self, student: nn.Module) -> None:
        new: dict[str, nn.Module] = {}
        examples = {i.module: cast(Tensor, student.get_submodule(i.layer).weight) for i in self.insertions}
        # Inner modules first, so that a wrapped module may stand within another one.
        for insertion in sorted(self.insertions, key=lambda i: i.module.count("."), reverse=True):
            parent, _, child = insertion.module.rpartition(".")
            owner = student.get_submodule(parent)
            wrapped = getattr(owner, child)
            example = examples[insertion.module]
            layers = {
                name: _layer(insertion, k, example)
                for name, k in zip(insertion.names(), insertion.kernel_sizes, strict=True)
            }
            new.update({f"{insertion.module}.{name}": m for name, m in layers.items()})
            box = nn.Sequential(OrderedDict({LAYER: wrapped, **layers}))
            box.training = wrapped.training
            for layer in layers.values():
                layer.train(wrapped.training)
            setattr(owner, child, box)
        identity_([_weight_of(layer) for layer in new.values()])

    def _renamed(self, name: str, own: bool = False) -> str:
        """A teacher name in the student; `own`: the name of the module that takes a wrapped module's place."""
        parts = name.split(".")
        renamed = []
        for depth, part in enumerate(parts, 1):
            renamed.append(part)
            if ".".join(parts[:depth]) in self._wrapped and not (own and depth == len(parts)):
                renamed.append(LAYER)
        return ".".join(renamed)

    def _new_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        new = {}
        for insertion in self.insertions:
            box = self._renamed(insertion.module, own=True)
            # A computed weight (weight normalisation) is not in a state dict; any tensor tells dtype and device then.
            example = tensors.get(f"{insertion.layer}.weight", next(iter(tensors.values())))
            layers = [_layer(insertion, k, example) for k in insertion.kernel_sizes]
            identity_([_weight_of(layer) for layer in layers])
            for name, layer in zip(insertion.names(), layers, strict=True):
                new.update({f"{box}.{name}.{key}": t for key, t in layer.state_dict().items()})
        return new

    def _neighbours(self) -> dict[str, list[str]]:
        near = {}
        for insertion in self.insertions:
            box = self._renamed(insertion.module, own=True)
            kind = "linear" if insertion.kernel_sizes[0] == () else "conv"
            for name in insertion.names():
                # Of the same kind if there is one, else the layer's weight: no new parameter may be left untrained.
                for part, old in ((kind, insertion.layer), ("norm", insertion.norm)):
                    for key in ("weight", "bias"):
                        kin = [f"{old}.{key}", f"{old}.weight", f"{insertion.layer}.weight"]
                        near[f"{box}.{name}.{part}.{key}"] = kin
        return near

    def _body(self) -> dict[str, Any]:
        return {"insertions": [asdict(i) for i in self.insertions]}

    @classmethod
    def _from_body(cls, body: dict[str, Any], inventory: Inventory, skipped: list[Skipped]) -> DeepenPlan:
        insertions = []
        for given in body["insertions"]:
            fields = dict(given)
            fields["kernel_sizes"] = [tuple(int(n) for n in k) for k in given["kernel_sizes"]]
            name, arguments = given["activation"]
            if name not in {"ReLU", "ReLU6", "Hardtanh"}:
                raise ValueError(f"activation {name!r} of {given['module']} is not one that a plan may hold")
            fields["activation"] = (name, arguments)
            insertion = Insertion(**fields)
            for what in ("mean", "var"):
                values = getattr(insertion, what)
                if values is not None and len(values) != insertion.channels:
                    raise ValueError(
                        f"{what} of {insertion.module} has {len(values)} entries, not {insertion.channels}"
                    )
            insertions.append(insertion)
        return cls(inventory, skipped, insertions)


def _layer(insertion: Insertion, kernel_size: tuple[int, ...], example: Tensor) -> nn.Sequential:
    """One new layer, its normalisation undone, its weight not yet the identity."""
    place = {"dtype": example.dtype, "device": example.device}
    c = insertion.channels
    dims = len(kernel_size)
    bias = insertion.norm is None
    parts: dict[str, nn.Module] = {}
    # `skip_init` leaves the weight to identity_, which fills those of all layers at once.
    if dims:
        padding = tuple(k // 2 for k in kernel_size)
        parts["conv"] = nn.utils.skip_init(CONVOLUTIONS[dims], c, c, kernel_size, padding=padding, bias=bias, **place)
    else:
        parts["linear"] = nn.utils.skip_init(nn.Linear, c, c, bias=bias, **place)
    if bias:
        cast(Tensor, next(iter(parts.values())).bias).zero_()
    else:
        parts["norm"] = _undone_norm(insertion, NORMS[dims], place)
    name, arguments = insertion.activation
    activation = getattr(nn, name)(**arguments)
    if insertion.leading:
        return nn.Sequential(OrderedDict({"act": activation, **parts}))
    return nn.Sequential(OrderedDict({**parts, "act": activation}))


def _undone_norm(insertion: Insertion, kind: type[_BatchNorm], place: dict[str, Any]) -> _BatchNorm:
    """Batch normalisation that is the identity: weight sqrt(var + eps), bias mean (DESIGN, section 2.3).

    In eval mode that holds for any statistics; in train mode for those of the data.
    """
    norm = kind(insertion.channels, eps=insertion.eps, momentum=insertion.momentum, **place)
    # In double, then rounded once: a float32 square root of float32 statistics would cost float64 models their
    # exactness.
    c = insertion.channels
    mean = torch.tensor(insertion.mean or [0.0] * c, dtype=torch.float64)
    var = torch.tensor(insertion.var or [1.0] * c, dtype=torch.float64)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    norm.weight.data.copy_((norm.running_var.double().cpu() + insertion.eps).sqrt())
    norm.bias.data.copy_(norm.running_mean)
    return norm


def _weight_of(layer: nn.Module) -> Tensor:
    return layer.get_parameter("conv.weight" if hasattr(layer, "conv") else "linear.weight")
