"""Pairs of real numbers that are seen as complex ones, and back (rotary positions as LLaMA computes them); and Fourier
transforms.

A pair becomes one value, of the units of both; what a complex number is made into is two values of its units. The walk
gives the result memory of its own (see `trace`), since one memory cannot hold the codes of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from net2net.context import Context
from net2net.rules.table import array, name_of, numbers, refuse, register


@register("view_as_complex")
def as_complex(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    given = array(context, args[0])  # (which has one place where all along a dimension are the same)
    context.set(out, context.make("complex", [given[..., 0], given[..., -1]]))


@register("view_as_real", "_view_as_real_physical")
def as_real(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    given = array(context, args[0])
    context.set(out, np.stack([context.make(part, [given]) for part in ("real", "imag")], -1))


@register("_conj", "_neg_view")
def seen_otherwise(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    context.set(out, context.make(name_of(func), [array(context, args[0])]))


@register("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Over places, it works unit by unit."""
    x, dims = args[:2]
    given = array(context, x)
    if any(given.shape[d] > 1 for d in dims):
        return refuse(context, func, args, kwargs, out, "a Fourier transform runs over units")
    sizes = tuple((d % x.dim(), x.shape[d], out.shape[d]) for d in dims)
    return context.set(out, context.make((name_of(func), sizes, numbers(args[2:])), [given]))
