"""verify: do teacher and student compute the same function, and if not, where do they part?"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from net2net.outputs import leaves
from net2net.running import Inputs, call
from net2net.skeleton import aside, in_mode, own_random_state

#: Largest difference, relative to the teacher's largest output, that rounding explains in a deep network.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}

#: The same where a network in a wider dtype takes some of its steps in this one, as norms and rotary embeddings do that
#: turn everything into float32: there is one rounding of that kind, not one per operation.
NARROWED = {**TOLERANCE, torch.float32: 1e-5}


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
        max_rel: the largest difference relative to the largest magnitude that the teacher has in the same output.
        tolerance: what `max_rel` may be.
        ok: whether it is within the tolerance (never where an output is NaN on one side only, or shapes, dtypes or
            returned values that are no tensors differ).
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
        tolerance: for the difference relative to the teacher's largest output; None: by the outputs' dtype, and those
            into which the forward turns wider ones on its way.

    Raises:
        ValueError: if one of them is in train mode and the other is not, or nothing is returned that could be compared.
        TypeError: if an object is returned in which tensors cannot be found.
    """
    if teacher.training != student.training:
        raise ValueError(
            f"teacher.training (={teacher.training}) and student.training (={student.training}) must be the same"
        )
    expected, actual = _outputs(teacher, inputs), _outputs(student, inputs)
    if [_shape(v) for v in expected] != [_shape(v) for v in actual]:
        return Report(float("inf"), float("inf"), 0.0, False)
    pairs = [(a, b) for a, b in zip(expected, actual, strict=True) if isinstance(a, Tensor)]
    if not any(a.numel() for a, _ in pairs):
        raise ValueError("the model returns no tensor with elements on these inputs, so there is nothing to compare")
    limit = max(TOLERANCE.get(a.dtype, 0.0) for a, _ in pairs) if tolerance is None else tolerance
    max_abs, max_rel = _difference(pairs)
    if tolerance is None and not max_rel <= limit < math.inf:
        limit = max([limit, *(NARROWED.get(dtype, 0.0) for dtype in _narrowed_to(teacher, inputs))])
    ok = max_rel <= limit
    return Report(max_abs, max_rel, limit, ok, [] if ok else _parts(teacher, student, inputs, limit))


def _shape(value: Any) -> Any:
    """What must be equal beforehand: a tensor's shape and dtype, anything else itself."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else repr(value)


def compare_growth(teacher: nn.Module, student: nn.Module, inputs: Inputs) -> Report | None:
    """`verify` in eval mode, whatever mode they are in; None where there are no values to compare."""
    if any(t.is_meta for t in student.parameters()):
        return None
    # Copies are run: the models' own Python state (counters, caches) stays as it is.
    return verify(in_mode(aside(teacher), False), in_mode(aside(student), False), inputs)


def check_growth(teacher: nn.Module, student: nn.Module, inputs: Inputs) -> None:
    """Compares in eval mode, and raises RuntimeError if they differ."""
    report = compare_growth(teacher, student, inputs)
    if report is not None and not report.ok:
        raise RuntimeError(
            f"the student is not the teacher's equal: {report}. Please report the model; "
            "plan_widen(...).apply(model) gives the student without this check."
        )


def _difference(pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The largest absolute difference, and the largest one relative to the largest magnitude of the same first tensor
    (of all of them, where that one is zero). NaN and infinities agree with their like alone."""
    differences, magnitudes = [], []
    for a, b in pairs:
        a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
        same = (a == b) | (a.isnan() & b.isnan())
        delta = (a - b).abs().masked_fill(same, 0.0)
        worst = delta.max().item() if delta.numel() else 0.0
        differences.append(float("inf") if worst != worst else worst)
        finite = a[a.isfinite()].abs()
        magnitudes.append(finite.max().item() if finite.numel() else 0.0)
    largest = max(magnitudes)
    relative = [
        0.0 if delta == 0.0 else delta / (own or largest) if own or largest else float("inf")
        for delta, own in zip(differences, magnitudes, strict=True)
    ]
    return max(differences), max(relative)


def _outputs(model: nn.Module, inputs: Inputs) -> list[Any]:
    with torch.no_grad(), _unchanged(model):
        return list(leaves(call(model, inputs)))


def _narrowed_to(model: nn.Module, inputs: Inputs) -> set[torch.dtype]:
    """The floating-point dtypes into which values of wider ones are turned."""
    mode = _Narrowings()
    with mode:
        _outputs(model, inputs)
    return mode.found


class _Narrowings(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = args[0] if args else None
        if isinstance(out, Tensor) and isinstance(given, Tensor) and func is torch.ops.aten._to_copy.default:
            wide, narrow = given.dtype, out.dtype
            if wide.is_floating_point and narrow.is_floating_point and narrow.itemsize < wide.itemsize:
                self.found.add(narrow)
        return out


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
