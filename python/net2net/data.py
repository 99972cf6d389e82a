"""Image classification sets as plain tensors: scikit-learn's handwritten digits, and folders of images.

scikit-learn and torchvision are extras, imported only by the functions that need them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from net2net.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST_SIDE, LARGEST_SIDE = 16, 64  # what the Inception network's "small" stem is made for
FASHION_MNIST_FILES = tuple(
    f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


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

    Two layouts are known, both torchvision's own: `train/<class>/*` and `val/<class>/*` (ImageFolder; images
    become RGB), and `FashionMNIST/raw/*-ubyte` (grey; its test set serves as the validation set).

    Args:
        path: the folder that holds `train` and `val`, or `FashionMNIST`.
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
    root = Path(path)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size (={image_size}) must be at least 1")
    if not root.exists():
        raise FileNotFoundError(f"path (={str(path)!r}) does not exist")
    if not root.is_dir():
        raise NotADirectoryError(f"path (={str(path)!r}) is not a folder")
    if (root / "FashionMNIST").is_dir():
        return _fashion_mnist(root, image_size, seed)
    if (root / "train").is_dir() or (root / "val").is_dir():
        return _image_folder(root, image_size, seed)
    found = ", ".join(sorted(child.name for child in root.iterdir())[:5]) or "nothing"
    raise FileNotFoundError(
        f"path (={str(path)!r}) must hold train/ and val/ (ImageFolder), or FashionMNIST/raw/; it holds {found}"
    )


def _image_folder(root: Path, image_size: int | None, seed: int) -> Dataset:
    classes = {split: _classes(root, split) for split in ("train", "val")}
    if classes["train"] != classes["val"]:
        only = sorted(set(classes["train"]) ^ set(classes["val"]))
        raise ValueError(
            f"path (={str(root)!r}): the classes of train/ ({len(classes['train'])}) and val/ "
            f"({len(classes['val'])}) differ, only one of them has {', '.join(only[:5])}"
        )
    if len(classes["train"]) < 2:
        raise ValueError(f"path (={str(root)!r}): train/ must hold at least 2 classes, not {classes['train']}")
    sets = require("torchvision.datasets")
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for split in ("train", "val"):
        try:
            listed = sets.ImageFolder(root / split)
        except FileNotFoundError as error:  # torchvision's message names the classes
            raise ValueError(f"path (={str(root)!r}): no images in a class of {split}/. {error}") from error
        if image_size is None:
            image_size = _default_side(*_read_image(listed, 0).size)
        pixels = [_square(_read_image(listed, i), image_size) for i in range(len(listed))]
        images.append(torch.stack(pixels).float() / 255)
        labels.append(torch.tensor(listed.targets))
    num_classes = len(classes["train"])
    return _dataset(root.name, images[0], labels[0], images[1], labels[1], num_classes=num_classes, seed=seed)


def _fashion_mnist(root: Path, image_size: int | None, seed: int) -> Dataset:
    raw = root / "FashionMNIST" / "raw"
    missing = [name for name in FASHION_MNIST_FILES if not (raw / name).is_file()]
    if missing:
        raise FileNotFoundError(f"path (={str(root)!r}): FashionMNIST/raw lacks {', '.join(missing)}")
    sets = require("torchvision.datasets")
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for train in (True, False):
        part = sets.FashionMNIST(root, train=train, download=False)
        x = part.data.unsqueeze(1).float() / 255
        side = image_size or _default_side(x.shape[3], x.shape[2])
        if side != x.shape[-1]:
            x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        images.append(x)
        labels.append(part.targets.long())
    return _dataset("FashionMNIST", images[0], labels[0], images[1], labels[1], num_classes=10, seed=seed)


def _classes(root: Path, split: str) -> list[str]:
    if not (root / split).is_dir():
        raise FileNotFoundError(f"path (={str(root)!r}) has no folder {split}/")
    names = sorted(child.name for child in (root / split).iterdir() if child.is_dir())
    if not names:
        raise FileNotFoundError(f"path (={str(root)!r}): {split}/ has no class folders")
    return names


def _read_image(listed: Any, index: int) -> Image:
    """Image `index` of a torchvision ImageFolder."""
    try:
        return listed[index][0]
    except OSError as error:  # what PIL raises for a broken file
        raise ValueError(f"cannot read the image {listed.samples[index][0]}: {error}") from error


def _square(image: Image, side: int) -> Tensor:
    """The middle square of an image, resized to `side`: uint8 `[C, side, side]`."""
    functional = require("torchvision.transforms.v2.functional")
    pixels = functional.pil_to_tensor(image)
    if min(pixels.shape[1:]) != side:
        pixels = functional.resize(pixels, [side], antialias=True)
    return functional.center_crop(pixels, [side, side])


def _default_side(width: int, height: int) -> int:
    return min(max(min(width, height), SMALLEST_SIDE), LARGEST_SIDE)


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
