"""This package's ways of doing a case, on each backend: what is measured.

A contender is a generator of calls, one per set of tensors: what comes before its first call (a plan, a capture) is its
preparation.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from graphs import replay
from inputs import GrowthInputs, Inputs

import n2n_kernels as nk
from n2n_kernels.backends import triton_interpreted

Call = Callable[[], Any]
Contender = Callable[[Any], Iterator[Call]]

#: The reference is the definition, and no contender.
BACKENDS = ("cuda", "triton", "cpu")


def unusable(backend: str, device: torch.device) -> str | None:
    """Why `backend` is not measured on `device`; None if it is."""
    if (reason := nk.backends()[backend]) is not None:
        return reason
    if backend == "triton" and triton_interpreted():
        return "interpreted, which says nothing of its speed"
    if (backend == "cpu") != (device.type == "cpu"):
        return f"the tensors are on {device.type}"
    return None


def gather_scale(backend: str, device: torch.device) -> dict[str, Contender]:
    """Three calls that leave out more and more, and the last as a CUDA graph.

    `first` has nothing prepared; `plan` has maps and scales checked and on the device; `run` has its outputs and
    addresses there too, so it is the launch alone.
    """
    contenders: dict[str, Contender] = {
        "first": partial(_first, backend),
        "plan": partial(_plan, backend),
        "run": partial(_run, backend),
    }
    if device.type == "cuda":
        contenders["graph"] = partial(_graph, backend)
    return contenders


def _noise(inputs: GrowthInputs) -> dict[str, Any]:
    return {"noise_std": 0.01 if inputs.growth.noise else 0.0, "seed": 0}


def _what(inputs: GrowthInputs) -> dict[str, Any]:
    scales = {"out_scales": inputs.out_scales, "in_scales": inputs.in_scales}
    return {**scales, "noise": inputs.growth.noise or "replicas"}


def _first(backend: str, inputs: GrowthInputs) -> Iterator[Call]:
    how = {**_what(inputs), **_noise(inputs), "backend": backend}
    for srcs in inputs.sets:
        yield partial(nk.gather_scale, srcs, inputs.out_maps, inputs.in_maps, **how)


def _prepared(backend: str, inputs: GrowthInputs) -> nk.GatherScalePlan:
    return nk.GatherScalePlan(inputs.sets[0], inputs.out_maps, inputs.in_maps, **_what(inputs), backend=backend)


def _plan(backend: str, inputs: GrowthInputs) -> Iterator[Call]:
    plan = _prepared(backend, inputs)
    for srcs in inputs.sets:
        yield partial(plan, srcs, **_noise(inputs))


def _run(backend: str, inputs: GrowthInputs) -> Iterator[Call]:
    plan = _prepared(backend, inputs)
    for srcs in inputs.sets:
        yield plan.bind(srcs, **_noise(inputs)).run


def _graph(backend: str, inputs: GrowthInputs) -> Iterator[Call]:
    yield from map(replay, _run(backend, inputs))


def identity(backend: str, device: torch.device) -> dict[str, Contender]:
    def calls(inputs: Inputs) -> Iterator[Call]:
        for tensors in inputs.sets:
            yield partial(nk.identity_, tensors, backend=backend)

    return {"call": calls}


def channel_moments(backend: str, device: torch.device) -> dict[str, Contender]:
    def calls(inputs: Inputs) -> Iterator[Call]:
        for (x,) in inputs.sets:
            yield partial(nk.channel_moments, x, backend=backend)

    return {"call": calls}


OURS = {"gather_scale": gather_scale, "identity_": identity, "channel_moments": channel_moments}
