"""tallies: the numbers that a forward changes in what modules hold (how often it was run, a running scale), which the
next one goes by."""

from __future__ import annotations

from torch import nn

from net2net.outputs import held


def numbers(model: nn.Module) -> dict[str, str]:
    """The numbers that modules hold beside their tensors, spelled out, by where they are."""
    return {name: repr(x) for name, x in held(model) if isinstance(x, int | float) and not isinstance(x, bool)}


def changed(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """Those that are others now. (A whole number where there was none is a size that was noted down, most often, as
    wide as the model is.)"""
    return {k: x for k, x in after.items() if x != before.get(k) and (k in before or not x.isdigit())}
