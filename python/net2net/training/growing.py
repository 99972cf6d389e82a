"""Growth inside the training loop: what is due between two steps is done to all that the state holds, and logged.

What a growth depends on is in the state, or a function of (seed, step): the mini-batches that come next are what the
growth is planned on, and the noise has the run's seed. So a run that was killed makes the same growth again, and every
process of a data-parallel run makes it alike. Plans are kept as JSON beside the checkpoints; `replay` carries them out
on a fresh model, which a checkpoint of the grown one then fits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from net2net.checkpoints import log
from net2net.checkpoints.run_format import NOTES
from net2net.data.feeds import Feed
from net2net.data.order import key
from net2net.grow import Grown, carry_out, grow
from net2net.growth_schedule import GrowthSchedule
from net2net.growth_text import AtEpoch, AtStep, Growth, OnPlateau, What, When
from net2net.plan import GrowthPlan
from net2net.training import checkpoint, distributed
from net2net.training.config import GrowthConfig, lr_rule
from net2net.training.growth_record import Record
from net2net.training.loop import Row
from net2net.training.schedules import Schedule, go_on
from net2net.training.state import BEGUN, State
from net2net.verify import compare_growth

#: A growth is planned on so many images; analysis takes longer with more, and finds the same.
EXAMPLES = 2


class Growing:
    """For `between` of `train`: grows what the state holds whenever the schedule says so.

    What has been done is in `state.notes["growth"]`, so a checkpoint has it.

    Args:
        config: when, and how.
        feed: of the run.
        steps: the length of the run; at its end nothing grows any more.
        seed: of noise and of choices by chance, where an entry does not say one.
        folder: for plans, made if need be; None: they are not saved, and the run cannot be resumed.
        on_row: called with a row for the log after every growth.
        on_growth: called with the `Record` of every growth.
    """

    def __init__(
        self,
        config: GrowthConfig,
        feed: Feed,
        steps: int,
        *,
        seed: int = 0,
        folder: Path | None = None,
        on_row: Callable[[Row], None] | None = None,
        on_growth: Callable[[Record], None] | None = None,
    ) -> None:
        self.config, self.feed, self.steps, self.seed, self.folder = config, feed, steps, seed, folder
        self.on_row, self.on_growth = on_row, on_growth
        self.entries = GrowthSchedule(config.grow).entries

    def __call__(self, state: State) -> None:
        if not self.entries or state.step >= self.steps:
            return
        notes = state.notes.setdefault(NOTES, {"done": []})
        schedule = GrowthSchedule(self.entries)
        if "schedule" in notes:
            schedule.load_state_dict(notes["schedule"])
        due = schedule.due(step=state.step, epoch=state.epoch, metric=_metric(state, self.entries))
        notes["schedule"] = schedule.state_dict()
        for growth in due:
            batches = upcoming(state, self.feed, self.config.growth_batches)
            record = grow_state(
                state,
                growth,
                batches,
                lr=lr_rule(self.config.growth_lr),
                optimizer_state=self.config.growth_state,
                seed=self.seed,
                folder=self.folder,
            )
            if self.on_row is not None:
                self.on_row(record.row(state))
            if self.on_growth is not None:
                self.on_growth(record)


def upcoming(state: State, feed: Feed, count: int) -> list[Tensor]:
    """The images of the `count` mini-batches that come next, whole in every process, on the model's device."""
    device = next(state.model.parameters()).device
    batches = feed.batches(state.epoch, state.batch)
    return [distributed.together(images.to(device)) for images, _ in itertools.islice(batches, count)]


