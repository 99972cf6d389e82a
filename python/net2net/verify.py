"""verify: do teacher and student compute the same function, and if not, where do they part?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from net2net.skeleton import own_random_state
from net2net.trace import Inputs, call

#: Largest difference, relative to the teacher's largest output, that rounding explains in a deep network.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class Part:
    """A module whose outputs differ between teacher and student."""

    module: str
    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        max_abs: the largest absolute difference of any output.
        max_rel: that, divided by the teacher's largest output in magnitude.
        tolerance: what `max_rel` may be.
        ok: whether it is within the tolerance (never where an output is NaN on one side only, or shapes differ).
        parts: where they differ by more than the tolerance, the modules of equal names and output shapes that do, in
            the order in which they are run; the first is where to look.
    """

    max_abs: float
    max_rel: float
    tolerance: float
    ok: bool
    parts: list[Part] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = "same function" if self.ok else "NOT the same function"
        text = f"{verdict}: max difference {self.max_abs:.3g} ({self.max_rel:.3g} of the largest output)"
        return text + (f"; they part in {self.parts[0].module}" if self.parts else "")


def verify(teacher: nn.Module, student: nn.Module, inputs: Inputs, *, tolerance: float | None = None) -> Report:
    """Compares the outputs of teacher and student on `inputs`.

    Both run in the mode (train or eval) that they are in, without gradients; buffers (running statistics) are put back
    afterwards, and both see the same random numbers. In train mode, tens of normalised layers magnify the rounding of a
    float32 forward pass until no two ways of computing the same function agree; compare copies in float64 there.

    Args:
        teacher, student: modules in the same mode.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        tolerance: for the difference relative to the teacher's largest output; None: by the outputs' dtype.

    Raises:
        ValueError: if one of them is in train mode and the other is not.
    """
    if teacher.training != student.training:
        raise ValueError(
            f"teacher.training (={teacher.training}) and student.training (={student.training}) must be the same"
        )
    expected, actual = _outputs(teacher, inputs), _outputs(student, inputs)
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return Report(float("inf"), float("inf"), 0.0, False)
    limit = max([TOLERANCE.get(t.dtype, 0.0) for t in expected], default=0.0) if tolerance is None else tolerance
    pairs = list(zip(expected, actual, strict=True))
    max_abs, max_rel = _difference(pairs)
    ok = max_rel <= limit
    return Report(max_abs, max_rel, limit, ok, [] if ok else _parts(teacher, student, inputs, limit))


def check_growth(teacher: nn.Module, student: nn.Module, inputs: Inputs) -> None:
    """Compares in eval mode, whatever mode they are in, and raises RuntimeError if they differ."""
    with _mode(teacher, False), _mode(student, False):
        report = verify(teacher, student, inputs)
    if not report.ok:
        raise RuntimeError(
            f"the student is not the teacher's equal: {report}. Please report the model; "
            "plan_widen(...).apply(model) gives the student without this check."
        )


def _difference(pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """(absolute, relative to the largest magnitude of the first ones). NaN and infinities agree with their like
    alone."""
    worst, largest = 0.0, 0.0
    for a, b in pairs:
        a, b = a.double(), b.double()
        same = (a == b) | (a.isnan() & b.isnan())
        delta = torch.where(same, torch.zeros_like(a), (a - b).abs())
        if delta.numel():
            top = delta.max().item()
            worst = float("inf") if top != top else max(worst, top)
            finite = a[a.isfinite()]
            largest = max(largest, finite.abs().max().item() if finite.numel() else 0.0)
    if worst == 0.0:
        return 0.0, 0.0
    return worst, worst / largest if largest > 0 else float("inf")


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad(), _unchanged(model):
        return [t for t in tree_leaves(call(model, inputs)) if isinstance(t, Tensor)]


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Puts buffers and the random state back. The seed is the same each time, so two models see the same numbers."""
    saved = [(b, b.clone()) for b in model.buffers()]
    try:
        with own_random_state(model):
            torch.manual_seed(0)
            yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)


@contextlib.contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Sets the mode of every submodule, and puts each back to its own."""
    before = [(m, m.training) for m in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


def _parts(teacher: nn.Module, student: nn.Module, inputs: Inputs, limit: float) -> list[Part]:
    expected, actual = _module_outputs(teacher, inputs), _module_outputs(student, inputs)
    parts = []
    for name, a in expected.items():
        b = actual.get(name)
        if b is None or a.shape != b.shape:
            continue
        max_abs, max_rel = _difference([(a, b)])
        if max_rel > limit:
            parts.append(Part(name or "(the whole model)", max_abs, max_rel))
    return parts


def _module_outputs(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Each module's output, where it is one tensor, in the order in which modules finish."""
    found: dict[str, Tensor] = {}
    handles: list[Any] = []
    for name, module in model.named_modules():

        def keep(_m: nn.Module, _args: Any, out: Any, name: str = name) -> None:
            if isinstance(out, Tensor):
                found.setdefault(name, out.detach().clone())

        handles.append(module.register_forward_hook(keep))
    try:
        _outputs(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
