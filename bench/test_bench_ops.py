"""Each op on each backend, and its peers, on the same tensors in the same run."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from cases import Case
from inputs import GrowthInputs, Inputs, inputs_of
from measurements import Measurement
from peers import UnavailableError
from pytest_benchmark.fixture import BenchmarkFixture
from timing import measure
from torch import Tensor

import n2n_kernels as nk


def test_measured(benchmark: BenchmarkFixture, device: torch.device, measurement: Measurement) -> None:
    m = measurement
    info = {"op": m.op, "case": m.subject, "contender": m.contender, "call": m.call, "ours": m.ours}
    info["roofline"] = m.roofline.name
    if m.case is None:
        _inputs.cache_clear()
        read, written = m.roofline.bytes(device)
        measure(benchmark, device, m.calls(device), info | {"read": read, "written": written})
        return
    info |= {"read": m.case.read, "written": m.case.written, "reduced": m.case.reduced}
    inputs = _inputs(m.case, device)
    try:
        measure(benchmark, device, m.calls(inputs), info, CHECKS[m.op](inputs))
    except UnavailableError as reason:
        pytest.skip(str(reason))


@lru_cache(maxsize=1)
def _inputs(case: Case, device: torch.device) -> Inputs:
    """The contenders of a case come one after another."""
    return inputs_of(case, device)


def _grown(inputs: GrowthInputs) -> Callable[[Sequence[Tensor]], None]:
    """The first tensors as one call makes them: whether that is right is for the tests to say."""
    n = min(2, len(inputs.sets[0]))
    noise = {"noise_std": 0.01, "noise": inputs.growth.noise} if inputs.growth.noise else {}
    expected = nk.gather_scale(
        inputs.sets[0][:n], inputs.out_maps[:n], inputs.in_maps[:n],
        out_scales=inputs.out_scales[:n], in_scales=inputs.in_scales[:n], **noise,
    )  # fmt: skip

    def check(students: Sequence[Tensor]) -> None:
        assert len(students) == len(inputs.sets[0])
        for got, wanted in zip(students[:n], expected, strict=True):
            assert torch.equal(got, wanted)

    return check


def _identity(inputs: Inputs) -> Callable[[Any], None]:
    def check(_: Any) -> None:
        for t in inputs.sets[0][:2]:
            assert torch.equal(t, torch.nn.init.dirac_(torch.empty_like(t)))

    return check


def _moments(inputs: Inputs) -> Callable[[tuple[Tensor, Tensor]], None]:
    x = inputs.sets[0][0]

    def check(result: tuple[Tensor, Tensor]) -> None:
        torch.testing.assert_close(result[0].double(), x.mean((0, 2, 3), dtype=torch.float64), rtol=1e-2, atol=1e-3)

    return check


CHECKS = {"gather_scale": _grown, "identity_": _identity, "channel_moments": _moments}
