"""Fixtures that all tests share. A contract runs on every backend: on what this machine has, and skipped, with the
reason, on what it has not."""

import os

import pytest
import torch

# Triton reads this when it is imported. Without a GPU its kernels run under its interpreter, on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import n2n_kernels as nk
from n2n_kernels.backends import ORDER


@pytest.fixture(params=ORDER)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    reason = nk.backends()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return str(request.param)


@pytest.fixture
def device(backend: str) -> torch.device:
    """The device on which `backend` takes tensors."""
    if backend == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


@pytest.fixture(params=["cpu", "cuda"])
def any_device(request: pytest.FixtureRequest) -> torch.device:
    """Each kind of device in turn, for what does not depend on the backend."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)
