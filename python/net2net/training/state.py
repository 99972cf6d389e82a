"""All that training changes. What is here is what a checkpoint holds, and nothing else is needed to go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

#: The note of a state that began with another run's checkpoint: how many steps it had then.
BEGUN = "begun"


@dataclass
class History:
    """What a training run measured: one entry per list for every evaluation, the first before any step.

    Accuracies are shares in [0, 1], losses mean cross entropies, both in eval mode. The training figures come
    from a fixed sample of the training set, with nothing random done to it. Those of the moving average are empty
    where there is none. `seconds` is the wall time of the training so far, without the evaluations.
    """

    step: list[int] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    ema_val_accuracy: list[float] = field(default_factory=list)
    ema_val_loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def steps_to_reach(self, val_accuracy: float) -> int | None:
        """The first evaluated step with at least this validation accuracy; None if there is none."""
        return next((s for s, a in zip(self.step, self.val_accuracy, strict=True) if a >= val_accuracy), None)


@dataclass
class State:
    """A training run between two steps.

    The first four may be replaced by others between two steps, as growing does: the loop looks at them anew.

    Attributes:
        model: what is trained; never wrapped or compiled, that is the loop's affair.
        optimizer: over the parameters of `model`, with whatever state it has.
        scheduler: of `optimizer`, stepped after every step; None keeps the learning rates.
        ema: moving average of `model`, brought up to date after every step; see `moving_average`.
        step: mini-batches done.
        epoch: of the next mini-batch.
        batch: the next mini-batch's place in its epoch.
        seconds: wall time of the training, without the evaluations.
        loss_sum: of the training losses since the last row of the log.
        history: the evaluations.
        notes: anything that can be written as JSON and belongs to the run, such as what it has grown by.
        generators: the states of the random generators, one entry per process; None before the first step.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None = None
    ema: AveragedModel | None = None
    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    history: History = field(default_factory=History)
    notes: dict[str, Any] = field(default_factory=dict)
    generators: list[dict[str, Any]] | None = None

    def advance(self, batches_per_epoch: int) -> None:
        """One mini-batch more is done."""
        self.step += 1
        self.batch += 1
        if self.batch == batches_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average `a <- decay * a + (1 - decay) * w` of all parameters w, starting at the first w.

    Running statistics are averaged too: those of the newest weights would not be the ones that averaged weights have.
    """
    if not 0 < decay < 1:
        raise ValueError(f"decay (={decay}) must be strictly between 0 and 1")
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