def grow_state(
    state: State,
    growth: Growth,
    batches: Sequence[Tensor],
    *,
    lr: str | float = "tenth",
    optimizer_state: str = "exact",
    seed: int = 0,
    folder: Path | None = None,
) -> Record:
    """Grow model, optimizer, scheduler and average of `state`, and compare the model before and after.

    Args:
        state: between two steps; it gets new ones. `notes["growth"]["done"]` gets the record.
        growth: what is to be done. Where it does not say a seed, one is made of `seed` and the number of the growth.
        batches: images `[N, C, H, W]`: the growth is planned on the first two of them, compared on all, and the
            statistics of new normalisations are taken on all. In every process the same.
        lr: `"tenth"`: from now on, the schedule goes on from a tenth of the rate that the first of all teachers began
            with. A warm-up that is not over goes on, and leads up to that tenth. Else see `net2net.grow`.
        optimizer_state: see `net2net.grow`.
        seed: see `growth`.
        folder: where the plans are saved.

    Raises:
        ValueError: the growth does not fit the model; the message has the entry.
        RuntimeError: the function would not be the same, or processes do not agree. `state` is as it was.
    """
    started = time.perf_counter()
    distributed.average_buffers(state.model, state.ema)
    notes = state.notes.setdefault(NOTES, {"done": []})
    number = len(notes["done"]) + 1
    group = state.optimizer.param_groups[0]
    first = notes.setdefault("first_lr", float(group.get("initial_lr", group["lr"])))
    before = float(group["lr"])
    if lr == "tenth" and before == 0:
        raise ValueError(f"{growth}: growth_lr (='tenth') has no meaning where the learning rate is 0; give 'keep'")
    warming = _warming(state)
    rule = 0.1 * first * warming / before if lr == "tenth" else lr
    grown = _grow(state, growth, batches, rule, optimizer_state, seed=key(seed, NOTES, number))
    largest = _largest_difference(state, grown, batches)
    _check_all_alike(grown)
    saved = _save(grown.plans, folder, number, state.step)
    state_before = sum(p.numel() for p in state.model.parameters())
    state.model, state.optimizer, state.scheduler, state.ema = grown[:4]  # type: ignore[assignment]
    record = Record(
        entry=growth.text,
        step=state.step,
        max_abs=None if largest is None else largest[0],
        max_rel=None if largest is None else largest[1],
        seconds=time.perf_counter() - started,
        parameters=(state_before, sum(p.numel() for p in state.model.parameters())),
        model_bytes=grown.report.model_bytes,
        optimizer_bytes=grown.report.optimizer_bytes,
        lr=(before, float(state.optimizer.param_groups[0]["lr"])),
        warming=warming,
        plans=saved,
    )
    notes["done"].append(dataclasses.asdict(record))
    state.seconds += record.seconds
    return record


def rehearse(
    state: State, config: GrowthConfig, steps: int, batches_per_epoch: int, image_shape: tuple[int, int, int]
) -> None:
    """Do all growths of a schedule to copies of what `state` holds, one after the other, to see whether they can be.

    Better found out before the run is begun than after a day of it.

    Raises:
        ValueError: one cannot be done, or is due after the last step; names it.
    """
    state = dataclasses.replace(state)
    device, dtype = (lambda p: (p.device, p.dtype))(next(state.model.parameters()))
    random = torch.Generator().manual_seed(0)
    images = torch.randn(EXAMPLES, *image_shape, generator=random).to(device, dtype)
    for growth in GrowthSchedule(config.grow).entries:
        earliest = _earliest(growth.when, batches_per_epoch)
        if earliest >= max(steps, 1):
            raise ValueError(f"grow (={growth.text!r}) is never due: the run ends after {steps} mini-batches")
        if not isinstance(growth.when, OnPlateau) and earliest < state.step:
            raise ValueError(f"grow (={growth.text!r}) was due before the run starts, after {state.step} mini-batches")
        try:
            grown = _grow(state, growth, [images], lr_rule(config.growth_lr), config.growth_state, verify=False)
        except (ValueError, TypeError, RuntimeError, MemoryError, OSError) as error:  # OSError: memory, too
            raise ValueError(f"grow (={growth.text!r}) cannot be done: {error}") from error
        state.model, state.optimizer, state.scheduler, state.ema = grown[:4]  # type: ignore[assignment]


def _earliest(when: When, batches_per_epoch: int) -> int:
    """The first step after which this can be."""
    if isinstance(when, AtEpoch):
        return when.epoch * batches_per_epoch
    return when.step if isinstance(when, AtStep) else 0


def plans(path: Path) -> list[GrowthPlan]:
    """What the model of a checkpoint has grown by, in order: `plan.apply` of each leads from the first model to it.

    Raises:
        ValueError: `path` is no checkpoint, or a plan is not there any more.
    """
    return log.plans(log.growth_log(path), str(path))


def begin_with(state: State, path: Path, batches_per_epoch: int) -> dict[str, GrowthPlan]:
    """Bring the fresh state of a new run to that of another run's checkpoint, or of what `net2net grow` has made of
    one.

    Weights, moments and steps done are the checkpoint's; learning rate, schedule and the optimizer's other options are
    the new run's, whatever growths have made of the other run's rate. Its schedule is where it would be after as many
    steps, and so are the epoch and the place in it.

    Args:
        state: as a run begins.
        path: the checkpoint.
        batches_per_epoch: of the new run.

    Returns:
        The plans that lead to its model, by the names that the run's own checkpoints know them by: to be kept in the
        run's folder `PLANS`.

    Raises:
        ValueError: `path` is no checkpoint, or does not fit `state`.
    """
    replay(state, path)
    checkpoint.restore(state, path, settings=False)
    state.epoch, state.batch = divmod(state.step, batches_per_epoch)
    state.loss_sum, state.notes[BEGUN] = 0.0, state.step
    notes = state.notes.setdefault(NOTES, {"done": []})
    for own in ("schedule", "first_lr"):  # this run has its own
        notes.pop(own, None)
    assert isinstance(state.scheduler, LambdaLR)
    go_on(state.optimizer, state.scheduler, state.step)
    done = notes["done"]
    names = [name for record in done for name in record["plans"]]
    earlier = plans(path)
    if since := earlier[len(names) :]:
        record = {"entry": f"as a checkpoint, {path.name}", "step": state.step}
        done.append({**record, "plans": _names(since, len(done) + 1, state.step)})
        names += done[-1]["plans"]
    return dict(zip(names, earlier, strict=True))


