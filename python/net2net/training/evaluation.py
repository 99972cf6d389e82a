"""Accuracy and loss of a model on a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net2net.training import distributed

PRECISIONS = ("float32", "bfloat16")


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str = "float32"
) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross entropy of `model` in eval mode.

    Args:
        model: returns logits `[N, num_classes]`. Its modes are put back as they were.
        batches: images `[N, C, H, W]` and labels int64 `[N]`, on any device; with several processes, each one's share.
        precision: "float32" for the model as it is, "bfloat16" for autocast.
    """
    device = next(model.parameters()).device
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # correct, loss, images
    with eval_mode(model):
        for images, labels in batches:
            x, y = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with autocast(device, precision):
                logits = model(x)
            sums[0] += (logits.argmax(dim=1) == y).sum()
            sums[1] += F.cross_entropy(logits.double(), y, reduction="sum")
            sums[2] += len(y)
    correct, loss, count = distributed.add(sums).tolist()
    return correct / count, loss / count


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """bfloat16 where torch thinks it safe, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """All of `model` is in eval mode meanwhile; afterwards every module is in the mode that it was in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
