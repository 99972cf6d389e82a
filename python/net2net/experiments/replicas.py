"""How far a unit's replicas have come apart, in the course of a student's training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from net2net.training import State
from net2net.training.evaluation import eval_mode
from net2net.widen_plan import WidenPlan

NOTE = "replicas"


class ReplicaDistance:
    """Measures a student between two steps, into `state.notes["replicas"]`: lists `step`, `weights` and `outputs`.

    For every further replica of a unit the distance from the first one, relative to the root mean square of both's
    norms: 0 for equal ones, 1 where they differ by as much as they are large, sqrt(2) for unrelated ones. Of `weights`
    it is between the replicas' incoming weights, of `outputs` between what they make of `images` in eval mode, less its
    mean, which a normalisation would take away. What is listed is the mean over all replicas of all layers.

    Args:
        plan: by which the student was widened.
        images: float32 `[N, C, H, W]`.
        every: measure at multiples of so many steps, and after `last`.
    """

    def __init__(self, plan: WidenPlan, images: Tensor, every: int, last: int) -> None:
        self.pairs = {
            name.removesuffix(".weight"): pairs
            for (name, dim), axis in plan.axes.items()
            if dim == 0 and not axis.split and len(plan.shapes[name]) > 1 and len(pairs := further_replicas(axis.index))
        }
        if not self.pairs:
            raise ValueError("plan has no unit with replicas")
        self.images = images
        self.every = every
        self.last = last

    def __call__(self, state: State) -> None:
        if state.step % self.every and state.step != self.last:
            return
        found: dict[str, list[Any]] = state.notes.setdefault(NOTE, {"step": [], "weights": [], "outputs": []})
        found["step"].append(state.step)
        for name, value in self.measure(state.model).items():
            found[name].append(value)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """`weights` and `outputs`, now."""
        layers = {name: model.get_submodule(name) for name in self.pairs}
        weights, outputs = [], []
        for name, layer in layers.items():
            assert isinstance(layer.weight, Tensor)
            weights.append(distances(layer.weight.flatten(1), self.pairs[name]))

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, out: Tensor) -> None:
                units = out.transpose(0, 1).flatten(1)
                outputs.append(distances(units - units.mean(1, keepdim=True), self.pairs[name]))

            return hook

        handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
        try:
            with eval_mode(model):
                model(self.images)
        finally:
            for handle in handles:
                handle.remove()
        return {"weights": torch.cat(weights).mean().item(), "outputs": torch.cat(outputs).mean().item()}


def further_replicas(index: np.ndarray) -> Tensor:
    """int64 `[n, 2]`: every position of a map whose unit has occurred before, and where that was first."""
    _, first, unit = np.unique(index, return_index=True, return_inverse=True)
    positions = np.arange(len(index))
    further = positions[first[unit] != positions]
    return torch.from_numpy(np.stack([further, first[unit][further]], axis=1))


def distances(units: Tensor, pairs: Tensor) -> Tensor:
    """float64 `[n]`: of each pair of rows of `units` `[U, K]` the distance, as `ReplicaDistance` says."""
    rows = units.double()
    a, b = rows[pairs[:, 0].to(rows.device)], rows[pairs[:, 1].to(rows.device)]
    size = ((a.square().sum(1) + b.square().sum(1)) / 2).sqrt()
    apart = (a - b).norm(dim=1)
    return torch.where(apart == 0, 0.0, apart / size)
