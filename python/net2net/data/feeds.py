"""What feeds the training loop: mini-batches from any place of any epoch on, and samples to evaluate on.

`MemoryFeed` has all images in memory, on the device if they are there, and changes whole batches at once. `LoaderFeed`
reads and changes one image after the other, in worker processes. Both draw what is random about an image from a
generator of (seed, epoch, image), so what comes out depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from net2net.data.augment import flip, shift
from net2net.data.memory import Dataset
from net2net.data.order import Order, generator, seeded
from net2net.data.sources import ImageSet, read

Split = Literal["train", "val"]
Batch = tuple[Tensor, Tensor]
EVAL_BATCH = 256


class Feed(Protocol):
    """What the loop asks of its data. Images are float32 `[N, C, H, W]`, labels int64 `[N]`, on any device."""

    @property
    def batches_per_epoch(self) -> int:
        """Mini-batches in an epoch."""

    @property
    def counts(self) -> tuple[int, int]:
        """Images in the training and in the validation set."""

    def batches(self, epoch: int, batch: int) -> Iterator[Batch]:
        """This process's share of every mini-batch, for ever, from mini-batch `batch` of `epoch` on."""

    def sample(self, split: Split) -> Iterable[Batch]:
        """This process's share of the images to evaluate on, the same every time, with nothing random done to them."""


class MemoryFeed:
    """Batches of a `Dataset`, on the device that its tensors are on.

    Args:
        dataset: the images.
        batch_size: images per mini-batch, of all processes together; at most the size of the training set.
        seed: fixes the order of the images, their shifts and flips.
        max_shift: every image is moved by up to so many pixels in each direction, its edge repeated; 0 for none.
        flips: mirror every other image, by chance.
        eval_images: at most so many validation images, and as many training images, are evaluated; 0 for all.
        rank: the number of this process.
        ranks: how many processes share the mini-batches.

    Raises:
        ValueError: an argument is out of range; the message names it and its value.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        max_shift: int = 0,
        flips: bool = False,
        eval_images: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        for name, value in (("max_shift", max_shift), ("eval_images", eval_images)):
            if value < 0:
                raise ValueError(f"{name} (={value}) must be at least 0")
        self.order = Order(len(dataset.train_x), batch_size, seed, rank, ranks)
        self.dataset = dataset
        self.max_shift = max_shift
        self.flips = flips
        self.eval_images = eval_images

    @property
    def batches_per_epoch(self) -> int:
        return self.order.batches_per_epoch

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.dataset.train_y), len(self.dataset.val_y)

    def batches(self, epoch: int, batch: int) -> Iterator[Batch]:
        x, y, device = self.dataset.train_x, self.dataset.train_y, self.dataset.train_x.device
        drawn = None
        for now, chosen in self.order.batches(epoch, batch):
            if now != drawn:  # what happens to each image in this epoch
                drawn, random = now, generator(self.order.seed, "changes", now)
                offsets = torch.randint(2 * self.max_shift + 1, (len(x), 2), generator=random)
                mirrored = torch.rand(len(x), generator=random) < 0.5
            images = shift(x[chosen.to(device)], offsets[chosen].to(device), self.max_shift)
            if self.flips:
                images = flip(images, mirrored[chosen].to(device))
            yield images, y[chosen.to(device)]

    def sample(self, split: Split) -> Iterable[Batch]:
        data = self.dataset
        x, y = (data.train_x, data.train_y) if split == "train" else (data.val_x, data.val_y)
        # The set is shuffled: its first images are a random sample. As many of both, so that they can be compared.
        share = slice(self.order.rank, min(self.eval_images or len(y), len(data.val_y)), self.order.ranks)
        return zip(x[share].split(EVAL_BATCH), y[share].split(EVAL_BATCH), strict=True)


class LoaderFeed:
    """Batches of an `ImageSet`, read by worker processes, on the CPU.

    Args:
        images: the sets.
        batch_size: images per mini-batch, of all processes together; at most the size of the training set.
        train_transform: from an image of PIL to float32 `[C, H, W]`; may draw from torch's global generator.
        eval_transform: the same for evaluation, without anything random.
        seed: fixes the order of the images and what `train_transform` draws.
        workers: processes that read; 0 reads in this one. The batches are the same.
        eval_images: at most so many validation images, and as many training images, are evaluated; 0 for all.
        pin_memory: copy batches to pinned memory, for a GPU.
        rank: the number of this process.
        ranks: how many processes share the mini-batches.

    Raises:
        ValueError: an argument is out of range; the message names it and its value.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        train_transform: Callable[[Any], Tensor],
        eval_transform: Callable[[Any], Tensor],
        *,
        seed: int = 0,
        workers: int = 0,
        eval_images: int = 0,
        pin_memory: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        for name, value in (("workers", workers), ("eval_images", eval_images)):
            if value < 0:
                raise ValueError(f"{name} (={value}) must be at least 0")
        self.order = Order(len(images.train), batch_size, seed, rank, ranks)
        self.images = images
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.eval_images = eval_images
        self.options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin_memory, "collate_fn": _together}

    @property
    def batches_per_epoch(self) -> int:
        return self.order.batches_per_epoch

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.images.train), len(self.images.val)

    def batches(self, epoch: int, batch: int) -> Iterator[Batch]:
        images = _Transformed(self.images.train, self.train_transform, self.order.seed)
        places = _Places(self.order, epoch, batch)
        # Its own generator: a loader draws a seed for its workers, and from the global one that would change the run.
        return _unbroken(DataLoader(images, batch_sampler=places, generator=torch.Generator(), **self.options))

    def sample(self, split: Split) -> Iterable[Batch]:
        part = self.images.train if split == "train" else self.images.val
        count = min(self.eval_images or len(part), len(self.images.val), len(part))
        # Folders are listed class by class: a random sample, always the same.
        chosen = torch.randperm(len(part), generator=generator("sample", split))[:count].sort().values
        places = [(0, index) for index in chosen[self.order.rank :: self.order.ranks].tolist()]
        batches = [places[first : first + EVAL_BATCH] for first in range(0, len(places), EVAL_BATCH)]
        images = _Transformed(part, self.eval_transform, self.order.seed)
        return _unbroken(DataLoader(images, batch_sampler=batches, generator=torch.Generator(), **self.options))


class _Places:
    """For ever, from one place on: the (epoch, image) of every image of a mini-batch."""

    def __init__(self, order: Order, epoch: int, batch: int) -> None:
        self.order, self.epoch, self.batch = order, epoch, batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch, chosen in self.order.batches(self.epoch, self.batch):
            yield [(epoch, index) for index in chosen.tolist()]


def _together(images: list[tuple[Tensor, int] | ValueError]) -> Batch | ValueError:
    """A mini-batch; or what is wrong with an image of it: what a worker raises has its whole traceback as text."""
    for image in images:
        if isinstance(image, ValueError):
            return image
    batch: Batch = tuple(default_collate(images))
    return batch


def _unbroken(loader: Iterable[Batch | ValueError]) -> Iterator[Batch]:
    """Raises what `_together` has found."""
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        yield batch


class _Transformed(TorchDataset[tuple[Tensor, int] | ValueError]):
    """Images by (epoch, index), transformed with the generator that belongs to the place; or why one cannot be read."""

    def __init__(self, images: Any, transform: Callable[[Any], Tensor], seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int] | ValueError:
        try:
            image, label = read(self.images, place[1])
        except ValueError as error:
            return error
        with seeded(self.seed, "image", *place):
            return self.transform(image), label
