"""views: which elements of a tensor another view of its memory sees, as slices, splits and merges of dimensions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Geometry = tuple[torch.Size, tuple[int, ...], int | torch.SymInt]


def geometry_of(t: Tensor) -> Geometry:
    return t.shape, t.stride(), t.storage_offset()


def cuts(whole: Tensor, part: Tensor, dims: Sequence[int]) -> list[tuple[int, ...]]:
    """How `part`, a view of `whole`, is less than all of it, or in another shape: the dimensions of `whole` along which
    it is so, each with where the part begins there and how long it is, or what steps it takes.

    Args:
        dims: which of the dimensions of `whole` each of `part` is; -1: none, or several.
    """
    rest, found = int(part.storage_offset() - whole.storage_offset()), list[tuple[int, ...]]()
    sizes = {d: n for d, n in zip(dims, part.shape, strict=True) if d >= 0}
    others = [(n, s) for d, n, s in zip(dims, part.shape, part.stride(), strict=True) if d < 0 and n > 1 and s]
    for step, d in sorted(((step, d) for d, step in enumerate(whole.stride())), reverse=True):
        if whole.shape[d] > 1 and step:
            first, rest = divmod(rest, step)
            if first or sizes.get(d, 1) < whole.shape[d]:
                found.append((d, first, sizes.get(d, 1)))
            found += [(d, n, s // step, s % step) for n, s in others if s >= step]
            others = [(n, s) for n, s in others if s < step]
    return found


@dataclass
class _Digit:
    """A dimension, or a factor of one. (A place in memory is a number in mixed radix, of which this is one digit.)"""

    size: int
    stride: int
    first: int = 0  # where the view begins


def seen(values: Tensor, kept: Geometry, view: Geometry, cut: bool) -> Tensor | None:
    """Of `values`, one for each element of a tensor of geometry `kept`, those that a view of that memory sees, in its
    shape; None if it cannot be told in this way. Dimensions along which `values` are expanded stay so.

    Args:
        cut: whether dimensions may be split and merged; else the view may only take some, and slices of them.
    """
    place = _place(values.stride(), kept, view, cut)
    if isinstance(place, tuple):
        shape, strides, offset = place
        return values.as_strided(shape, strides, values.storage_offset() + offset)
    return _seen(values, kept, view, cut) if place else None


@functools.lru_cache(maxsize=4096)
def _place(strides: tuple[int, ...], kept: Geometry, view: Geometry, cut: bool) -> Geometry | bool:
    """Where among values of these strides `seen` finds what it gives, without looking at them: a view of them (its
    offset from theirs), True for a copy, or False for None. Networks repeat their blocks."""
    values = torch.empty_strided(kept[0], strides, device="meta")
    found = _seen(values, kept, view, cut)
    if found is None:
        return False
    shared = found.untyped_storage()._cdata == values.untyped_storage()._cdata
    return geometry_of(found) if shared else True


def _seen(values: Tensor, kept: Geometry, view: Geometry, cut: bool) -> Tensor | None:
    shape, strides, offset = kept
    if 0 in shape:
        return values.new_empty(view[0]) if 0 in view[0] else None
    order = sorted((d for d, n in enumerate(shape) if n > 1), key=lambda d: -strides[d])
    bounds = [*(strides[d] for d in order), 1]
    if any(shape[d] * strides[d] > above for d, above in zip(order[1:], bounds, strict=False)) or 0 in bounds:
        return None
    wanted = {i: (n, s) for i, (n, s) in enumerate(zip(view[0], view[1], strict=True)) if n > 1 and s}
    cuts = sorted({place for n, s in wanted.values() for place in (s, n * s)}) if cut else []
    digits = [digit for d in order for digit in _split(shape[d], strides[d], cuts)]
    rest = int(view[2]) - int(offset)
    for digit in digits:
        digit.first, rest = divmod(rest, digit.stride)
    if rest or any(not 0 <= digit.first < digit.size for digit in digits):
        return None
    runs = {i: _run(digits, n, s, cut) for i, (n, s) in wanted.items()}
    used = [d for run in runs.values() for d in run]
    if not all(runs.values()) or len(used) > len(set(used)):
        return None
    values = values.permute([*order, *(d for d in range(len(shape)) if d not in order)])
    values = values.view([*(digit.size for digit in digits), *[1] * (len(shape) - len(order))])
    sizes = [1] * len(view[0])
    for i, run in runs.items():
        if len(run) == 1:
            (d,), (n, s) = run, wanted[i]
            step = s // digits[d].stride
            values = values.narrow(d, digits[d].first, (n - 1) * step + 1)
            values = values[(slice(None),) * d + (slice(None, None, step),)]
        if any(values.stride(d) for d in run):
            sizes[i] = wanted[i][0]
        else:
            used = [d for d in used if d not in run]
    for d, digit in enumerate(digits):
        if d not in used:
            values = values.narrow(d, min(digit.first, values.shape[d] - 1), 1)
    values = values.permute([*used, *(d for d in range(values.dim()) if d not in used)])
    return values.reshape(sizes).expand(view[0])


def _split(size: int, stride: int, cuts: list[int]) -> list[_Digit]:
    """A dimension, cut where it can be."""
    digits, end = [], size * stride
    for place in cuts:
        if stride < place < end and place % stride == 0 and end % place == 0:
            digits.append(_Digit(place // stride, stride))
            stride = place
    return [_Digit(end // stride, stride), *reversed(digits)]


def _run(digits: list[_Digit], size: int, stride: int, merge: bool) -> range:
    """The digits that a dimension of a view runs through; none if there are none such."""
    # The longest stride that divides it: steps within that digit.
    at = next((d for d, digit in enumerate(digits) if stride % digit.stride == 0), None)
    if at is None:
        return range(0)
    if digits[at].first + (size - 1) * (stride // digits[at].stride) < digits[at].size:
        return range(at, at + 1)
    first, covered = at, digits[at].size
    while covered < size and first > 0 and digits[first - 1].stride == covered * digits[at].stride:
        first -= 1
        covered *= digits[first].size
    whole = digits[at].stride == stride and covered == size and not any(d.first for d in digits[first : at + 1])
    return range(first, at + 1) if merge and whole else range(0)
