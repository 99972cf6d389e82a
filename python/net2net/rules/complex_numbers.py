"""Pairs of real numbers that are seen as complex ones, and back (rotary positions as LLaMA computes them).

A pair becomes one value, of the units of both; what a complex number is made into is two values of its units. The walk
gives the result memory of its own (see `trace`), since one memory cannot hold the codes of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from net2net.context import Context
from net2net.rules.table import array, register


@register("view_as_complex")
def as_complex(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    given = array(context, args[0])  # (which has one place where all along a dimension are the same)
    context.set(out, context.make("complex", [given[..., 0], given[..., -1]]))


@register("view_as_real", "_view_as_real_physical")
def as_real(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    given = array(context, args[0])
    context.set(out, np.stack([context.make(part, [given]) for part in ("real", "imag")], -1))
