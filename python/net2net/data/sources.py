"""Image sets on disk, read by torchvision's own loaders: the ImageNet folder layout, Fashion-MNIST, CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from net2net.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST_SIDE, LARGEST_SIDE = 16, 64  # what the Inception network's "small" stem is made for
FASHION_MNIST_FILES = tuple(
    f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
CIFAR10_FOLDER = "cifar-10-batches-py"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A training and a validation set whose images are read when they are wanted.

    `train` and `val` are torchvision's datasets: of length N, with (image of PIL, label) at every index. `image_size`
    is the side in pixels that suits them: the shorter one of the first image, but at least 16 and at most 64.
    """

    name: str
    train: Any
    val: Any
    num_classes: int
    in_channels: int
    image_size: int


def open_images(path: str | Path) -> ImageSet:
    """The image set in the folder `path`; no image but the first is read.

    Three layouts are known, all torchvision's own: `train/<class>/*` and `val/<class>/*` (ImageFolder, the layout of
    ImageNet; images become RGB), `FashionMNIST/raw/*-ubyte` (grey) and `cifar-10-batches-py` (CIFAR10). The test sets
    of the latter two serve as validation sets.

    Raises:
        FileNotFoundError: the folder, or a part of the layout, is missing.
        NotADirectoryError: `path` is a file.
        ValueError: a class has no images, the classes of `train` and `val` differ, there are fewer than two
            classes, or the first image cannot be read.
        ModuleNotFoundError: torchvision is not installed; names the extra that brings it.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"path (={str(path)!r}) does not exist")
    if not root.is_dir():
        raise NotADirectoryError(f"path (={str(path)!r}) is not a folder")
    if (root / "FashionMNIST").is_dir():
        return _fashion_mnist(root)
    if (root / CIFAR10_FOLDER).is_dir():
        return _cifar10(root)
    if (root / "train").is_dir() or (root / "val").is_dir():
        return _image_folder(root)
    found = ", ".join(sorted(child.name for child in root.iterdir())[:5]) or "nothing"
    raise FileNotFoundError(
        f"path (={str(path)!r}) must hold train/ and val/ (ImageFolder), FashionMNIST/raw/ or {CIFAR10_FOLDER}/; "
        f"it holds {found}"
    )


def read(images: Any, index: int) -> tuple[Image, int]:
    """Image and label number `index` of a torchvision dataset; ValueError, with the file's name, if it is broken."""
    try:
        return images[index]
    except OSError as error:  # what PIL raises for a broken file
        raise ValueError(f"cannot read the image {images.samples[index][0]}: {error}") from error


def _image_folder(root: Path) -> ImageSet:
    classes = {split: _classes(root, split) for split in ("train", "val")}
    if classes["train"] != classes["val"]:
        only = sorted(set(classes["train"]) ^ set(classes["val"]))
        raise ValueError(
            f"path (={str(root)!r}): the classes of train/ ({len(classes['train'])}) and val/ "
            f"({len(classes['val'])}) differ, only one of them has {', '.join(only[:5])}"
        )
    if len(classes["train"]) < 2:
        raise ValueError(f"path (={str(root)!r}): train/ must hold at least 2 classes, not {classes['train']}")
    folder = require("torchvision.datasets").ImageFolder

    def load(split: str) -> Any:
        try:
            return folder(root / split)
        except FileNotFoundError as error:  # torchvision's message names the classes
            raise ValueError(f"path (={str(root)!r}): no images in a class of {split}/. {error}") from error

    return _image_set(root.name, load, "train", "val", len(classes["train"]))


def _classes(root: Path, split: str) -> list[str]:
    if not (root / split).is_dir():
        raise FileNotFoundError(f"path (={str(root)!r}) has no folder {split}/")
    names = sorted(child.name for child in (root / split).iterdir() if child.is_dir())
    if not names:
        raise FileNotFoundError(f"path (={str(root)!r}): {split}/ has no class folders")
    return names


def _fashion_mnist(root: Path) -> ImageSet:
    raw = root / "FashionMNIST" / "raw"
    missing = [name for name in FASHION_MNIST_FILES if not (raw / name).is_file()]
    if missing:
        raise FileNotFoundError(f"path (={str(root)!r}): FashionMNIST/raw lacks {', '.join(missing)}")
    kind = require("torchvision.datasets").FashionMNIST

    def load(train: bool) -> Any:
        split = "train" if train else "t10k"
        try:
            images = kind(root, train=train, download=False)
        except (ValueError, RuntimeError, AssertionError) as error:  # of fewer numbers than the header says
            raise ValueError(
                f"path (={str(root)!r}): the {split} files of FashionMNIST/raw are damaged: {error}"
            ) from error
        _check_labels(root, f"the {split} files of FashionMNIST/raw", images, 10)
        return images

    return _image_set("FashionMNIST", load, True, False, 10)


def _check_labels(root: Path, what: str, images: Any, num_classes: int) -> None:
    """ValueError unless every image has a label, and every label is that of a class."""
    labels = torch.as_tensor(images.targets)
    if len(images.data) != len(labels):
        raise ValueError(f"path (={str(root)!r}): {what} have {len(images.data)} images and {len(labels)} labels")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"path (={str(root)!r}): {what} have labels from {int(labels.min())} to {int(labels.max())}, but there are "
            f"{num_classes} classes, from 0 on"
        )


def _cifar10(root: Path) -> ImageSet:
    kind = require("torchvision.datasets").CIFAR10

    def load(train: bool) -> Any:
        try:
            return kind(root, train=train, download=False)
        except RuntimeError as error:  # torchvision's message is about downloads
            raise ValueError(
                f"path (={str(root)!r}): {CIFAR10_FOLDER} is incomplete or damaged: a file is missing, or its checksum "
                "is not that of the published one"
            ) from error

    return _image_set("CIFAR10", load, True, False, 10)


def _image_set(name: str, load: Callable[[Any], Any], train: Any, val: Any, num_classes: int) -> ImageSet:
    training, validation = load(train), load(val)
    first = read(training, 0)[0]
    side = min(max(min(first.size), SMALLEST_SIDE), LARGEST_SIDE)
    return ImageSet(name, training, validation, num_classes, len(first.getbands()), side)
