"""The compiled module, if there is one, and what it was built with."""

import contextlib
import ctypes
import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

_C: ModuleType | None = None
#: Why there is no native module; None if there is.
missing: str | None = None
try:
    _C = importlib.import_module("n2n_kernels._C")
except ImportError as error:  # a source tree that was never built, or a build for another interpreter
    missing = f"the native module is not built for this interpreter ({error}); run `pip install .`"


def share_threads() -> None:
    """Lets kernels on the CPU run on torch's threads, if these are OpenMP's."""
    if _C is None or "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return
    try:
        team = ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):  # another runtime, or a system whose programs do not see it
        return
    _C.share_threads(team or 0)


def _share_no_threads() -> None:
    if _C is not None:
        _C.share_threads(0)


share_threads()
if hasattr(os, "register_at_fork"):
    # A forked process has a copy of the runtime, which waits for threads that the process does not have.
    os.register_at_fork(after_in_child=_share_no_threads)


def module() -> ModuleType:
    """The compiled module; ImportError with the reason if there is none."""
    if _C is None:
        raise ImportError(missing)
    return _C


def build_info() -> dict[str, Any]:
    """What the native module was built with.

    Keys: `native` (None if it is there, else why not), `cuda` (the compiler's version, or None for a CPU-only build)
    and `cuda_architectures` (e.g. "80-real,90-real,100", or None).
    """
    return {
        "native": missing,
        "cuda": getattr(_C, "cuda_runtime_version", None),
        "cuda_architectures": getattr(_C, "cuda_architectures", None),
    }


@contextlib.contextmanager
def launching_on(device: torch.device) -> Iterator[int]:
    """Makes `device` the current one and gives its current stream as an integer (0 on the CPU)."""
    if device.type != "cuda":
        yield 0
        return
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream
