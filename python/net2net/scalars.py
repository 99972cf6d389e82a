"""NumPy's numbers as Python's: what callers compute widths and sizes with, and what plans and files hold."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """`value` with Python's numbers in the place of NumPy's, in mappings, lists and tuples too, made anew.

    An array becomes a tuple. A number keeps its value: float32's 0.1 is 0.10000000149011612. Anything else is returned
    as it is.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, tuple | np.ndarray):
        return tuple(plain(v) for v in value)
    return value
