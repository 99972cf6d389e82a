"""activations: which ones a new layer may stand next to, or be made of, without changing the function.

Two properties matter. `phi(phi(x)) = phi(x)` lets an identity layer stand beside an existing `phi` (Chen et al., ICLR
2016, section 2.4). `phi(x) - phi(-x) = kappa * x` lets a pair of units carry any number through a `phi`, and so makes a
hidden layer of any invertible matrix (DESIGN, section 2.5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from net2net import plan_fields
from net2net.rules import name_of


@dataclass(frozen=True)
class Activation:
    """An activation as data.

    Attributes:
        name: of a class of `torch.nn`.
        arguments: of its constructor.
        idempotent: phi(phi(x)) = phi(x).
        kappa: of phi(x) - phi(-x) = kappa * x; None: not so for any number.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    idempotent: bool = False
    kappa: float | None = None

    def make(self) -> nn.Module:
        module: nn.Module = getattr(nn, self.name)(**self.arguments)
        return module


#: Activations with neither property (some of them only with some arguments), named so that a refusal can be.
NEITHER = {
    "sigmoid", "tanh", "elu", "hardsigmoid", "mish", "log_sigmoid", "log_sigmoid_forward", "rrelu_with_noise", "celu",
    "leaky_relu", "softplus",
}  # fmt: skip

#: Ways to write a maxout unit, or a choice of the larger one.
MAXIMA = {"amax", "max", "maximum"}


def recognise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Activation | None] | None:
    """The operation's name and the activation that it is, if layers can be made with it; None: no activation."""
    name = name_of(func).removesuffix("_")
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    make = _KNOWN.get(name)
    activation = make(given) if make is not None else None
    if activation is None and name not in NEITHER and name not in MAXIMA:
        return None
    return name, activation


def _relu(_: dict[str, Any]) -> Activation:
    return Activation("ReLU", idempotent=True, kappa=1.0)


def _clamp(given: dict[str, Any]) -> Activation | None:
    low, high = given.get("min"), given.get("max")
    return _relu(given) if high is None and _zero(low) else _between(low, high)


def _hardtanh(given: dict[str, Any]) -> Activation | None:
    return _between(given.get("min_val", -1.0), given.get("max_val", 1.0))


def _between(low: Any, high: Any) -> Activation | None:
    if (low, high) == (0.0, 6.0):
        return Activation("ReLU6", idempotent=True)
    if isinstance(low, int | float) and isinstance(high, int | float) and low < high:
        return Activation("Hardtanh", {"min_val": float(low), "max_val": float(high)}, idempotent=True)
    return None


def _zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def _leaky(given: dict[str, Any]) -> Activation | None:
    slope = given.get("negative_slope", 0.01)
    return Activation("LeakyReLU", {"negative_slope": float(slope)}, kappa=1.0 + slope) if slope > -1 else None


def _softplus(given: dict[str, Any]) -> Activation | None:
    arguments = {"beta": float(given.get("beta", 1)), "threshold": float(given.get("threshold", 20))}
    # Above its threshold it is the identity, and off by exp(-threshold): with torch's own, by 1e-10 of the value.
    return Activation("Softplus", arguments, kappa=1.0) if arguments["threshold"] >= 20 else None


_KNOWN = {
    "relu": _relu,
    "clamp": _clamp,
    "hardtanh": _hardtanh,
    "clamp_min": lambda given: _relu(given) if _zero(given.get("min")) else None,
    "threshold": lambda given: _relu(given) if given.get("threshold") == given.get("value") == 0 else None,
    "gelu": lambda given: Activation("GELU", {"approximate": given.get("approximate", "none")}, kappa=1.0),
    "silu": lambda _: Activation("SiLU", kappa=1.0),
    "hardswish": lambda _: Activation("Hardswish", kappa=1.0),
    "leaky_relu": _leaky,
    # Its slope is learned: the new layer's own starts at torch's usual one.
    "_prelu_kernel": lambda _: Activation("PReLU", {"init": 0.25}, kappa=1.25),
    "softplus": _softplus,
}

#: What `recognise` gives, and the arguments that these take.
_ARGUMENTS: dict[str, set[str]] = {
    "ReLU": set(), "ReLU6": set(), "Hardtanh": {"min_val", "max_val"}, "GELU": {"approximate"}, "SiLU": set(),
    "Hardswish": set(), "LeakyReLU": {"negative_slope"}, "PReLU": {"init"}, "Softplus": {"beta", "threshold"},
}  # fmt: skip

#: Of these no numbers beyond their bounds come out, wherever these are.
_BOUNDED = {"ReLU6", "Hardtanh"}


def check(activation: Activation) -> None:
    """ValueError if this is not one of those that `recognise` gives, or lacks what it says it has.

    Plans come from files, and what is run from them must be known.
    """
    if plan_fields.text("name of an activation", activation.name) not in _ARGUMENTS:
        raise ValueError(f"activation {activation.name!r} is not one that a plan may hold")
    # No others: one that works in place, say, would change what other layers read.
    if unknown := set(activation.arguments) - _ARGUMENTS[activation.name]:
        raise ValueError(f"activation {activation.name!r} has arguments that no plan gives: {sorted(unknown)}")
    if activation.kappa is not None:
        plan_fields.number(f"kappa of activation {activation.name!r}", activation.kappa)
    x = torch.linspace(-64, 64, 257, dtype=torch.float64)
    with torch.no_grad():
        phi = activation.make().double()
        if activation.idempotent and not torch.equal(phi(phi(x)), phi(x)):
            raise ValueError(f"activation {activation.name!r} is not idempotent")
        if activation.kappa is None:
            return
        # A softplus is linear above its threshold, and off by 1e-10 of the value there.
        pairs = torch.allclose(phi(x) - phi(-x), activation.kappa * x, rtol=1e-9, atol=1e-12)
        if not pairs or activation.name in _BOUNDED:
            raise ValueError(f"activation {activation.name!r} does not carry numbers in pairs")
