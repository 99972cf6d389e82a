"""The training loop: plain torch, deterministic by seed, the same for teachers, students and baselines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net2net.data import Dataset


@dataclass
class History:
    """What a training run measured: one entry per list for every evaluation, the first before any step.

    Accuracies are shares in [0, 1], losses mean cross entropies, both in eval mode. The training figures come
    from a fixed sample of the training set, unshifted. `seconds` is the wall time of the training so far,
    without the evaluations.
    """

    step: list[int] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def steps_to_reach(self, val_accuracy: float) -> int | None:
        """The first evaluated step with at least this validation accuracy; None if there is none."""
        return next((s for s, a in zip(self.step, self.val_accuracy, strict=True) if a >= val_accuracy), None)


def rmsprop(parameters: Iterable[nn.Parameter], lr: float, *, eps: float = 1.0) -> torch.optim.RMSprop:
    """RMSProp with the settings that Inception networks are known for: decay 0.9, momentum 0.9, epsilon 1.0.

    TensorFlow, where these come from, divides by sqrt(v + eps), torch by sqrt(v) + eps. With eps = 1 both are 1 for
    small gradients and sqrt(v) for large ones, and between them torch's is larger by a factor of sqrt(2) at most.
    So large an epsilon matters after growth: new layers have v = 0, and where epsilon is small the first step of
    each of their weights is sqrt(1 / (1 - 0.9)) = 3 times the rate, however small its gradient. On the handwritten
    digits a grown network fell from 0.99 to 0.65-0.71 within 20 steps with eps = 1e-8, and by at most 0.02 with 1.
    """
    return torch.optim.RMSprop(parameters, lr=lr, alpha=0.9, momentum=0.9, eps=eps, foreach=True)


def train(
    model: nn.Module,
    dataset: Dataset,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    batch_size: int = 32,
    seed: int = 0,
    final_lr: float = 1.0,
    max_shift: int = 0,
    eval_every: int = 20,
    eval_images: int = 2000,
    on_step: Callable[[int], None] | None = None,
) -> History:
    """Train `model` in place by cross entropy, on the device that it is on, and leave it in train mode.

    Args:
        model: takes `[batch_size, in_channels, H, W]` and returns logits `[batch_size, num_classes]`.
        dataset: its tensors may be on another device; they are copied to the model's once.
        optimizer: over the parameters of `model`. Training goes on from whatever state it has.
        steps: number of mini-batches; 0 only evaluates.
        batch_size: images per mini-batch, at most the size of the training set.
        seed: fixes the order of the images and their shifts, independently of torch's global generators.
        final_lr: the learning rates fall along a half cosine to this share of what they are; 1 keeps them. They
            are put back at the end.
        max_shift: every image of a batch is moved by up to so many pixels in each direction; 0 for none.
        eval_every: steps between two evaluations; the first is before any step, the last after all of them.
        eval_images: at most so many validation images, and as many training images, are evaluated.
        on_step: called with the number of steps done, after each.

    Returns:
        The accuracies and losses along the way.

    Raises:
        ValueError: an argument is out of range; the message names it and its value.
        FloatingPointError: the loss is no longer finite.
    """
    _check(dataset, steps, batch_size, final_lr, max_shift, eval_every, eval_images)
    device = next(model.parameters()).device
    dataset = dataset.to(device)
    sample = min(eval_images, len(dataset.val_x))
    train_sample = dataset.train_x[:sample], dataset.train_y[:sample]
    val_sample = dataset.val_x[:sample], dataset.val_y[:sample]
    history = History()
    initial_lrs = [group["lr"] for group in optimizer.param_groups]
    batches = _batches(len(dataset.train_x), batch_size, max_shift, torch.Generator().manual_seed(seed))
    seconds = 0.0
    for step in range(steps + 1):
        if step % eval_every == 0 or step == steps:
            train_accuracy, train_loss = evaluate(model, *train_sample)
            val_accuracy, val_loss = evaluate(model, *val_sample)
            if not math.isfinite(train_loss + val_loss):
                raise FloatingPointError(f"after {step} steps the losses are {train_loss} and {val_loss} (validation)")
            history.step.append(step)
            history.train_accuracy.append(train_accuracy)
            history.train_loss.append(train_loss)
            history.val_accuracy.append(val_accuracy)
            history.val_loss.append(val_loss)
            history.seconds.append(seconds)
        if step == steps:
            break
        started = time.perf_counter()
        model.train()
        chosen, offsets = next(batches)
        x = shift(dataset.train_x[chosen.to(device)], offsets.to(device), max_shift)
        y = dataset.train_y[chosen.to(device)]
        for group, lr in zip(optimizer.param_groups, initial_lrs, strict=True):
            group["lr"] = lr * cosine(step / steps, final_lr)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        seconds += time.perf_counter() - started
        if on_step is not None:
            on_step(step + 1)
    for group, lr in zip(optimizer.param_groups, initial_lrs, strict=True):
        group["lr"] = lr
    model.train()
    return history


def cosine(progress: float, final: float) -> float:
    """From 1 at `progress` 0 to `final` at 1, along half a period of a cosine."""
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 256) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross entropy of `model` in eval mode on `x` `[N, C, H, W]`, `y` int64 `[N]`.

    The model's modes are put back as they were.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=x.device)
    loss = torch.zeros((), dtype=torch.float64, device=x.device)
    for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        logits = model(images)
        correct += (logits.argmax(dim=1) == labels).sum()
        loss += F.cross_entropy(logits.double(), labels, reduction="sum")
    for module, mode in training.items():
        module.training = mode
    return correct.item() / len(x), loss.item() / len(x)


def shift(x: Tensor, offsets: Tensor, max_shift: int) -> Tensor:
    """Move every image of `x` `[N, C, H, W]` by its own offset, repeating the pixels at the edge.

    `offsets` is int64 `[N, 2]`, rows (vertical, horizontal) in `[0, 2 * max_shift]`; `max_shift` leaves an
    image where it is.
    """
    if max_shift == 0:
        return x
    height, width = x.shape[2:]
    padded = F.pad(x, [max_shift] * 4, mode="replicate")
    rows = offsets[:, :1] + torch.arange(height, device=x.device)  # [N, H]
    columns = offsets[:, 1:] + torch.arange(width, device=x.device)  # [N, W]
    images = torch.arange(len(x), device=x.device)[:, None, None]
    # Indexing with index arrays around a slice puts the slice last: [N, H, W, C].
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _batches(
    images: int, batch_size: int, max_shift: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless mini-batches: the indices `[batch_size]` of its images and their shifts `[batch_size, 2]`.

    Every epoch is a new permutation; the few images left over at its end are not used in it.
    """
    while True:
        order = torch.randperm(images, generator=generator)
        for chosen in order[: images - images % batch_size].split(batch_size):
            yield chosen, torch.randint(2 * max_shift + 1, (batch_size, 2), generator=generator)


def _check(
    dataset: Dataset,
    steps: int,
    batch_size: int,
    final_lr: float,
    max_shift: int,
    eval_every: int,
    eval_images: int,
) -> None:
    for name, value, least in (
        ("steps", steps, 0),
        ("batch_size", batch_size, 1),
        ("max_shift", max_shift, 0),
        ("eval_every", eval_every, 1),
        ("eval_images", eval_images, 1),
    ):
        if value < least:
            raise ValueError(f"{name} (={value}) must be at least {least}")
    if not 0 <= final_lr <= 1:
        raise ValueError(f"final_lr (={final_lr}) must be in [0, 1]")
    if batch_size > len(dataset.train_x):
        raise ValueError(f"batch_size (={batch_size}) must be at most the training set's {len(dataset.train_x)} images")
