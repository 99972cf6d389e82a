"""The compiled module, if there is one, and what it was built with."""

import contextlib
import importlib
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
