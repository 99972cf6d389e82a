"""importance: how much each unit of a layer does, so that those that do most can be replicated."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from net2net.groups import Structure
from net2net.running import Inputs, call
from net2net.skeleton import aside, in_mode, own_random_state


def activations(model: nn.Module, inputs: Inputs) -> dict[str, np.ndarray]:
    """Layer -> float64 [units]: the mean magnitude of each output channel (or feature) of the model's convolutions and
    linear layers on `inputs`, in eval mode. `model` is not touched."""
    copy = in_mode(aside(model), False)
    found: dict[str, list[np.ndarray]] = {}
    for name, module in copy.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):

            def keep(module: nn.Module, _args: Any, out: Tensor, name: str = name) -> None:
                channel = out.dim() - (module.weight.dim() - 2) - 1 if isinstance(module, _ConvNd) else out.dim() - 1
                others = [d for d in range(out.dim()) if d != channel]
                size = out.detach().double().abs()
                found.setdefault(name, []).append((size.mean(others) if others else size).cpu().numpy())

            module.register_forward_hook(keep)
    with torch.no_grad(), own_random_state(copy):
        call(copy, inputs)
    return {name: np.mean(several, axis=0) for name, several in found.items()}


def gradients(model: nn.Module, _inputs: Inputs) -> dict[str, np.ndarray]:
    """Layer -> float64 [units]: the norm of the gradient of each output channel's (or feature's) weights, as `backward`
    has left it in the model's convolutions and linear layers.

    Raises:
        ValueError: if there is none.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd | nn.Linear) and (gradient := module.weight.grad) is not None:
            squares = gradient.detach().double().square()
            if isinstance(module, _ConvTransposeNd):  # [groups * inputs, outputs of a group, ...]
                norms = squares.unflatten(0, (module.groups, -1)).flatten(3).sum((1, 3)).flatten()
            else:
                norms = squares.flatten(1).sum(1)
            found[name] = norms.sqrt().cpu().numpy()
    if not found:
        raise ValueError("mapping (='gradient') needs gradients: call backward on the model first")
    return found


#: What decides which units are replicated first.
IMPORTANCE = {"importance": activations, "gradient": gradients}


def scores(found: Structure, layers: dict[str, np.ndarray]) -> np.ndarray:
    """float64, indexed by root: the sum of what its positions do, in all layers that make it."""
    total = np.zeros(1 + max((int(roots.max(initial=0)) for roots in found.root_of.values()), default=0))
    for group in found.groups:
        for layer, axis in zip(group.layers, group.axes, strict=False):
            roots = found.root_of[axis]
            if layer in layers and len(layers[layer]) == len(roots):
                np.add.at(total, roots, layers[layer])
    return total
