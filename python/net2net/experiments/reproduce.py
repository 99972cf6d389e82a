"""`net2net reproduce`: an experiment from its configuration to its report. Read `reproduce` from top to bottom."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from net2net import options
from net2net.experiments import figure4, figure5, figure6, figures, report, runs, symmetry
from net2net.experiments.config import BUDGETS, CHANGES, ReproduceConfig
from net2net.experiments.experiment import Experiment
from net2net.experiments.runs import Result
from net2net.extras import require
from net2net.files import write_atomically

EXPERIMENTS: dict[str, Callable[[ReproduceConfig], Experiment]] = {
    "figure4": figure4.experiment,
    "figure5": figure5.experiment,
    "figure6": figure6.experiment,
    "symmetry": symmetry.experiment,
}


def configure(name: str, budget: str, values: Mapping[str, Any]) -> ReproduceConfig:
    """What `budget` sets for the experiment `name`, and `values`, by the names of options, which go before it."""
    return options.override(ReproduceConfig(), {**BUDGETS[budget], **CHANGES.get(name, {}), **values})


def reproduce(
    name: str,
    config: ReproduceConfig,
    out: Path,
    command: str = "",
    on_step: Callable[[str, int], None] = lambda name, steps: None,
) -> list[Result]:
    """Do the runs of an experiment that are not done yet, and write its report after each seed.

    The report is of all runs that the folder has, those with other rates from earlier calls too.

    Args:
        name: one of `EXPERIMENTS`.
        config: everything that decides the outcome.
        out: its folder, with what `runs` says, and `report.html`, `table.md` and the figures as PNG files.
        command: what the report says that it was made by.
        on_step: see `carry_out`.

    Raises:
        see `carry_out`.
    """
    require("matplotlib")  # better missed now than after the training
    experiment = EXPERIMENTS[name](config)

    def on_seed(results: list[Result]) -> None:
        write(*of_folder(name, out), results, out, command)

    return runs.carry_out(experiment, config, out, on_step, on_seed)


def of_folder(name: str, out: Path) -> tuple[Experiment, ReproduceConfig]:
    """The experiment `name` with everything that was ever asked for in its folder `out`."""
    config = runs.saved_config(out)
    if config is None:
        raise FileNotFoundError(f"out (={str(out)!r}) has no config.json")
    return EXPERIMENTS[name](config), config


def write(
    experiment: Experiment, config: ReproduceConfig, results: list[Result], out: Path, command: str = ""
) -> list[Path]:
    """Write the report of these results into `out`; returns the files."""
    drawn = figures.draw(experiment, results)
    captioned = {figures.CAPTIONS[name]: png for name, png in drawn.items()}
    environment = json.loads((out / "environment.json").read_text())
    page = report.html(experiment, config, results, captioned, environment, command)
    files: dict[str, str | bytes] = {f"{name}.png": png for name, png in drawn.items()}
    files |= {"table.md": report.markdown(experiment, config, results, command), "report.html": page}
    for name, data in files.items():
        write_atomically(out / name, data)
    return [out / name for name in files]
