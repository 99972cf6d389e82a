"""The training loop, the same for teachers, students and baselines. Read `train` from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from net2net.data.feeds import Feed
from net2net.options import Section, option
from net2net.training import distributed, generators
from net2net.training.evaluation import PRECISIONS, autocast, evaluate
from net2net.training.state import BEGUN, History, State

#: What a row of the log may have; all but `step` and `epoch` are there only if they were measured at that step.
COLUMNS = (
    "step",  # mini-batches done
    "epoch",  # the epoch of the next mini-batch
    "seconds",  # wall time of the training so far, without the evaluations
    "lr",  # of the first group of parameters, in the step that was done last
    "loss",  # mean over the mini-batches since the last row that has it, smoothed labels and all
    "grad_norm",  # before clipping, of the last step
    "train_accuracy",
    "train_loss",
    "val_accuracy",
    "val_loss",
    "ema_val_accuracy",
    "ema_val_loss",
    # Of a growth, which has a row of its own: what was done, as a text, and what it came to.
    "grown",
    "parameters",
    "growth_max_abs",  # the largest difference of an output between before and after
    "growth_max_rel",
    "growth_seconds",
    "model_bytes",
    "optimizer_bytes",
)
Row = dict[str, Any]  # numbers; but `grown` is a text


@dataclass(frozen=True)
class LoopConfig(Section):
    """How to train, apart from the model, the optimizer and the data."""

    steps: int = option(1000, "mini-batches in all", least=0)
    accumulate: int = option(1, "parts that a mini-batch is computed in, to save memory", least=1)
    label_smoothing: float = option(
        0.0, "share of the target that all classes have alike; Inception: 0.1", least=0, below=1
    )
    clip: float = option(0.0, "largest norm of all gradients together; 0: any", least=0)
    precision: str = option("float32", "of the forward pass; bfloat16 is autocast", choices=PRECISIONS)
    channels_last: bool = option(False, "keep images and weights in the layout channels_last")
    compile: bool = option(False, "compile the model with torch.compile")
    log_every: int = option(10, "mini-batches between two rows of the log", least=1)
    eval_every: int = option(200, "mini-batches between two evaluations", least=1)
    save_every: int = option(200, "mini-batches between two checkpoints", least=1)


def train(
    state: State,
    feed: Feed,
    config: LoopConfig,
    *,
    seed: int = 0,
    between: Callable[[State], None] | None = None,
    save: Callable[[State], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> History:
    """Train `state.model` in place by cross entropy until `config.steps` are done; it is left in train mode.

    Args:
        state: where to begin; it is brought up to date. A model takes `[N, C, H, W]` and returns logits
            `[N, num_classes]`, and is on the device where training shall be.
        feed: mini-batches and samples.
        config: how to train.
        seed: of torch's global generators, which dropout draws from; the process's own are put back at the end. A
            state that has been trained already goes on with the generators that it has.
        between: called between two steps, after the evaluation and before the checkpoint if they are due, before the
            first step too. It may replace what `state` has, as growing does.
        save: called every `config.save_every` steps, and after the last one.
        on_row: called with every row of the log; see `COLUMNS`.
        on_step: called with the number of steps done, after each.

    Returns:
        The accuracies and losses along the way: `state.history`.

    Raises:
        FloatingPointError: the loss is no longer finite. It is looked at whenever it is logged or evaluated, and before
            anything is saved, as are the weights then.
    """
    device = next(state.model.parameters()).device
    rank, _ = distributed.rank_and_size()
    saved = None if state.generators is None else state.generators[rank % len(state.generators)]
    prepared: nn.Module | None = None
    loss_sum = torch.tensor(state.loss_sum, dtype=torch.float64, device=device)

    def keep() -> None:
        """Into the state what the loop has in variables of its own."""
        state.loss_sum = distributed.average(loss_sum).item()
        state.generators = distributed.gather(generators.states())

    def pause(row: Row) -> None:
        """What happens between two steps."""
        last = state.step == config.steps
        if state.step % config.eval_every == 0 or last:
            distributed.average_buffers(state.model, state.ema)
            row |= _evaluate(state, feed, config)
        if row and on_row is not None:
            on_row({"step": state.step, "epoch": state.epoch, "seconds": state.seconds} | row)
        if between is not None:
            between(state)
        if save is not None and (state.step % config.save_every == 0 or last):
            distributed.average_buffers(state.model, state.ema)
            keep()
            _finite(state.step, state.loss_sum)  # that of every step since the last row of the log is in the sum
            _check_weights(state)  # the last step's loss knows nothing of what the step did
            save(state)

    with generators.own(seed + rank, saved):
        if saved is None:
            pause({})
        batches = feed.batches(state.epoch, state.batch)
        while state.step < config.steps:
            if prepared is not state.model:  # at the start, and after it has grown
                prepared = state.model
                forward = _prepare(state.model, config)
            started = time.perf_counter()
            state.model.train()
            images, labels = next(batches)
            x, y = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if config.channels_last:
                x = x.to(memory_format=torch.channels_last)
            state.optimizer.zero_grad()
            parts = list(zip(x.chunk(config.accumulate), y.chunk(config.accumulate), strict=True))
            for part, (x_part, y_part) in enumerate(parts):
                with _synchronised(forward, part == len(parts) - 1):
                    with autocast(device, config.precision):
                        logits = forward(x_part)
                    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                    loss = F.cross_entropy(logits, y_part, label_smoothing=config.label_smoothing)
                    loss = loss * (len(y_part) / len(y))
                    loss.backward()
                loss_sum += loss.detach()
            row: Row = {}
            if config.clip:
                norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
            lr = state.optimizer.param_groups[0]["lr"]
            state.optimizer.step()
            if state.scheduler is not None:
                state.scheduler.step()
            if state.ema is not None:
                state.ema.update_parameters(state.model)
            state.advance(feed.batches_per_epoch)
            if state.step % config.log_every == 0:
                loss_sum /= min(config.log_every, state.step - state.notes.get(BEGUN, 0))
                row = {"lr": float(lr), "loss": _finite(state.step, distributed.average(loss_sum).item())}
                if config.clip:
                    row["grad_norm"] = norm.item()
                loss_sum.zero_()
            state.seconds += time.perf_counter() - started
            pause(row)
            if on_step is not None:
                on_step(state.step)
        keep()
    state.model.train()
    return state.history


def _prepare(model: nn.Module, config: LoopConfig) -> nn.Module:
    """The model as it is called: in the right layout, in parallel, compiled."""
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # in place: the parameters stay the optimizer's
    model = distributed.parallel(model)
    if not config.compile:
        return model
    torch.compiler.reset()  # of an earlier, smaller model; after too many of them torch would give up compiling
    compiled: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return compiled


def _synchronised(forward: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Processes exchange their gradients once per mini-batch, after its last part."""
    inner = getattr(forward, "_orig_mod", forward)  # of a compiled model
    return nullcontext() if last or not isinstance(inner, DistributedDataParallel) else inner.no_sync()


