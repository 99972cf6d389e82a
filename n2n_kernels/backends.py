"""Which backends there are, why one is missing, and which one serves a call."""

import functools
import importlib
import importlib.util
import os
import re
from types import ModuleType

import numpy as np
import torch

from n2n_kernels import native

#: Best first. A call without a backend named gets the first usable one for its device.
ORDER = ("cuda", "triton", "cpu", "reference")


@functools.cache
def _triton_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


def _interpreter_broken() -> str | None:
    """Until 3.7, Triton's interpreter asks NumPy for the number in an array of one element, which 2.4 refuses."""
    triton = importlib.import_module("triton").__version__
    if _release(triton) < (3, 7) and _release(np.__version__) >= (2, 4):
        return f"the interpreter of Triton {triton} does not run with NumPy {np.__version__}, but with one before 2.4"
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def triton_interpreted() -> bool:
    """Whether Triton's kernels run under its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "yes", "on"}


def check_name(backend: str | None) -> None:
    """ValueError unless `backend` is None or the name of a backend, usable here or not."""
    if backend is not None and backend not in ORDER:
        raise ValueError(f"backend (={backend!r}) must be one of {', '.join(ORDER)}")


def missing(backend: str) -> str | None:
    """Why `backend` cannot be used on this machine; None if it can."""
    check_name(backend)
    if backend == "reference":
        return None
    if backend == "cpu":
        return native.missing
    if backend == "cuda":
        if native.missing is not None:
            return native.missing
        if native.build_info()["cuda"] is None:
            return "built without CUDA (no nvcc was found, or N2N_CUDA=OFF)"
        return None if torch.cuda.is_available() else "no CUDA device"
    if (reason := _triton_missing()) is not None:
        return reason
    if triton_interpreted():
        return _interpreter_broken()
    if torch.cuda.is_available():
        return None
    return "no CUDA device (TRITON_INTERPRET=1, set before Python starts, runs the kernels on the CPU)"


def backends() -> dict[str, str | None]:
    """Every backend by name: None if it can be used on this machine, else the reason why not.

    - `cuda`: compiled CUDA C++ kernels, for CUDA tensors;
    - `triton`: Triton kernels, for CUDA tensors, or for CPU tensors under TRITON_INTERPRET=1;
    - `cpu`: compiled C++ of the same headers as `cuda`, threaded, for CPU tensors;
    - `reference`: plain torch, for tensors on any device.

    All of them serve float32, float64, bfloat16 and float16, and give the same bits.
    """
    return {name: missing(name) for name in ORDER}


def _wrong_device(backend: str, device: torch.device) -> str | None:
    wanted = {"cuda": ("cuda",), "cpu": ("cpu",), "triton": ("cpu",) if triton_interpreted() else ("cuda",)}
    if backend in wanted and device.type not in wanted[backend]:
        return f"it takes {wanted[backend][0]} tensors"
    return None


def choose(backend: str | None, device: torch.device) -> str:
    """The backend for tensors on `device`: the one named, or the best there is.

    Raises ValueError for an unknown name, or for a backend that is missing or does not take tensors on `device`.
    """
    if backend is not None:
        reason = missing(backend) or _wrong_device(backend, device)
        if reason is not None:
            raise ValueError(f"backend (={backend!r}) cannot be used for tensors on {device}: {reason}")
        return backend
    for name in ORDER:
        # Interpreted Triton is for tests: nobody wants it by default.
        if name == "triton" and triton_interpreted():
            continue
        if missing(name) is None and _wrong_device(name, device) is None:
            return name
    return "reference"


def implementation(op: str, backend: str | None, device: torch.device) -> ModuleType:
    """The module of `n2n_kernels/ops/<op>` whose `run` serves tensors on `device`; errors as for `choose`."""
    chosen = choose(backend, device)
    file = "native" if chosen in {"cpu", "cuda"} else chosen
    return importlib.import_module(f"n2n_kernels.ops.{op}.{file}")
