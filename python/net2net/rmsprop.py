"""RMSProp as TensorFlow has it, with which the Inception networks were trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class RMSpropTF(Optimizer):
    """RMSProp with epsilon inside the root, as in TensorFlow's `tf.compat.v1.train.RMSPropOptimizer`:

        v <- alpha * v + (1 - alpha) * g**2
        m <- momentum * m + lr * g / sqrt(v + eps)
        w <- w - m

    torch's own divides by sqrt(v) + eps, starts v at 0 instead of 1, and multiplies by the learning rate after the
    momentum, so that a change of the rate takes effect at once. The names of the state are torch's: `square_avg` for v
    and `momentum_buffer` for m, of the parameter's shape and dtype, and `step`, a float32 scalar.

    Args:
        params: parameters or groups of them; their gradients must be dense.
        lr: learning rate, at least 0.
        alpha: the decay of v, in [0, 1).
        momentum: in [0, 1).
        eps: at least 0.
        initial: what v starts at; at least 0. 0 gives long first steps if eps is small.
        weight_decay: this share of the weight is added to its gradient; at least 0.

    Raises:
        ValueError: an argument is out of range; the message names it and its value.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.045,
        alpha: float = 0.9,
        momentum: float = 0.9,
        eps: float = 1.0,
        initial: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("initial", initial), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} (={value}) must be at least 0")
        for name, value in (("alpha", alpha), ("momentum", momentum)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} (={value}) must be in [0, 1)")
        options = {"alpha": alpha, "momentum": momentum, "eps": eps, "initial": initial, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step with the gradients that are there; `closure`, if given, makes them and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step(group, params)
        return loss

    def _step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state["square_avg"] = torch.full_like(p, group["initial"])
                state["momentum_buffer"] = torch.zeros_like(p)
            state["step"] += 1
        squares = [self.state[p]["square_avg"] for p in params]
        moments = [self.state[p]["momentum_buffer"] for p in params]
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        torch._foreach_mul_(squares, group["alpha"])
        torch._foreach_addcmul_(squares, grads, grads, 1 - group["alpha"])
        roots = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(moments, group["momentum"])
        torch._foreach_addcdiv_(moments, grads, roots, group["lr"])
        torch._foreach_sub_(params, moments)
