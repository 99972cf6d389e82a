"""inspection: what of a model can be widened, as `net2net inspect` shows it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from net2net.choices import Choices
from net2net.groups import Group
from net2net.skeleton import in_mode
from net2net.widen import plan_and_groups
from net2net.widen_plan import WidenPlan


def build(spec: str, **usual: Any) -> nn.Module:
    """The module that `package.module:factory` makes, with keyword arguments in parentheses if it takes any:
    `torchvision.models:resnet18(num_classes=10)`.

    Args:
        spec: the module's maker.
        usual: arguments that are passed on where `spec` does not give them and the factory has parameters of these
            names. `num_classes` is also passed to a factory that takes any keyword, as torchvision's do.

    Raises:
        ValueError: if `spec` is not of this form, or names nothing, or what it names makes no module.
    """
    found = re.fullmatch(r"([\w.]+):([\w.]+)(?:\((.*)\))?", spec)
    if not found:
        raise ValueError(f"--model (={spec!r}) must be package.module:factory, perhaps with (name=value, ...)")
    try:
        target: Any = importlib.import_module(found[1])
        for name in found[2].split("."):
            target = getattr(target, name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--model (={spec!r}): {error}") from error
    try:
        arguments = dict(_argument(spec, a) for a in (found[3] or "").split(",") if a.strip())
        parameters = signature(target).parameters if usual else {}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name, value in usual.items():
            if name in parameters or (takes_any and name == "num_classes"):
                arguments.setdefault(name, value)
        model = target(**arguments)
    except TypeError as error:
        raise ValueError(f"--model (={spec!r}): {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"--model (={spec!r}) makes a {type(model).__name__}, not a torch.nn.Module")
    return model


def _argument(spec: str, text: str) -> tuple[str, int | float | bool | str | None]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ValueError(f"--model (={spec!r}): {text.strip()!r} is not name=value")
    known = {"True": True, "False": False, "None": None}
    if value in known:
        return name, known[value]
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value.strip("'\"")


def inputs(shapes: Sequence[str]) -> tuple[Tensor, ...]:
    """Random inputs of shapes such as `1x3x224x224`; `1x16:50000` are whole numbers below 50000 (tokens)."""
    return tuple(map(_input, shapes))


def _input(shape: str) -> Tensor:
    found = re.fullmatch(r"(\d+(?:x\d+)*)(?::(\d+))?", shape)
    if not found:
        raise ValueError(f"--input (={shape!r}) must be a shape such as 1x3x224x224, or 1x16:50000 for tokens")
    size = [int(n) for n in found[1].split("x")]
    return torch.randn(size) if found[2] is None else torch.randint(int(found[2]), size)


def inspect(model: nn.Module, example: tuple[Tensor, ...], width: float) -> tuple[WidenPlan, list[Group]]:
    return plan_and_groups(in_mode(model, False), example, Choices(width))


def table(plan: WidenPlan, groups: Sequence[Group]) -> str:
    """One row per group, the layers that are coupled in it, and why some are left alone."""
    widths = {w.layers[0]: w.width for w in plan.widened}
    rows = [("layer", "with it", "units", "blocks", "becomes", "")]
    for g in groups:
        becomes = str(widths[g.name]) if g.name in widths else "-"
        more = f"+{len(g.layers) - 1}" if len(g.layers) > 1 else ""
        rows.append((g.name, more, str(g.units), str(g.blocks), becomes, g.reason or g.partly or ""))
    columns = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(columns[0]), *(row[i].rjust(columns[i]) for i in range(1, 5)), row[5]]
        lines.append("  ".join(cells).rstrip())
    lines += [f"attribute {c}" for c in plan.changes]
    return "\n".join(lines)
