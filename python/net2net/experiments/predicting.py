"""A student that learns to predict its teacher's hidden layers (the paper's section 2.1), for the usual loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import net2net

#: The modules whose outputs are predicted: the last one of each stage, where the channels alone differ.
LAYERS = ("body.inception3c", "body.inception4e", "body.inception5c")


class Predicting(nn.Module):
    """`student` and the heads of a `FeaturePrediction`, as one module that a loop trains and checkpoints hold.

    It returns the student's logits. In train mode, their gradient also carries that of the prediction's loss, so that
    a loop which knows nothing of it minimises the sum of both. Of a mini-batch in several parts, each part's loss
    counts by its share of the images, as it does in the loop.

    Args:
        teacher: the trained network, run in eval mode. It is no part of the state dict.
        student: of the same kind.
        example_inputs: images.
        seed: of the heads.
        batch_size: images in a whole mini-batch; None: as many as the module is called with.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example_inputs: Tensor,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        pairs = {name: name for name in LAYERS}
        self.student = student
        self.prediction = net2net.FeaturePrediction(teacher.eval(), student, pairs, example_inputs, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.student(x)
        if not self.training:
            return logits
        share = len(x) / (self.batch_size or len(x))
        with_loss: Tensor = _WithLoss.apply(logits, self.prediction(x) * share)
        return with_loss


class _WithLoss(torch.autograd.Function):
    """The first argument; backwards, the second, a loss, gets its gradient of 1."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, loss: Tensor) -> Tensor:
        ctx.like = loss
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, torch.ones_like(ctx.like)
