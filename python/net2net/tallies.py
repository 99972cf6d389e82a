"""tallies: what a forward notes down in what modules hold, beside tensors (how often it was run, a running scale),
which the next one goes by."""

from __future__ import annotations

from torch import Tensor, nn

from net2net.outputs import held


def notes(model: nn.Module) -> dict[str, str]:
    """What modules hold beside tensors (numbers, flags, texts), spelled out, by where it is."""
    return {name: repr(x) for name, x in held(model) if not isinstance(x, Tensor)}


def changed(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """Those that are others now. (A whole number where there was none is a size that was noted down, most often, as
    wide as the model is.)"""
    return {k: x for k, x in after.items() if x != before.get(k) and (k in before or not x.isdigit())}
