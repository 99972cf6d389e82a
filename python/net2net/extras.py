"""Packages that only some features need: imported where they are used, with an error that says how to get them."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str = "demo") -> ModuleType:
    """Import `module`, which the extra `n2n-kernels[extra]` installs.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0].replace("sklearn", "scikit-learn")
        raise ModuleNotFoundError(
            f"{package} is needed here and not installed: pip install 'n2n-kernels[{extra}]'", name=error.name
        ) from error
