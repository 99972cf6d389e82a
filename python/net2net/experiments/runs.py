"""A grid of runs, every variant with every seed, on the one training loop; what is finished is kept.

OUT/config.json, environment.json       everything that decides the outcome, with the grid of all runs that were asked
                                        for here, and what it was measured on
OUT/runs/VARIANT/seed-0/result.json     a finished run; it is there as a whole or not at all
OUT/runs/VARIANT/seed-0/metrics.*       its log, row by row; and checkpoints/ while it is going on (a teacher's stay)
OUT/results.jsonl                       all finished runs, one in each line
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from net2net import options
from net2net.devices import device as device_of
from net2net.environment import environment
from net2net.experiments.config import ReproduceConfig
from net2net.experiments.experiment import Experiment, Setting, Variant
from net2net.experiments.networks import Networks
from net2net.extras import require
from net2net.files import alone, remove_folder, remove_unfinished, write_atomically
from net2net.training import History, State, checkpoint
from net2net.training.runs import make_feed, proceed, settings, stem_for


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run, as a line of `results.jsonl` has it.

    Attributes:
        variant: its name; `method` and `detail` are the parts of it.
        parameters: of the network.
        lr: the first learning rate.
        history: accuracies and losses over mini-batches.
        notes: what else was measured, such as the growth.
        error: why it ended early, if it did: its loss was no longer finite.
    """

    experiment: str
    variant: str
    method: str
    detail: str
    seed: int
    parameters: int
    lr: float
    history: History
    notes: dict[str, Any]
    error: str | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Result:
        document = json.loads(text)
        return Result(**{**document, "history": History(**document["history"])})


def carry_out(
    experiment: Experiment,
    config: ReproduceConfig,
    out: Path,
    on_step: Callable[[str, int], None] = lambda name, steps: None,
    on_seed: Callable[[list[Result]], None] = lambda results: None,
) -> list[Result]:
    """Do all runs of `experiment` that are not done yet, seed by seed.

    Args:
        out: the folder of the experiment; what is there of the same configuration is gone on with.
        on_step: called with the name of what is going on, and the number of mini-batches done in all.
        on_seed: called with all results so far, after each seed.

    Returns:
        All results, seed by seed and in the order of the variants; those of seeds and variants, too, that an earlier
        call had and this one has not.

    Raises:
        ValueError: `config` does not fit the data, or what is in `out`; names the argument.
        FileNotFoundError: the checkpoint of a finished teacher is gone with which runs are to begin; names its folder.
        ModuleNotFoundError: safetensors or what reads the data is not installed; names the extra that brings it.
    """
    require("safetensors", "train")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("an experiment is one process; run the experiments beside one another instead")
    device = device_of(config.machine.device)
    done = 0
    with settings(config.machine.threads, config.machine.deterministic), ExitStack() as held:
        make_feed(config.data, 0, device)  # what is wrong with the data is found out before anything is written
        _begin(experiment, config, out)
        held.enter_context(alone(out, f"{out} is being written by another process"))
        for seed in range(config.grid.seeds):
            setting = _setting(experiment, config, out, seed, device)
            for variant in experiment.all:
                steps = steps_of(experiment, variant, config)
                before = done
                if result_of(place_of(out, variant, seed)) is None:
                    name = f"{variant.name}, seed {seed}"
                    _run(experiment, variant, setting, out, lambda step: on_step(name, before + step))  # noqa: B023
                done += steps
                on_step(f"{variant.name}, seed {seed}", done)
            on_seed(results(out))
    return results(out)


def total_steps(experiment: Experiment, config: ReproduceConfig) -> int:
    """Mini-batches of all runs together."""
    return config.grid.seeds * sum(steps_of(experiment, variant, config) for variant in experiment.all)


def steps_of(experiment: Experiment, variant: Variant, config: ReproduceConfig) -> int:
    """Mini-batches of a run."""
    return config.grid.teacher_steps if variant is experiment.teacher else config.loop.steps


def place_of(out: Path, variant: Variant, seed: int) -> Path:
    """The run's folder."""
    return out / "runs" / re.sub(r"[^a-z0-9.]+", "-", variant.name.lower()).strip("-") / f"seed-{seed}"


def result_of(place: Path) -> Result | None:
    """What the run in this folder gave; None if it is not finished."""
    path = place / "result.json"
    return Result.from_json(path.read_text()) if path.is_file() else None


def results(out: Path) -> list[Result]:
    """All lines of `results.jsonl`."""
    path = out / "results.jsonl"
    return [Result.from_json(line) for line in path.read_text().splitlines()] if path.is_file() else []


def saved_config(out: Path) -> ReproduceConfig | None:
    """The configuration of the experiment in this folder; None if there is none."""
    _, config = _saved(out)
    return config


