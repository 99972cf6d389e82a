"""How the tensors of a call lie in memory, found once for each way in which they do.

Calls on one plan come with tensors of the same strides again and again, so a whole call's worth is kept under them.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from n2n_kernels.layout import Layout, layout_of, memory_format
from n2n_kernels.lazy import lazy
from n2n_kernels.ops.gather_scale.request import Kind
from n2n_kernels.ops.memory import Memory


@dataclass(frozen=True, eq=False)
class Place:
    """How a teacher tensor lies in memory, and its student. Tensors of equal shapes and strides share this object,
    whatever their maps."""

    source: Layout  # as the kernels read it: of a contiguous copy, where `copied`
    target: Layout
    student: Tensor | None  # if it is to be made: its shape and strides, on the device "meta"
    copied: bool  # the kernels cannot read it as it lies: its kernel dimensions do not fold, or its address is odd
    dtype: torch.dtype
    device: torch.device

    @lazy
    def like(self) -> Tensor:
        """Without memory; the student tensor is made as empty_like this one."""
        assert self.student is not None
        return _without_memory(self.dtype, self.student, self.device)


class Form(NamedTuple):
    """A tensor of a kind, at a place. Tensors that are alike share this object."""

    kind: Kind
    place: Place


@dataclass(frozen=True, eq=False)
class Forms:
    """The forms of all tensors of a call."""

    each: list[Form]
    copied: list[int]  # positions

    @lazy
    def like(self) -> list[Tensor]:
        """`Place.like` of each; none if there are tensors to write to."""
        return [form.place.like for form in self.each if form.place.student is not None]


#: Of a form: what it is of, the strides of source and target, and whether the source's address is odd.
_Key = tuple[Kind, tuple[int, ...], tuple[int, ...] | None, bool]


class KnownForms:
    """The forms that a plan has met. Threads may share it."""

    def __init__(self, kinds: list[Kind], device: torch.device) -> None:
        self._kinds, self._device = kinds, device
        self._calls: dict[object, Forms] = {}
        self._forms: dict[_Key, Form] = {}
        self._places: dict[object, Place] = {}

    def of(self, sources: Memory, out: Memory | None) -> Forms:
        """For tensors that fit the plan; `out`: those to write to; None: they are made like the teacher's."""
        from_, to = sources.strides, None if out is None else out.strides
        key = from_.tobytes(), None if to is None else to.tobytes(), tuple(sources.odd)
        known = self._calls.get(key)
        if known is None:
            odd = np.zeros(len(self._kinds), dtype=bool)
            odd[sources.odd] = True
            targets = [None] * len(odd) if to is None else map(tuple, to.tolist())
            keys = zip(self._kinds, map(tuple, from_.tolist()), targets, odd.tolist(), strict=True)
            each = [self._forms.get(key) or self._made(key, i, sources, out) for i, key in enumerate(keys)]
            copied = [i for i, form in enumerate(each) if form.place.copied]
            # Another thread may have been faster: what is prepared for forms goes by the object.
            known = self._calls.setdefault(key, Forms(each, copied))
        return known

    def _made(self, key: _Key, i: int, sources: Memory, out: Memory | None) -> Form:
        kind = self._kinds[i]
        # The format of a student that is to be made is found from the teacher's strides.
        where = kind.shape, kind.student_shape, kind.dtype, *key[1:]
        place = self._places.get(where)
        if place is None:
            target = None if out is None else out.tensors[i]
            made = _place(kind, sources.tensors[i], target, key[-1], self._device)
            place = self._places.setdefault(where, made)
        return self._forms.setdefault(key, Form(kind, place))


def _place(kind: Kind, src: Tensor, out: Tensor | None, odd: bool, device: torch.device) -> Place:
    imagined = partial(torch.empty, device="meta")
    source = None if odd else layout_of(src)
    copied = source is None
    student = imagined(kind.student_shape, memory_format=memory_format(src))
    return Place(
        source or _layout(imagined(kind.shape)),
        _layout(student if out is None else out),
        student if out is None else None,
        copied,
        kind.dtype,
        device,
    )


def _without_memory(dtype: torch.dtype, t: Tensor, device: torch.device) -> Tensor:
    """With the shape and strides of `t`. Of what an empty tensor can be made from, this takes the least time. (For a
    moment it has memory, so nothing as large may be asked for that is not going to be there.)"""
    with torch.inference_mode(False):
        made = torch.empty_strided(t.shape, t.stride(), dtype=dtype, device=device)
    made.untyped_storage().resize_(0)
    return made


def _layout(t: Tensor) -> Layout:
    """Of a tensor that is known to have one."""
    layout = layout_of(t)
    assert layout is not None
    return layout