def keep(named: Mapping[str, GrowthPlan], folder: Path) -> None:
    """Write plans that were returned by `begin_with`."""
    if named:
        folder.mkdir(parents=True, exist_ok=True)
    for name, plan in named.items():
        plan.save(folder / name)


def replay(state: State, path: Path) -> None:
    """Grow a fresh state as the one of a checkpoint has, so that `checkpoint.restore` can fill it."""
    state.model, state.optimizer, state.scheduler, state.ema = carry_out(  # type: ignore[assignment]
        plans(path), state.model, optimizer=state.optimizer, scheduler=state.scheduler, ema=state.ema
    )


def _grow(
    state: State,
    growth: Growth,
    batches: Sequence[Tensor],
    lr: str | float,
    optimizer_state: str,
    *,
    seed: int = 0,
    verify: bool = True,
) -> Grown:
    return grow(
        state.model,
        batches[0][:EXAMPLES],
        **_arguments(growth.what, batches, seed),
        optimizer=state.optimizer,
        scheduler=state.scheduler,
        ema=state.ema,
        state=optimizer_state,
        lr=lr,
        verify=verify,
    )


def _arguments(what: What, batches: Sequence[Tensor], seed: int) -> dict[str, Any]:
    """For `grow`; what an entry does not say is as it should be in a loop."""
    arguments = what.arguments()
    if "widen" in arguments:
        arguments["widen"] = {"seed": seed, **arguments["widen"]}
    if "deepen" in arguments:
        arguments["deepen"] = {"seed": seed, "data": batches, **arguments["deepen"]}
    return arguments


def _warming(state: State) -> float:
    """The share that the warm-up leaves of the rate of the next step."""
    schedule = getattr(state.scheduler, "lr_lambdas", [None])[0]
    return schedule.warming(state.scheduler.last_epoch) if isinstance(schedule, Schedule) else 1.0  # type: ignore[union-attr]


def _metric(state: State, entries: Sequence[Growth]) -> float | None:
    """What plateaus are of, if it has just been measured: validation loss, or accuracy where more is better."""
    history = state.history
    if not history.step or history.step[-1] != state.step:
        return None
    larger = any(isinstance(e.when, OnPlateau) and e.when.mode == "max" for e in entries)
    return (history.val_accuracy if larger else history.val_loss)[-1]


def _largest_difference(state: State, grown: Grown, batches: Sequence[Tensor]) -> tuple[float, float] | None:
    """Of all outputs on all batches, absolute and relative. RuntimeError if it is more than rounding explains."""
    exact = all(getattr(plan, "noise", "") != "paper" for plan in grown.plans)
    reports = [compare_growth(state.model, grown.model, images) for images in batches]
    found = [report for report in reports if report is not None]
    for report in found:
        if exact and not report.ok:
            raise RuntimeError(f"the grown model is not its teacher's equal: {report}. Please report the model")
    return (max(r.max_abs for r in found), max(r.max_rel for r in found)) if found else None


def _check_all_alike(grown: Grown) -> None:
    """RuntimeError if processes have grown different students: from then on each would train a network of its own."""
    if not distributed.running():
        return
    digest = hashlib.sha256()
    held: list[Any] = [*grown.model.state_dict().values()]
    if grown.ema is not None:
        held += grown.ema.state_dict().values()
    if grown.optimizer is not None:
        held += [value for entries in grown.optimizer.state.values() for value in entries.values()]
    for value in held:
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    if len(set(distributed.gather(digest.hexdigest()))) > 1:
        raise RuntimeError("processes have grown different networks; please report the model")


def _save(plans: Sequence[GrowthPlan], folder: Path | None, number: int, step: int) -> list[str]:
    if folder is None:
        return []
    names = _names(plans, number, step)
    if distributed.rank_and_size()[0] == 0:
        keep(dict(zip(names, plans, strict=True)), folder)
    return names


def _names(plans: Sequence[GrowthPlan], number: int, step: int) -> list[str]:
    """Of files; a growth that is composed of several has them in order."""
    names = [f"{number:02d}-{plan.kind}-step-{step:08d}" for plan in plans]
    again = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name}{f'-{n + 1}' if n else ''}.json" for name, n in zip(names, again, strict=True)]