def _saved(out: Path) -> tuple[str | None, ReproduceConfig | None]:
    """The name of the experiment in this folder (older folders do not say), and its configuration."""
    path = out / "config.json"
    if not path.is_file():
        return None, None
    try:
        document = json.loads(path.read_text())
        name = document.pop("experiment", None) if isinstance(document, dict) else None
        return name, options.from_json(ReproduceConfig, document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _begin(experiment: Experiment, config: ReproduceConfig, out: Path) -> None:
    """What is wrong with `out` is found out before anything is written."""
    name, before = _saved(out)
    _check_experiment(experiment, name, out)
    if before is not None:
        options.check_unchanged(before, config)
    _check_teachers(experiment, config, out)
    out.mkdir(parents=True, exist_ok=True)
    remove_unfinished(out, "config.", "environment.", "results.")
    write_atomically(out / "environment.json", json.dumps(environment(), indent=1) + "\n")
    everything = config if before is None else dataclasses.replace(config, grid=config.grid.together(before.grid))
    document = {"experiment": experiment.name, **options.to_json(everything)}
    write_atomically(out / "config.json", json.dumps(document, indent=1) + "\n")
    _collect(experiment, out)


def _check_experiment(experiment: Experiment, name: str | None, out: Path) -> None:
    """ValueError if there are runs of another experiment, whose networks would be taken for this one's.

    Args:
        name: of the experiment in `out`, if its configuration says it.
    """
    found = {result.experiment for place in _finished(out) if (result := result_of(place)) is not None}
    if name:
        found.add(name)
    if others := found - {experiment.name}:
        raise ValueError(
            f"--out (={str(out)!r}) has runs of {', '.join(sorted(others))}, not of {experiment.name}: "
            "give another folder"
        )
    if not found and (out / "runs").is_dir():
        raise ValueError(
            f"--out (={str(out)!r}) has runs of which it does not say to what experiment they belong, and none is "
            "finished: remove them, or give another folder"
        )


def _check_teachers(experiment: Experiment, config: ReproduceConfig, out: Path) -> None:
    """FileNotFoundError if a finished teacher is gone with which runs are to begin."""
    for seed in range(config.grid.seeds):
        place = place_of(out, experiment.teacher, seed)
        waiting = [v.name for v in experiment.variants if result_of(place_of(out, v, seed)) is None]
        if waiting and result_of(place) is not None and not checkpoint.saved(place / "checkpoints"):
            raise FileNotFoundError(
                f"{place / 'checkpoints'} has no checkpoint of the teacher, with which {waiting[0]!r} begins: put it "
                "back, or begin anew in another --out"
            )


def _setting(experiment: Experiment, config: ReproduceConfig, out: Path, seed: int, device: torch.device) -> Setting:
    feed, num_classes, shape = make_feed(config.data, seed, device)
    networks = Networks(num_classes, shape[0], config.grid.base, stem_for(shape))

    def taught() -> State:
        state = experiment.teacher.start(setting).state
        checkpoint.restore(state, checkpoint.saved(place_of(out, experiment.teacher, seed) / "checkpoints")[-1])
        return state

    setting = Setting(config, seed, networks, feed, device, taught)
    return setting


def _run(experiment: Experiment, variant: Variant, setting: Setting, out: Path, on_step: Callable[[int], None]) -> None:
    place = place_of(out, variant, setting.seed)
    place.mkdir(parents=True, exist_ok=True)
    remove_unfinished(place, "metrics.", "result.")
    checkpoint.clean(place / "checkpoints")
    loop = dataclasses.replace(setting.config.loop, steps=steps_of(experiment, variant, setting.config))
    start = variant.start(setting)
    state, error = start.state, None
    try:
        proceed(
            state,
            setting.feed,
            loop,
            place,
            resume=True,
            seed=setting.seed,
            keep=1,
            between=start.between,
            on_step=on_step,
        )
    except FloatingPointError as failure:
        if variant is experiment.teacher:
            raise
        error = str(failure)  # a rate that is too high is a result, too
    notes = dict(state.notes)
    result = Result(
        experiment.name,
        variant.name,
        variant.method,
        variant.detail,
        setting.seed,
        notes.pop("parameters"),
        notes.pop("lr"),
        state.history,
        notes,
        error,
    )
    write_atomically(place / "result.json", result.to_json() + "\n")
    if variant is not experiment.teacher and (place / "checkpoints").is_dir():
        remove_folder(place / "checkpoints")
    _collect(experiment, out)


def _collect(experiment: Experiment, out: Path) -> None:
    """Write `results.jsonl`: this experiment's variants in their order, then whatever else has been run here."""
    order = {variant.name: place for place, variant in enumerate(experiment.all)}
    found = [result for path in _finished(out) if (result := result_of(path)) is not None]
    found.sort(key=lambda result: (result.seed, order.get(result.variant, len(order)), result.variant))
    write_atomically(out / "results.jsonl", "".join(result.to_json() + "\n" for result in found))


def _finished(out: Path) -> Iterator[Path]:
    for path in sorted((out / "runs").glob("*/seed-*/result.json")):
        yield path.parent
