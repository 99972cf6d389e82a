"""Augmentation: torchvision's transforms (v2) for images that are read, and the same for batches that are in memory.

Pixels become (x - 1/2) / (1/2), so between -1 and 1, as in Inception's own preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from net2net.extras import require

#: What is done to training images. inception: a random part of 8 to 100 % of the area and of aspect 3/4 to 4/3, flip,
#: colours. small: moved by up to an eighth of the side, flip. shift: moved alone, for what must not be mirrored.
KINDS = ("inception", "small", "shift", "none")
MIDDLE = 0.875  # "inception" evaluates on this share of the side, as is usual since the first Inception


def train_transform(kind: str, size: int) -> Callable[[Any], Tensor]:
    """From an image of PIL to float32 `[C, size, size]`; `kind` is one of `KINDS`. Draws from torch's generator."""
    v2 = _v2(kind)
    if kind == "inception":
        changes = [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=32 / 255, contrast=0.5, saturation=0.5, hue=0.2),
        ]
    else:
        changes = _square(v2, size, size)
        if kind != "none":
            changes.append(v2.RandomCrop(size, padding=margin(size), padding_mode="edge"))
        if kind == "small":
            changes.append(v2.RandomHorizontalFlip())
    return v2.Compose([v2.PILToTensor(), *changes, *_numbers(v2)])


def eval_transform(kind: str, size: int) -> Callable[[Any], Tensor]:
    """As `train_transform`, with nothing random: the middle of the image."""
    v2 = _v2(kind)
    side = round(size / MIDDLE) if kind == "inception" else size
    return v2.Compose([v2.PILToTensor(), *_square(v2, side, size), *_numbers(v2)])


def margin(size: int) -> int:
    """By so many pixels "small" and "shift" move an image of this side at most: 4 for CIFAR's 32."""
    return size // 8


def _v2(kind: str) -> Any:
    if kind not in KINDS:
        raise ValueError(f"augment (={kind!r}) must be one of {', '.join(KINDS)}")
    return require("torchvision.transforms.v2", "train")


def _square(v2: Any, side: int, size: int) -> list[Any]:
    return [v2.Resize(side, antialias=True), v2.CenterCrop(size)]


def _numbers(v2: Any) -> list[Any]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]


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


def flip(x: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the images of `x` `[N, C, H, W]` where `mirrored`, bool `[N]`, says so."""
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)
