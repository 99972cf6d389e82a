"""What an experiment is: a teacher, and variants of what may come of it. Which those are is for its own file to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from net2net.data import Feed
from net2net.experiments.config import ReproduceConfig
from net2net.experiments.networks import Networks, Size, count
from net2net.models import InceptionBN
from net2net.training import State, attach
from net2net.training.runs import make_optimizer, make_schedule


@dataclass(frozen=True)
class Setting:
    """What all runs of one seed have in common.

    Attributes:
        taught: the teacher's state at the end of its training; the optimizer's too. A new object at every call.
    """

    config: ReproduceConfig
    seed: int
    networks: Networks
    feed: Feed
    device: torch.device
    taught: Callable[[], State]

    def batches(self) -> list[Tensor]:
        """Training images to take statistics on and to compare teachers and students on, the same every time."""
        first = islice(self.feed.batches(0, 0), self.config.grid.growth_batches)
        return [images.to(self.device) for images, _ in first]

    def anew(self, size: Size, steps: int) -> State:
        """A random network, at the full learning rate, and an optimizer that has done nothing yet."""
        model = self.networks.make(size, self.seed, self.device)
        return self.state(model, make_optimizer(self.config.optimizer, model), steps)

    def state(self, model: nn.Module, optimizer: Optimizer, steps: int, notes: dict[str, Any] | None = None) -> State:
        """Training that begins here: the schedule multiplies the rates that `optimizer` has now."""
        schedule = make_schedule(self.config.schedule, steps, self.feed.batches_per_epoch)
        notes = {"parameters": count(model), "lr": optimizer.param_groups[0]["lr"]} | (notes or {})
        return State(model, optimizer, attach(optimizer, schedule), notes=notes)


class Start(NamedTuple):
    """Where a run begins, and what is called between its steps, if anything (see `net2net.training.train`)."""

    state: State
    between: Callable[[State], None] | None = None


@dataclass(frozen=True)
class Variant:
    """A way to a trained network.

    Attributes:
        method: such as "Net2WiderNet"; one colour in the figures.
        detail: what tells it from others of the same method; "" for nothing. One kind of line.
        start: where a run of it begins. It is a function of the setting alone: an interrupted run calls it again, and
            restores a checkpoint into what it returns.
    """

    method: str
    detail: str
    start: Callable[[Setting], Start]

    @property
    def name(self) -> str:
        return f"{self.method}, {self.detail}" if self.detail else self.method


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, or that is to be decided, as a comparison of two variants seed by seed.

    Attributes:
        text: in words.
        first, second: names of variants.
        measure: of a run, a name in `summary.MEASURES`.
        sign: 1 if it says that `first` has more of it than `second`, -1 if less, 0 if as much.
    """

    text: str
    first: str
    second: str
    measure: str
    sign: int


@dataclass(frozen=True)
class Experiment:
    """A grid of runs: every variant with every seed.

    Attributes:
        name: as `net2net reproduce` takes it.
        title: above the figures.
        teacher: trained first.
        variants: all others, trained for `--steps` each.
        reference: the name of the variant whose final accuracy is to be reached: the same network from a random start.
        claims: what the runs are to confirm or to contradict.
        figures: their names in `figures.FIGURES`.
        curves: the names of the variants that curves are drawn of; None: of all.
        against: the name of the variant from which all others' differences are told, seed by seed; None: of none.
    """

    name: str
    title: str
    teacher: Variant
    variants: Sequence[Variant]
    reference: str
    claims: Sequence[Claim] = ()
    figures: Sequence[str] = ("curves",)
    curves: Sequence[str] | None = None
    against: str | None = None

    @property
    def all(self) -> list[Variant]:
        """The teacher and the others."""
        return [self.teacher, *self.variants]

    @property
    def shown(self) -> list[Variant]:
        """Those of which curves are drawn, beside the teacher."""
        return [v for v in self.variants if self.curves is None or v.name in self.curves]


def teacher_of(model: nn.Module) -> InceptionBN:
    """What the experiments grow is always the paper's network."""
    assert isinstance(model, InceptionBN)
    return model
