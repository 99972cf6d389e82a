"""The threads that kernels on the CPU run on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import n2n_kernels as nk
from n2n_kernels import native


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    if native.missing is not None:
        pytest.skip(native.missing)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def results() -> list[torch.Tensor]:
    """Of all kernels, on tensors for which several threads are started."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(700, 900, generator=generator)
    g_out, g_in = torch.arange(700).repeat(2), torch.arange(900).repeat(2)
    (grown,) = nk.gather_scale([w], [g_out], [g_in], noise_std=0.1, noise="cancelling", backend="cpu")
    moments = nk.channel_moments(grown, backend="cpu")
    (ones,) = nk.identity_([torch.empty(2048, 2048)], backend="cpu")
    return [grown, *moments, *nk.tensor_moments([grown, w], backend="cpu"), ones]


def test_threads_of_our_own_do_the_same() -> None:
    on_torchs = results()
    native.module().share_threads(0)
    try:
        on_own = results()
    finally:
        native.share_threads()
    for a, b in zip(on_torchs, on_own, strict=True):
        assert torch.equal(a, b)


def test_several_launches_at_once() -> None:
    expected = results()
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: results(), range(8)):
            assert all(map(torch.equal, got, expected))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forked_processes_have_threads_of_their_own() -> None:
    """GNU's OpenMP would wait for ever, in a process that was forked from one that has used it."""
    program = """
import os, warnings
import numpy as np, torch
import n2n_kernels as nk
warnings.simplefilter("ignore")  # that there are threads
torch.set_num_threads(4)
w, g = torch.randn(1000, 500), torch.arange(1000).repeat(2)
plan = nk.GatherScalePlan([w], [g], None, backend="cpu")
expected = plan([w])[0].numpy()
torch.ones(2000, 2000).add_(1)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(plan([w])[0].numpy(), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(plan([w])[0].numpy(), expected)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
