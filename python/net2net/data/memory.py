"""Image classification sets as plain tensors, whole in memory: scikit-learn's handwritten digits, folders of images.

scikit-learn and torchvision are extras, imported only by the functions that need them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from net2net.data.sources import open_images, read
from net2net.extras import require


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a validation set, whole, in memory.

    `train_x` and `val_x` are float32 `[N, in_channels, H, W]`, normalised by the training set's mean and standard
    deviation per channel; `train_y` and `val_y` are int64 `[N]` with values in `[0, num_classes)`. Both sets are
    shuffled, so that the first n images of either are a random sample.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    num_classes: int
    in_channels: int

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.train_x.shape[2], self.train_x.shape[3]

    def to(self, device: torch.device | str) -> Dataset:
        """The same set with its tensors on `device`."""
        return replace(
            self,
            train_x=self.train_x.to(device),
            train_y=self.train_y.to(device),
            val_x=self.val_x.to(device),
            val_y=self.val_y.to(device),
        )


def digits(image_size: int = 16, *, val_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """scikit-learn's handwritten digits: 1797 real grey images of 8x8 pixels, 10 classes.

    Args:
        image_size: the images are resized to this side in pixels, bilinearly.
        val_fraction: share of each class that goes into the validation set, strictly between 0 and 1.
        seed: fixes the split and the order.

    Raises:
        ValueError: `image_size` or `val_fraction` is out of range.
        ModuleNotFoundError: scikit-learn is not installed; names the extra that brings it.
    """
    if image_size < 1:
        raise ValueError(f"image_size (={image_size}) must be at least 1")
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction (={val_fraction}) must be strictly between 0 and 1")
    raw = require("sklearn.datasets").load_digits()
    x = torch.from_numpy(raw.images).float().unsqueeze(1) / 16  # grey levels 0..16
    y = torch.from_numpy(raw.target).long()
    x = F.interpolate(x, size=(image_size, image_size), mode="bilinear", align_corners=False)
    train, val = _stratified_split(y, val_fraction, seed)
    return _dataset("digits", x[train], y[train], x[val], y[val], num_classes=10, seed=seed)


def folder(path: str | Path, image_size: int | None = None, *, seed: int = 0) -> Dataset:
    """A folder of images, read whole into memory as float32.

    The layouts are those of `open_images`.

    Args:
        path: the folder that holds `train` and `val`, `FashionMNIST` or `cifar-10-batches-py`.
        image_size: side in pixels. The shorter side of an image is resized to it and the middle square kept.
            None takes the shorter side of the first training image, but at least 16 and at most 64.
        seed: fixes the order of the images.

    Raises:
        FileNotFoundError: the folder, or a part of the layout, is missing.
        NotADirectoryError: `path` is a file.
        ValueError: a class has no images, the classes of `train` and `val` differ, there are fewer than two
            classes, an image cannot be read, or `image_size` is out of range.
        ModuleNotFoundError: torchvision is not installed; names the extra that brings it.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size (={image_size}) must be at least 1")
    images = open_images(path)
    size = image_size or images.image_size
    train, val = _pixels(images.train, size), _pixels(images.val, size)
    return _dataset(images.name, *train, *val, num_classes=images.num_classes, seed=seed)


def _pixels(images: Any, size: int) -> tuple[Tensor, Tensor]:
    """All images, as float32 `[N, C, size, size]` in [0, 1], and their labels, int64 `[N]`."""
    functional = require("torchvision.transforms.v2.functional")
    squares, labels = [], []
    for index in range(len(images)):
        image, label = read(images, index)
        pixels = functional.pil_to_tensor(image)
        if min(pixels.shape[1:]) != size:
            pixels = functional.resize(pixels, [size], antialias=True)
        squares.append(functional.center_crop(pixels, [size, size]))
        labels.append(int(label))
    return torch.stack(squares).float() / 255, torch.tensor(labels)


def _stratified_split(y: Tensor, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the two sets; every class gives the same share, and at least one image, to each."""
    generator = torch.Generator().manual_seed(seed)
    train, val = [], []
    for label in y.unique().tolist():
        members = (y == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(round(len(members) * val_fraction), 1), len(members) - 1)
        val.append(members[:count])
        train.append(members[count:])
    return torch.cat(train), torch.cat(val)


def _dataset(
    name: str, train_x: Tensor, train_y: Tensor, val_x: Tensor, val_y: Tensor, *, num_classes: int, seed: int
) -> Dataset:
    # Folders are listed class by class; shuffled, the first n images of either set are a random sample.
    generator = torch.Generator().manual_seed(seed)
    train_order, val_order = (torch.randperm(len(y), generator=generator) for y in (train_y, val_y))
    train_x, train_y = train_x[train_order], train_y[train_order]
    val_x, val_y = val_x[val_order], val_y[val_order]
    mean = train_x.mean(dim=(0, 2, 3), keepdim=True)
    std = train_x.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6)  # a set of blank images stays finite
    return Dataset(
        name,
        (train_x - mean) / std,
        train_y,
        (val_x - mean) / std,
        val_y,
        num_classes=num_classes,
        in_channels=train_x.shape[1],
    )
