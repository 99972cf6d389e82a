"""What the command line shows while a run is going on and when it is done (with rich, of `n2n-kernels[demo]`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from net2net.experiments.digits import DemoResult, Training
from net2net.extras import require


@contextmanager
def progress_bar(total: int, *, shown: bool = True) -> Iterator[Callable[[str, int], None]]:
    """A bar over `total` mini-batches; yields the callback that moves it, (what is going on, mini-batches done)."""
    rich = require("rich.progress")
    columns = (
        rich.TextColumn("{task.description:<22}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, disable=not shown) as bar:
        task = bar.add_task("starting", total=total)
        yield lambda phase, done: bar.update(task, description=phase, completed=done)


@contextmanager
def bytes_bar(*, shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A bar over bytes; yields the callback that moves it, (what is going on, bytes done, all bytes)."""
    rich = require("rich.progress")
    columns = (
        rich.TextColumn("{task.description:<32.32}"),
        rich.BarColumn(),
        rich.DownloadColumn(binary_units=True),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, disable=not shown) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def print_result(result: DemoResult) -> None:
    """The growth steps with their proofs, then one row per method."""
    console = require("rich.console").Console()
    console.print(_growth_table(result))
    console.print(_methods_table(result))


def _growth_table(result: DemoResult) -> Any:
    table = _table(
        "Growing the teacher: largest change of a logit (in float64), times",
        ["step", "parameters", "change in\neval mode", "change in\ntrain mode", "plan", "weights", "state"],
    )
    table.add_row(result.teacher.name, f"{result.teacher.parameters:,}")
    for step in result.growth:
        table.add_row(
            step.name,
            f"{step.parameters_after:,}",
            f"{step.eval_mode.max_abs:.1e}",
            f"{step.train_mode.max_abs:.1e}",
            f"{step.plan_seconds * 1e3:.0f} ms",
            f"{step.apply_seconds * 1e3:.0f} ms",
            f"{step.optimizer_seconds * 1e3:.0f} ms",
        )
    return table


def _methods_table(result: DemoResult) -> Any:
    table = _table(
        f"Training on {result.dataset}: validation accuracy",
        ["method", "learning\nrate", "mini-batches to\nthe teacher's", "at the\nend", "seconds"],
    )
    table.add_row(*_method(result.teacher, ""))
    for training in result.students:
        steps = result.steps_to_teacher(training)
        table.add_row(*_method(training, "not reached" if steps is None else str(steps)))
    return table


def _method(training: Training, steps: str) -> tuple[str, ...]:
    accuracy, seconds = training.history.val_accuracy[-1], training.history.seconds[-1]
    return training.name, f"{training.lr:.4g}", steps, f"{accuracy:.1%}", f"{seconds:.1f}"


def print_table(title: str, headings: list[str], rows: list[list[str]]) -> None:
    """Names in the first column, figures in the others. Where the terminal is narrow, cells wrap; nothing is cut."""
    console = require("rich.console").Console()
    table = _table(title, headings, wrap=True)
    for row in rows:
        table.add_row(*row)
    wanted = console.measure(table, options=console.options.update(max_width=10**6)).maximum
    if wanted > console.width:  # the names, whose words are long, get what figures do not need
        table.collapse_padding = True
        for column, *cells in list(zip(table.columns, headings, *rows, strict=True))[1:]:
            column.max_width = max(len(word) for cell in cells for word in cell.split())
    console.print(table)


def _table(title: str, headings: list[str], *, wrap: bool = False) -> Any:
    """A table with names in its first column and figures in the others."""
    table = require("rich.table").Table(title=title)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=not wrap, overflow="fold")
    return table
