"""Fixtures that all tests share. A contract runs on every backend: on what this machine has, and skipped, with the
reason, on what it has not."""

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import raw_digits, write_image_folder

# Triton reads this when it is imported. Without a GPU its kernels run under its interpreter, on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import n2n_kernels as nk
from n2n_kernels.backends import ORDER
from n2n_kernels.ops.gather_scale import native as gather_scale_native


def check_triton_assertions() -> None:
    """Triton's interpreter leaves them out unless it debugs."""
    try:
        from triton.runtime import interpreter

        options = interpreter.InterpreterOptions(debug=True, sanitize_overflow=False)
        interpreter.interpreter_builder.options = options
    except (ImportError, AttributeError):
        return


def patch_triton_once_a_launch() -> None:
    """Triton's interpreter replaces the language's functions by its own when a kernel is launched, and then again for
    every device function that the kernel calls, which finds nothing left to replace and takes half of its time."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter

        patch: Callable[[Any], Any] = interpreter._patch_lang
        nothing = interpreter._LangPatchScope
    except (ImportError, AttributeError):
        return

    @functools.cache
    def namespaces(function: Any) -> list[Any]:
        return [value for value in function.__globals__.values() if value is tl or value is tl.core]

    def patch_once(function: Any) -> Any:
        functions = [tl.tensor.to, *(namespace.load for namespace in namespaces(function))]
        return patch(function) if any(map(tl.core.is_builtin, functions)) else nothing()

    interpreter._patch_lang = patch_once


if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # they share the processors
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))

if os.environ.get("TRITON_INTERPRET") == "1":
    check_triton_assertions()
    patch_triton_once_a_launch()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        # The code of the CUDA kernel, thread by thread on the CPU.
        emulated = ["blocks"] if metafunc.module.__name__.startswith("test_gather_scale") else []
        metafunc.parametrize("backend", [*ORDER, *emulated], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each backend in turn."""
    name = str(request.param)
    if name == "blocks":
        name = "cpu"
        monkeypatch.setattr(gather_scale_native, "CPU", gather_scale_native.BLOCKS)
    reason = nk.backends()[name]
    if reason is not None:
        pytest.skip(f"backend {name}: {reason}")
    return name


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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Layers as small as these are slower on several threads. (And `net2net demo` sets one, which would otherwise
    stay so for the tests that follow.)"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """New processes that need not import torch anew; what is not installed is left out."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "net2net.training", "torchvision.transforms.v2", "safetensors.torch", "sharding",
            "torch.distributed.fsdp", "torch.distributed.tensor",
        ]
    )  # fmt: skip
    return context


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of handwritten digits."""
    return write_image_folder(tmp_path_factory.mktemp("images"), raw_digits())