def _evaluate(state: State, feed: Feed, config: LoopConfig) -> Row:
    history = state.history
    train_accuracy, train_loss = evaluate(state.model, feed.sample("train"), config.precision)
    val_accuracy, val_loss = evaluate(state.model, feed.sample("val"), config.precision)
    if not math.isfinite(train_loss + val_loss):
        raise FloatingPointError(f"after {state.step} steps the losses are {train_loss} and {val_loss} (validation)")
    row: Row = {
        "train_accuracy": train_accuracy,
        "train_loss": train_loss,
        "val_accuracy": val_accuracy,
        "val_loss": val_loss,
    }
    if state.ema is not None:
        row["ema_val_accuracy"], row["ema_val_loss"] = evaluate(state.ema.module, feed.sample("val"), config.precision)
    for name, value in ({"step": state.step, "seconds": state.seconds} | row).items():
        getattr(history, name).append(value)
    return row


def _finite(step: int, loss: float) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(f"after {step} steps the training loss is {loss}")
    return loss


def _check_weights(state: State) -> None:
    """FloatingPointError if a weight that is trained is not finite."""
    finite = [p.detach().isfinite().all() for p in state.model.parameters() if p.requires_grad]
    if not torch.stack(finite).all():
        raise FloatingPointError(f"after {state.step} steps the weights are no longer finite")
