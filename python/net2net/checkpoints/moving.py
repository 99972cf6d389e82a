"""Tensors of a student, row by row of those of the teacher: the bits of `GrowthPlan.grow_state_dict`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from n2n_kernels import GatherScalePlan, moments_in_parts
from net2net.checkpoints.stored import Stored
from net2net.checkpoints.streams import Stream, unchanged
from net2net.launches import Entry, Law, flattened
from net2net.plan import GrowthPlan
from net2net.skeleton import movable


class Moved:
    """What becomes of one tensor, or of one that an optimizer keeps of it (`key`).

    Rows are those of the tensor as the kernels see it (`launches.flattened`).
    """

    def __init__(self, plan: GrowthPlan, entry: Entry, stored: Stored, key: str | None = None) -> None:
        self.plan, self.entry, self.stored, self.key = plan, entry, stored, key
        self.law = plan._law(entry)
        self.shape = plan.student_shape(entry.name)

    @property
    def stays(self) -> bool:
        """It is copied as it is."""
        return self.law == Law() and self.shape == self.stored.shape

    @cached_property
    def flat_shape(self) -> torch.Size:
        """The teacher's, as the kernels see it."""
        return flattened([self.stored.meta()], [self.law.late])[0].shape

    @property
    def rows(self) -> int:
        """Of the student."""
        return self.flat_shape[0] if self.law.out_map is None else len(self.law.out_map)

    @cached_property
    def _teacher(self) -> Tensor:
        return self.stored.tensor()

    @cached_property
    def _source(self) -> Tensor:
        # What does not lie in order is put in order as a whole; only torch's own files have such tensors.
        return flattened([self._teacher.contiguous()], [self.law.late])[0]

    @cached_property
    def _launch(self) -> GatherScalePlan:
        law, ids = self.law, self.plan._ids
        return GatherScalePlan(
            [self._source], [law.out_map], [law.in_map], out_scales=[law.out_scale], in_scales=[law.in_scale],
            noise=self.plan._noise, tensor_ids=[ids[self.entry.name]],
        )  # fmt: skip

    @cached_property
    def _std(self) -> Tensor | float:
        """Of the noise, as the whole tensor's."""
        scale = self.plan._noise_of(self.entry.name) if self.entry.power is None else 0.0
        return self.std(scale) if scale else 0.0

    def std(self, scale: float) -> Tensor:
        """The standard deviation of all of its numbers, times `scale`."""
        return moments_in_parts(self._teacher, self.stored.release)[1].sqrt() * scale

    def make(self, begin: int, end: int) -> Tensor:
        if self.law == Law():
            moved = self._source[begin:end]
        else:
            moved = self._launch.rows(self._source, begin, end, noise_std=self._std, seed=self.plan._seed)
        return self.plan._completed(self.entry.name, moved, self.key)

    def drop(self) -> None:
        """Let go of what was prepared."""
        for name in ("_teacher", "_source", "_launch"):
            self.__dict__.pop(name, None)

    def stream(self, make: Callable[[int, int], Tensor] | None = None) -> Stream:
        """As a stream; `make`: with more done to it."""
        if self.stays and make is None:
            return unchanged(self.stored)
        stored = self.stored
        # Where two tensors of the teacher lie in one place, what becomes of them may still be different.
        tied = *stored.place, self.entry.name, self.key
        return Stream(stored.dtype, self.shape, self.rows, make or self.make, stored.release, self.drop, tied)


def check_movable(name: str, stored: Stored, shape: tuple[int, ...]) -> bool:
    """Whether the kernels move it. ValueError if they cannot, but it would have to grow."""
    if movable(stored.meta()):
        return True
    if shape != stored.shape:
        raise ValueError(f"{name} is to grow from {stored.shape} to {shape}, but has the dtype {stored.dtype}")
    return False
