"""The order of the images: which of them each mini-batch has, as a pure function of (seed, epoch, mini-batch).

Nothing here depends on how many processes or workers there are, nor on what was drawn before, so a run that was
stopped anywhere goes on with the very images that it would have had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


def key(*parts: int | str) -> int:
    """A seed for (`parts`): a hash, so that neighbouring epochs and images have nothing in common. In [0, 2**63)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, seeded with the key of `parts`."""
    return torch.Generator().manual_seed(key(*parts))


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """torch's global generator on the CPU, which torchvision's transforms draw from, is that of `parts` meanwhile."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(key(*parts))  # torch.manual_seed would seed the GPUs' generators too
    try:
        yield
    finally:
        torch.set_rng_state(before)


@dataclass(frozen=True)
class Order:
    """Every epoch is a new permutation of all `images`; the few left over at its end are not used in it.

    Attributes:
        images: in the training set.
        batch_size: images per mini-batch, of all processes together.
        seed: of the permutations.
        rank: this process; it has the images `rank * batch_size / ranks` and following of every mini-batch.
        ranks: the number of processes.

    Raises:
        ValueError: an attribute is out of range; the message names it and its value.
    """

    images: int
    batch_size: int
    seed: int = 0
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size (={self.batch_size}) must be at least 1")
        if self.batch_size > self.images:
            raise ValueError(f"batch_size (={self.batch_size}) must be at most the training set's {self.images} images")
        if self.batch_size % self.ranks:
            raise ValueError(f"batch_size (={self.batch_size}) must be a multiple of the {self.ranks} processes")

    @property
    def batches_per_epoch(self) -> int:
        """Mini-batches in an epoch."""
        return self.images // self.batch_size

    def batches(self, epoch: int, batch: int) -> Iterator[tuple[int, Tensor]]:
        """For ever, from mini-batch `batch` of `epoch` on: the epoch, and the indices int64 `[batch_size / ranks]`."""
        share = self.batch_size // self.ranks
        while True:
            order = torch.randperm(self.images, generator=generator(self.seed, "order", epoch))
            for b in range(batch, self.batches_per_epoch):
                first = b * self.batch_size + self.rank * share
                yield epoch, order[first : first + share]
            epoch, batch = epoch + 1, 0
