"""The optimizers that `net2net train` offers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from net2net.rmsprop import RMSpropTF

#: rmsprop has epsilon inside the root (TensorFlow), rmsprop-torch outside of it.
KINDS = ("rmsprop", "rmsprop-torch", "sgd", "adamw")


def rmsprop(parameters: Iterable[nn.Parameter], lr: float, *, eps: float = 1.0) -> torch.optim.RMSprop:
    """torch's RMSProp with the settings that Inception networks are known for: decay 0.9, momentum 0.9, epsilon 1.0.

    TensorFlow, where these come from, divides by sqrt(v + eps) (`RMSpropTF` does), torch by sqrt(v) + eps. With eps = 1
    both are 1 for small gradients and sqrt(v) for large ones, and between them torch's is larger by a factor of sqrt(2)
    at most.
    So large an epsilon matters after growth: new layers have v = 0, and where epsilon is small the first step of
    each of their weights is sqrt(1 / (1 - 0.9)) = 3 times the rate, however small its gradient. On the handwritten
    digits a grown network fell from 0.99 to 0.65-0.71 within 20 steps with eps = 1e-8, and by at most 0.02 with 1.
    """
    return torch.optim.RMSprop(parameters, lr=lr, alpha=0.9, momentum=0.9, eps=eps, foreach=True)


def make(
    kind: str,
    model: nn.Module,
    lr: float,
    *,
    momentum: float = 0.9,
    decay: float = 0.9,
    eps: float | None = None,
    weight_decay: float = 0.0,
) -> Optimizer:
    """An optimizer over all parameters of `model` that are trained.

    Args:
        kind: one of `KINDS`.
        model: has at least one parameter with `requires_grad`.
        lr: learning rate.
        momentum: of RMSProp and SGD; AdamW's first beta.
        decay: of RMSProp's squared gradients; AdamW keeps its second beta of 0.999.
        eps: None takes 1.0 for RMSProp, as for Inception, and 1e-8 for AdamW; SGD has none.
        weight_decay: of weights; biases and the parameters of normalisations are left out.

    Raises:
        ValueError: `kind` is not known, or `model` has nothing to train.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"model (={type(model).__name__}) has no parameter that is to be trained")
    groups = [g for g in _groups(trained, weight_decay) if g["params"]]
    if kind == "rmsprop":
        return RMSpropTF(groups, lr, alpha=decay, momentum=momentum, eps=1.0 if eps is None else eps)
    if kind == "rmsprop-torch":
        eps = 1.0 if eps is None else eps
        return torch.optim.RMSprop(groups, lr, alpha=decay, momentum=momentum, eps=eps, foreach=True)
    if kind == "sgd":
        return torch.optim.SGD(groups, lr, momentum=momentum, foreach=True)
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr, betas=(momentum, 0.999), eps=1e-8 if eps is None else eps, foreach=True)
    raise ValueError(f"optimizer (={kind!r}) must be one of {', '.join(KINDS)}")


def _groups(trained: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
