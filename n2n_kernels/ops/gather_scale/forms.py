"""How the tensors of a call lie in memory, found once for each way in which they do.

Calls on one plan come with tensors of the same strides again and again, so a whole call's worth is kept under them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from n2n_kernels.layout import Layout, layout_of, memory_format, reach
from n2n_kernels.ops.gather_scale.request import Kind

Strides = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Form:
    """How a teacher tensor of a kind lies in memory, and its student. Tensors that lie alike share this object."""

    kind: Kind
    source: Layout  # as the kernels read it: of a contiguous copy, where `copied`
    target: Layout
    strides: Strides  # of a student tensor that is made like the teacher's
    bytes: int  # from the teacher's first element to past its last; 0 if it is empty
    copied: bool  # the kernels cannot read it as it lies: its kernel dimensions do not fold, or its address is odd


@dataclass(frozen=True, eq=False)
class Forms:
    """The forms of all tensors of a call."""

    each: list[Form]
    strides: list[Strides]
    bytes: np.ndarray  # int64 [tensors]
    copied: list[int]  # positions


class KnownForms:
    """The forms that a plan has met. Threads may share it."""

    def __init__(self, kinds: list[Kind]) -> None:
        self._kinds = kinds
        self._calls: dict[object, Forms] = {}
        self._forms: dict[object, Form] = {}

    def of(self, srcs: list[Tensor], out: list[Tensor] | None, odd: Sequence[int]) -> Forms:
        """For tensors that fit the plan.

        Args:
            srcs: the teacher's.
            out: tensors to write to; None: they are made like the teacher's.
            odd: the positions of sources at addresses that are not multiples of their dtype.
        """
        from_ = tuple(map(Tensor.stride, srcs))
        to = tuple(map(Tensor.stride, out)) if out is not None else (None,) * len(srcs)
        key = from_, to, tuple(odd)
        known = self._calls.get(key)
        if known is None:
            every_odd = set(odd)
            each = []
            for i, (kind, strides, out_strides) in enumerate(zip(self._kinds, from_, to, strict=True)):
                form_key = kind, strides, out_strides, i in every_odd
                form = self._forms.get(form_key)
                if form is None:
                    made = _form(kind, srcs[i], None if out is None else out[i], i in every_odd)
                    form = self._forms.setdefault(form_key, made)
                each.append(form)
            bytes_ = np.array([form.bytes for form in each], dtype=np.int64)
            copied = [i for i, form in enumerate(each) if form.copied]
            # Another thread may have been faster: what is prepared for forms goes by the object.
            known = self._calls.setdefault(key, Forms(each, [form.strides for form in each], bytes_, copied))
        return known


def _form(kind: Kind, src: Tensor, out: Tensor | None, odd: bool) -> Form:
    imagined = partial(torch.empty, device="meta")
    source = None if odd else layout_of(src)
    copied = source is None
    student = imagined(kind.student_shape, memory_format=memory_format(src))
    return Form(
        kind,
        source or _layout(imagined(kind.shape)),
        _layout(student if out is None else out),
        student.stride(),
        reach(src) * kind.dtype.itemsize,
        copied,
    )


def _layout(t: Tensor) -> Layout:
    """Of a tensor that is known to have one."""
    layout = layout_of(t)
    assert layout is not None
    return layout
