"""The paper's networks, and what leads from one to another: Inception of several widths and depths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from net2net.models import InceptionBN, inception_bn

NARROW = 0.3**0.5  # the paper's narrow teacher: about 30 % of the parameters in most layers
WIDE = 2**0.5  # the paper's exploration


@dataclass(frozen=True)
class Size:
    """A member of the family; `width` and `extra_pairs` are those of `inception_bn`. Without more, the standard one."""

    width: float = 1.0
    extra_pairs: int = 0


@dataclass(frozen=True)
class Networks:
    """What all networks of an experiment have in common; see `inception_bn`."""

    num_classes: int
    in_channels: int
    base: float
    stem: str = "small"

    def make(self, size: Size, seed: int, device: torch.device | str) -> InceptionBN:
        """A random network, the same for the same seed; the global generator stays as it is."""
        with seeded(seed):
            network = inception_bn(
                self.num_classes, size.width, size.extra_pairs, self.in_channels, base=self.base, stem=self.stem
            )
        # channels_last is the faster layout for these layers on CPUs too: 20 to 25 % less time per step.
        return network.to(device).to(memory_format=torch.channels_last)

    def widths(self, size: Size) -> dict[str, int]:
        """The channels of every convolution of a network of this size, as `plan_widen` takes them."""
        wide = self.make(size, 0, "meta")
        return {name: m.out_channels for name, m in wide.named_modules() if isinstance(m, nn.Conv2d)}

    def check(self, model: nn.Module, size: Size) -> None:
        """RuntimeError unless `model` is a network of this size, up to the names that inserted layers have."""
        wanted = self.make(size, 0, "meta")
        shapes, others = (sorted(tuple(p.shape) for p in m.parameters()) for m in (model, wanted))
        if shapes != others:
            raise RuntimeError(
                f"growth gave {count(model)} parameters in {len(shapes)} tensors, but the network it should give, "
                f"{size}, has {count(wanted)} in {len(others)}"
            )


def deepening(teacher: InceptionBN, pairs: int, data: Iterable[Tensor], seed: int) -> dict[str, Any]:
    """Arguments of `plan_deepen`: wherever a pair stands in `teacher`, so many more (the paper, section 3.3).

    `data`: batches of training images, on which the statistics of the new normalisations are taken.
    """
    return {
        "after": teacher.pair_names(),
        "count": 2 * pairs,
        "kernel_size": [(3, 1), (1, 3)],
        "data": data,
        "seed": seed,
    }


def count(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator on the CPU is seeded meanwhile."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
