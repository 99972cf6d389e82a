"""NumPy's scalars as Python's numbers: what callers compute widths and sizes with, and what plans and files hold."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """`value` with Python's numbers in the place of NumPy's scalars, in mappings, lists and tuples too,
    which become plain ones.

    A number keeps its value: float32's 0.1 is 0.10000000149011612. Anything else is returned as it is.
    """
    made = value
    if isinstance(value, np.generic):
        made = value.item()
    elif isinstance(value, Mapping):
        made = {key: plain(v) for key, v in value.items()}
    elif isinstance(value, list):
        made = [plain(v) for v in value]
    elif isinstance(value, tuple):
        made = tuple(plain(v) for v in value)
    return made
