"""Each op on each backend, and its peers, on the same tensors in the same run."""

from collections.abc import Callable

import peers
import pytest
import torch
from cases import Activation, Growth, Weights, activations, doubling_map, growths, identities
from pytest_benchmark.fixture import BenchmarkFixture
from timing import measure

import n2n_kernels as nk
from n2n_kernels.backends import triton_interpreted

SMALL = not torch.cuda.is_available()

#: The reference is the definition, and no contender.
BACKENDS = ["cuda", "triton", "cpu"]


def usable(backend: str) -> None:
    """Skips, with the reason, a backend that does not serve the benchmarks' device, or would say nothing of speed."""
    if (reason := nk.backends()[backend]) is not None:
        pytest.skip(f"backend {backend}: {reason}")
    if backend == "triton" and triton_interpreted():
        pytest.skip("backend triton: interpreted, which says nothing of its speed")
    if backend == "cpu" and torch.cuda.is_available():
        pytest.skip("backend cpu: the tensors are on the GPU")


def test_copy(benchmark: BenchmarkFixture, device: torch.device) -> None:
    """The roofline: what copying a large tensor moves, counted as bytes read plus bytes written."""
    source = torch.randn(2**26 if SMALL else 2**30, device=device)
    target = torch.empty_like(source)
    measure(
        benchmark, device, lambda: target.copy_(source), op="copy_", case="copy", contender="torch",
        bytes=2 * source.nbytes,
    )  # fmt: skip


@pytest.mark.parametrize("contender", [*BACKENDS, *peers.GROWTH])
@pytest.mark.parametrize("case", growths(SMALL), ids=lambda case: case.name)
def test_gather_scale(benchmark: BenchmarkFixture, device: torch.device, case: Growth, contender: str) -> None:
    if contender in BACKENDS:
        usable(contender)
    elif case.noise:
        pytest.skip(f"{contender}: torch has no such noise to compare with")
    srcs = case.tensors(device)
    # Shared between tensors of one size, as between the layers of a network.
    maps = {n: doubling_map(n) for shape in case.shapes for n in shape[:2]}
    scales = {n: torch.full((2 * n,), 0.5) for n in maps}
    out_maps = [maps[shape[0]] for shape in case.shapes]
    in_maps = [maps[shape[1]] if len(shape) > 1 else None for shape in case.shapes]
    in_scales = [scales[shape[1]] if len(shape) > 1 else None for shape in case.shapes]

    def ours(backend: str | None = None) -> list[torch.Tensor]:
        return nk.gather_scale(
            srcs, out_maps, in_maps, in_scales=in_scales, noise_std=0.01 if case.noise else 0.0,
            noise=case.noise or "replicas", backend=backend,
        )  # fmt: skip

    run: Callable[[], list[torch.Tensor]]
    if contender in BACKENDS:
        run = lambda: ours(contender)  # noqa: E731
    else:
        # The peers get their maps and scales on the device.
        there = {
            id(t): t.to(device, t.dtype if t.dtype == torch.int64 else case.dtype)
            for t in (*maps.values(), *scales.values())
        }
        moved = [[None if t is None else there[id(t)] for t in ts] for ts in (out_maps, in_maps, in_scales)]
        run = lambda: peers.GROWTH[contender](srcs, *moved)  # noqa: E731
    for got, expected in zip(run()[:3], ours()[:3], strict=True):
        assert torch.equal(got, expected)
    measure(benchmark, device, run, op="gather_scale", case=case.name, contender=contender, bytes=case.bytes)


@pytest.mark.parametrize("contender", [*BACKENDS, *peers.IDENTITY])
@pytest.mark.parametrize("case", identities(SMALL), ids=lambda case: case.name)
def test_identity(benchmark: BenchmarkFixture, device: torch.device, case: Weights, contender: str) -> None:
    tensors = case.tensors(device)
    run: Callable[[], object]
    if contender in BACKENDS:
        usable(contender)
        run = lambda: nk.identity_(tensors, backend=contender)  # noqa: E731
    else:
        run = lambda: peers.IDENTITY[contender](tensors)  # noqa: E731
    run()
    expected = torch.nn.init.dirac_(torch.empty_like(tensors[0]))
    assert torch.equal(tensors[0], expected)
    measure(benchmark, device, run, op="identity_", case=case.name, contender=contender, bytes=case.bytes)


@pytest.mark.parametrize("contender", [*BACKENDS, *peers.MOMENTS])
@pytest.mark.parametrize("case", activations(SMALL), ids=lambda case: case.name)
def test_channel_moments(benchmark: BenchmarkFixture, device: torch.device, case: Activation, contender: str) -> None:
    x = case.tensor(device)
    run: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    if contender in BACKENDS:
        usable(contender)
        run = lambda: nk.channel_moments(x, backend=contender)  # noqa: E731
    else:
        run = lambda: peers.MOMENTS[contender](x)  # noqa: E731
    mean, _ = run()
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-2, atol=1e-3)
    measure(benchmark, device, run, op="channel_moments", case=case.name, contender=contender, bytes=case.bytes)
