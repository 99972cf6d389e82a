"""moments: the batch statistics that inserted normalisations must undo, taken on training data."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from n2n_kernels import channel_moments
from net2net.new_layers import Insertion, expansion
from net2net.running import Inputs, call
from net2net.skeleton import in_mode, own_random_state


class _Pooled:
    """Mean and biased variance over several batches, merged as they come (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())  # sum of squared differences to the mean

    def add(self, x: Tensor, dim: int) -> None:
        n = x.numel() // x.shape[dim]
        mean, var = (m.double() for m in channel_moments(x, dim=dim))
        total = self.count + n
        delta = mean - self.mean.to(mean)
        self.squares = self.squares.to(mean) + var * n + delta.square() * (self.count * n / total)
        self.mean = self.mean.to(mean) + delta * (n / total)
        self.count = total


def site_moments(model: nn.Module, insertions: list[Insertion], data: Iterable[Inputs]) -> list[Insertion]:
    """The insertions with the statistics of what their normalisations are given, over all of `data`, with the network
    in train mode, as the new layers will see it.

    One pass over the data serves all places: in train mode too a new layer hands on what it is given, so the layers
    behind it see what they see in the teacher. (That is exact for one batch. Over several, a new layer normalises each
    batch by that batch's own statistics and the pooled ones undo it on average; in eval mode the student is exact all
    the same.)

    A copy of `model` is run, so its own running statistics stay.

    Raises:
        ValueError: if `data` has no batches, or a statistic is not finite.
    """
    normed = [i for i in insertions if i.norm is not None]
    pooled = {i.module: [_Pooled() for _ in i.kernel_sizes] for i in normed}
    runner = in_mode(copy.deepcopy(model), True)
    for insertion in normed:
        _record(runner, insertion, pooled[insertion.module])
    batches = 0
    with torch.no_grad(), own_random_state(runner):
        for batch in data:
            try:
                call(runner, batch)
            except Exception as error:
                raise ValueError(f"data[{batches}] does not run through the model: {error}") from error
            batches += 1
    if batches == 0:
        raise ValueError("data (with no batches) gives no statistics")
    done = []
    for insertion in insertions:
        if insertion.norm is not None:
            pools = pooled[insertion.module]
            mean, var = [p.mean for p in pools], [p.squares / p.count for p in pools]
            if not all(t.isfinite().all() for t in (*mean, *var)):
                raise ValueError(f"data gives statistics that are not finite at {insertion.module}")
            insertion = replace(insertion, mean=[m.tolist() for m in mean], var=[v.tolist() for v in var])
        done.append(insertion)
    return done


def _record(runner: nn.Module, insertion: Insertion, pools: list[_Pooled]) -> None:
    """Takes the moments of what the place's normalisations will be given, whenever `runner` comes by."""
    module = runner.get_submodule(insertion.module)
    if insertion.before:
        weight = cast(Tensor, runner.get_submodule(insertion.layer).weight)
        firsts = [expansion(insertion, i, weight) for i in range(len(pools))]

        def expanded(_m: nn.Module, args: tuple[Tensor, ...]) -> None:
            for pool, first in zip(pools, firsts, strict=True):
                pool.add(first(args[0].detach()), 1)

        module.register_forward_pre_hook(expanded)
        return
    assert insertion.activation is not None
    phi = insertion.activation.make()

    def passed(_m: nn.Module, _args: Any, out: Tensor) -> None:
        # phi of what is phi's output already changes nothing, so one line serves both kinds of place.
        x = phi(out.detach())
        for pool in pools:
            pool.add(x, 1)

    module.register_forward_hook(passed)
