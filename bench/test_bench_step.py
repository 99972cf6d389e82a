"""The growth step as users call it, on a plan that has been applied before: the time that it takes the host beside the
kernels, and the whole."""

from collections.abc import Callable

import net2net
import pytest
import torch
from net2net import widen_plan
from net2net.models import inception_bn
from pytest_benchmark.fixture import BenchmarkFixture
from timing import measure
from torch import Tensor, nn

from n2n_kernels import native


def deep(layers: int) -> nn.Module:
    """Convolutions with batch normalisation and rectifiers, of few channels."""
    blocks: list[nn.Module] = []
    for i in range(layers):
        blocks += [nn.Conv2d(8 if i else 3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Conv2d(8, 3, 1))


#: Planning is not measured, and takes its time for a deep network.
CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "Inception-BN": (lambda: inception_bn(1000), 224),
    "1000 layers": (lambda: deep(1000), 8),
}


class _NoLaunch:
    """The native module, but that it does not grow anything."""

    def __init__(self) -> None:
        self._module = native.module()

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)

    def gather_scale(self, *_: object) -> None: ...


def without_kernels(patch: pytest.MonkeyPatch) -> None:
    """Leaves what the host does: no launch, no standard deviations. Output is allocated, and not written."""
    if native.missing is not None:
        pytest.skip(f"native: {native.missing}")
    stub = _NoLaunch()
    patch.setattr(native, "module", lambda: stub)

    def ones(tensors: list[Tensor]) -> Tensor:
        return torch.ones(len(tensors), dtype=torch.float64, device=tensors[0].device)

    patch.setattr(widen_plan, "_stds", ones)


def size(model: nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters())


@pytest.fixture(scope="module", params=CASES)
def ready(request: pytest.FixtureRequest) -> tuple[str, nn.Module, net2net.GrowthPlan]:
    name = str(request.param)
    make, side = CASES[name]
    model = make().to("cuda" if torch.cuda.is_available() else "cpu")
    plan = net2net.plan_widen(model, torch.randn(1, 3, side, side, device=next(model.parameters()).device), 1.5)
    plan.apply(model)
    return name, model, plan


@pytest.mark.parametrize("part", ["host", "whole"])
def test_apply(
    benchmark: BenchmarkFixture,
    device: torch.device,
    ready: tuple[str, nn.Module, net2net.GrowthPlan],
    part: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, model, plan = ready
    if part == "host":
        without_kernels(monkeypatch)
    moved = size(model) + size(plan.apply(model))
    measure(benchmark, device, lambda: plan.apply(model), op="apply", case=name, contender=part, bytes=moved)


@pytest.mark.parametrize("part", ["host", "whole"])
def test_grow_optimizer(
    benchmark: BenchmarkFixture,
    device: torch.device,
    ready: tuple[str, nn.Module, net2net.GrowthPlan],
    part: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, model, plan = ready
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    student = plan.apply(model)
    if part == "host":
        without_kernels(monkeypatch)
    measure(
        benchmark, device, lambda: plan.grow_optimizer(optimizer, student), op="grow_optimizer", case=name,
        contender=part, bytes=2 * (size(model) + size(student)),
    )  # fmt: skip


@pytest.mark.parametrize("consume", [False, True], ids=["ordinary", "consume"])
def test_peak_memory(benchmark: BenchmarkFixture, device: torch.device, consume: bool) -> None:
    """The time, and beside it the peak of what was allocated."""
    if device.type != "cuda":
        pytest.skip("only a GPU's allocator counts; tests/test_step.py has the peak of a process on the CPU")

    def make() -> nn.Module:
        hidden = [nn.Linear(4096, 4096, device=device) for _ in range(64)]
        return nn.Sequential(nn.Linear(8, 4096, device=device), *hidden, nn.Linear(4096, 8, device=device))

    plan = net2net.plan_widen(make(), torch.randn(1, 8, device=device), 1.25)
    models: list[nn.Module] = []

    def setup() -> None:
        models[:] = [make()]
        torch.cuda.reset_peak_memory_stats()

    def run() -> None:
        old = size(models[0])
        rest = torch.cuda.memory_allocated() - old
        student = plan.apply(models[0], consume=consume)
        benchmark.extra_info.update(
            bytes=old + size(student), teacher_bytes=old, student_bytes=size(student),
            peak_bytes=torch.cuda.max_memory_allocated() - rest,
        )  # fmt: skip

    benchmark.extra_info.update(op="apply", case="64 x 4096x4096 fp32", contender="consume" if consume else "ordinary")
    benchmark.extra_info.update(device=device.type)
    benchmark.pedantic(run, setup=setup, rounds=3)
