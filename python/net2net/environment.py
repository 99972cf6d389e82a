"""What this package runs on: versions, devices, backends. For `net2net doctor` and beside every result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

import n2n_kernels

#: The extra that brings a package.
EXTRAS = {
    "triton": "triton",
    "torchvision": "demo",
    "scikit-learn": "demo",
    "matplotlib": "demo",
    "rich": "demo",
    "safetensors": "train",
}


def environment() -> dict[str, Any]:
    """A JSON-able description.

    Keys: `versions` (package -> version, None where it is not installed), `platform`, `cpu_cores`, `torch_threads`,
    `gpus` (names), `torch_cuda` (the CUDA version torch was built with, or None), `backends` (name -> None, or why it
    cannot be used) and `build` (what the native module was built with).
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": {
            "python": platform.python_version(),
            "n2n-kernels": _version("n2n-kernels"),
            "torch": torch.__version__,  # its package's version does not tell the build, such as +cpu
            **{name: _version(name) for name in ("numpy", *EXTRAS)},
        },
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
        "torch_cuda": torch.version.cuda,
        "backends": n2n_kernels.backends(),
        "build": n2n_kernels.build_info(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
