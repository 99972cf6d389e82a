"""A run of `net2net train`: from its configuration to a folder with checkpoints and logs.

runs/NAME/config.json            the whole configuration; `net2net train --config` takes it
runs/NAME/environment.json       versions, machine, devices at the start
runs/NAME/metrics.jsonl, .csv    what was measured, row by row; `tensorboard/` too, if that is installed
runs/NAME/checkpoints/           see `checkpoint`
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from net2net import inspection, options
from net2net.checkpoints.run_format import PLANS
from net2net.data import Feed, LoaderFeed, MemoryFeed, digits, folder, open_images
from net2net.data.augment import eval_transform, margin, train_transform
from net2net.devices import device as device_of
from net2net.environment import environment
from net2net.extras import require
from net2net.files import alone, remove_unfinished, write_atomically
from net2net.training import checkpoint, distributed, optimizers
from net2net.training.config import DataConfig, GrowthConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from net2net.training.growing import Growing, begin_with, keep, rehearse, replay
from net2net.training.growth_record import Record
from net2net.training.logs import Logs
from net2net.training.loop import LoopConfig, train
from net2net.training.schedules import Schedule, attach
from net2net.training.state import State, moving_average

#: The note of a run's state that has `Feed.counts`.
IMAGES = "images"

SMALL = 64  # pixels; what is larger is treated like ImageNet's images


def run(
    config: TrainConfig,
    *,
    resume: bool = False,
    between: Callable[[State], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_growth: Callable[[Record], None] | None = None,
) -> State:
    """Carry out the run that `config` describes; under `torchrun`, every process calls this.

    Args:
        config: everything that decides the outcome.
        resume: go on from the last checkpoint if the run has been begun, and begin it if it has not.
        between: see `train`; called after the growth that `config` asks for.
        on_step: called with the number of steps done, after each.
        on_growth: called with the record of every growth, in the first process.

    Returns:
        The state at the end, in every process.

    Raises:
        FileExistsError: there is a run of this name, and `resume` is not set.
        BlockingIOError: another process is carrying out this run.
        ValueError: the configuration does not fit the data, the model, or the run that is to be resumed.
        FloatingPointError: the loss is no longer finite.
        ModuleNotFoundError: safetensors or what reads the data is not installed; names the extra that brings it.
    """
    require("safetensors", "train")
    with (
        settings(config.run.threads, config.run.deterministic),
        distributed.process_group(device_of(config.run.device)) as device,
        ExitStack() as held,
    ):
        rank, ranks = distributed.rank_and_size()
        place = folder_of(config)
        begun = _begun(config, place, resume)
        if begun:
            held.enter_context(_locked(place))
        feed, num_classes, image_shape = make_feed(config.data, config.run.seed, device, rank, ranks)
        state = _state(config, feed, num_classes, image_shape, device)
        checkpoints = place / "checkpoints"
        earlier = {}
        if config.run.start and not (begun and checkpoint.saved(checkpoints)):
            earlier = begin_with(state, Path(config.run.start), feed.batches_per_epoch)
            if state.step > config.loop.steps:
                raise ValueError(
                    f"--steps (={config.loop.steps}) must be at least the {state.step} that --start "
                    f"(={config.run.start!r}) has done: they count"
                )
        if begun:
            _check_images(checkpoints, feed, config.data.data)
        state.notes[IMAGES] = list(feed.counts)
        if not begun:
            rehearse(state, config.growth, config.loop.steps, feed.batches_per_epoch, image_shape)
        distributed.wait_for_all()  # nothing is written before every process has looked
        if not begun:
            held.enter_context(_locked(place, new=True))
        if rank == 0:
            _begin(config, place)
            keep(earlier, checkpoints / PLANS)
        distributed.wait_for_all()
        proceed(
            state,
            feed,
            config.loop,
            place,
            growth=config.growth,
            resume=begun,
            seed=config.run.seed,
            keep=config.run.keep,
            between=between,
            on_step=on_step,
            on_growth=on_growth,
        )
    return state


def proceed(
    state: State,
    feed: Feed,
    loop: LoopConfig,
    place: Path,
    *,
    resume: bool,
    growth: GrowthConfig | None = None,
    seed: int = 0,
    keep: int = 3,
    between: Callable[[State], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_growth: Callable[[Record], None] | None = None,
) -> None:
    """Train as `train` does, with logs and checkpoints in the folder `place`; with several processes, all call this.

    Args:
        state: where to begin, and what a checkpoint of the run is restored into.
        resume: go on from the last checkpoint that is there, if there is one.
        growth: when to grow; None for never.
        keep: checkpoints that are kept; 0 for all.
        on_growth: called with what a growth came to, in the first process.
    """
    checkpoints = place / "checkpoints"
    last = checkpoint.saved(checkpoints)[-1:] if resume else []
    if last:
        replay(state, last[0])
        checkpoint.restore(state, last[0])
        if on_step is not None:
            on_step(state.step)
    writes = distributed.rank_and_size()[0] == 0
    with Logs(place, state.step, fresh=not last) if writes else nullcontext() as logs:
        on_row = None if logs is None else logs.row
        growing = Growing(
            growth or GrowthConfig(),
            feed,
            loop.steps,
            seed=seed,
            folder=checkpoints / PLANS,
            on_row=on_row,
            on_growth=on_growth if writes else None,
        )

        def grow(state: State) -> None:
            growing(state)
            if between is not None:
                between(state)

        train(
            state,
            feed,
            loop,
            seed=seed,
            between=grow,
            save=lambda state: _save(state, checkpoints, keep),
            on_row=on_row,
            on_step=on_step,
        )


def folder_of(config: TrainConfig) -> Path:
    """Where the run keeps its files."""
    return Path(config.run.runs) / config.run.name


def saved_config(place: Path) -> TrainConfig | None:
    """The configuration of the run in this folder; None if there is no run."""
    path = place / "config.json"
    return read_config(path) if path.is_file() else None


def read_config(path: Path) -> TrainConfig:
    """A configuration that was saved. ValueError if it is none; names what is wrong in it."""
    try:
        return options.from_json(TrainConfig, json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _begun(config: TrainConfig, place: Path, resume: bool) -> bool:
    """Whether there is a run to go on with; ValueError or FileExistsError if it is not to be gone on with."""
    before = saved_config(place)
    if before is None:
        return False
    if not resume:
        raise FileExistsError(f"{place} exists already; --resume goes on with that run, --name NAME begins another")
    options.check_unchanged(before, config)
    return True


def _check_images(checkpoints: Path, feed: Feed, data: str) -> None:
    """ValueError if the sets have changed since the run was begun: the order of the images would be another one."""
    for last in checkpoint.saved(checkpoints)[-1:]:
        before = checkpoint.notes(last).get(IMAGES, list(feed.counts))
        for split, there, here in zip(("training", "validation"), before, feed.counts, strict=True):
            if there != here:
                raise ValueError(
                    f"--data (={data!r}) has {here} {split} images now, and had {there} when the run was begun"
                )


@contextmanager
def _locked(place: Path, *, new: bool = False) -> Iterator[None]:
    """The first process has the lock of the run's folder, so that no other command writes there.

    Raises:
        BlockingIOError: another command has it; in every process.
        FileExistsError: the run was to be a `new` one, and another command has begun it meanwhile.
    """
    with ExitStack() as held:
        refusal: OSError | None = None
        if distributed.rank_and_size()[0] == 0:
            try:
                if new:
                    place.mkdir(parents=True, exist_ok=True)
                held.enter_context(alone(place, f"{place} is being written by another process"))
                if new and saved_config(place) is not None:
                    raise FileExistsError(f"{place} has just been begun by another process")
            except OSError as error:
                refusal = error
        if refusal := distributed.gather(refusal)[0]:
            raise refusal
        yield


def _begin(config: TrainConfig, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    remove_unfinished(place, "metrics.", "config.", "environment.")
    checkpoint.clean(place / "checkpoints")
    remove_unfinished(place / "checkpoints" / PLANS, "")
    write_atomically(place / "environment.json", json.dumps(environment(), indent=1) + "\n")
    write_atomically(place / "config.json", json.dumps(options.to_json(config), indent=1) + "\n")


def _save(state: State, checkpoints: Path, keep: int) -> None:
    checkpoint.save(state, checkpoints, keep)


def make_feed(
    config: DataConfig, seed: int, device: torch.device, rank: int = 0, ranks: int = 1
) -> tuple[Feed, int, tuple[int, int, int]]:
    """The images, how many classes they have, and the shape of one, (channels, height, width)."""
    kind = config.augment
    shared = {"seed": seed, "eval_images": config.eval_images, "rank": rank, "ranks": ranks}
    if config.data == "digits" or config.in_memory:
        dataset = digits(config.image_size or 16) if config.data == "digits" else folder(config.data, config.image_size)
        if kind == "auto":
            kind = "shift" if config.data == "digits" else "small"
        if kind == "inception":
            raise ValueError("--augment (='inception') is for images that are read from disk, not --in-memory")
        shape = (dataset.in_channels, *dataset.image_size)
        feed = MemoryFeed(
            dataset.to(device),
            config.batch_size,
            max_shift=0 if kind == "none" else margin(min(dataset.image_size)),
            flips=kind == "small",
            **shared,
        )
        return feed, dataset.num_classes, shape
    images = open_images(config.data)
    size = config.image_size or images.image_size
    if kind == "auto":
        kind = "inception" if size > SMALL else "small"
    reader = LoaderFeed(
        images,
        config.batch_size,
        train_transform(kind, size),
        eval_transform(kind, size),
        workers=config.workers,
        pin_memory=device.type == "cuda",
        **shared,
    )
    return reader, images.num_classes, (images.in_channels, size, size)


def _state(
    config: TrainConfig, feed: Feed, num_classes: int, image_shape: tuple[int, int, int], device: torch.device
) -> State:
    """Model, optimizer, scheduler and average, before the first step."""
    stem = stem_for(image_shape)
    with torch.random.fork_rng():
        torch.manual_seed(config.run.seed)  # the same weights in every process
        model = inspection.build(config.model.model, num_classes=num_classes, in_channels=image_shape[0], stem=stem)
    model.to(device)
    if config.loop.channels_last:
        model.to(memory_format=torch.channels_last)  # before the average and the optimizer take their layout from it
    _try(config.model.model, model, num_classes, image_shape, device)
    optimizer = make_optimizer(config.optimizer, model)
    schedule = make_schedule(config.schedule, config.loop.steps, feed.batches_per_epoch)
    ema = moving_average(model, config.model.ema) if config.model.ema else None
    return State(model, optimizer, attach(optimizer, schedule), ema)


def stem_for(image_shape: tuple[int, int, int]) -> str:
    """Which stem of the Inception network suits images of this shape, (channels, height, width)."""
    return "small" if image_shape[1] <= SMALL else "imagenet"


def make_optimizer(config: OptimizerConfig, model: nn.Module, share: float = 1.0) -> Optimizer:
    """Over all parameters of `model`, at this `share` of the configured learning rate."""
    return optimizers.make(
        config.optimizer,
        model,
        config.lr * share,
        momentum=config.momentum,
        decay=config.decay,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def make_schedule(config: ScheduleConfig, steps: int, batches_per_epoch: int) -> Schedule:
    """For a training of so many `steps`."""
    return Schedule(
        config.schedule,
        steps=steps,
        final=config.final_lr,
        decay=config.decay_rate,
        decay_steps=max(round(config.decay_epochs * batches_per_epoch), 1),
        warmup=config.warmup,
    )


@torch.no_grad()
def _try(
    spec: str, model: nn.Module, num_classes: int, image_shape: tuple[int, int, int], device: torch.device
) -> None:
    """Better found out before the run is begun."""
    x = torch.zeros(1, *image_shape, device=device)
    try:
        out = model.eval()(x)
    except RuntimeError as error:
        raise ValueError(f"--model (={spec!r}) cannot take images {list(x.shape)}: {error}") from error
    if not isinstance(out, torch.Tensor) or out.shape != (1, num_classes):
        shape = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(f"--model (={spec!r}) must return logits {[1, num_classes]}, not {shape}")


@contextmanager
def settings(threads: int | None, deterministic: bool) -> Iterator[None]:
    """torch's global settings, for the time of a run; None leaves the CPU threads as they are.

    ValueError for so many threads that the system might not give them, which would end the process.
    """
    most = max(1024, 16 * (os.cpu_count() or 1))
    if threads is not None and threads > most:
        raise ValueError(f"threads (={threads}) must be at most {most} here")
    before, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads or before)
    torch.use_deterministic_algorithms(was_deterministic or deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(was_deterministic)
