"""Figures, with matplotlib (the extra `n2n-kernels[demo]`)."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from net2net.extras import require
from net2net.training import History

# Okabe and Ito's palette: told apart with every kind of colour vision, and in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
LINES = ("-", "--", ":", "-.")
MARKERS = "osD^v<>*X"


@dataclass(frozen=True)
class Curve:
    """A quantity over mini-batches: the mean of several runs, and the range that they span.

    Attributes:
        label: in the legend.
        runs: (steps, values) of each run; the mean is over those that got to a step.
        colour, line: places in `COLOURS` and `LINES`, which begin again after their last; where colours do, with the
            next kind of line.
    """

    label: str
    runs: Sequence[tuple[Sequence[int], Sequence[float]]]
    colour: int = 0
    line: int = 0


def curves_png(histories: Mapping[str, History], teacher: History, title: str = "") -> bytes:
    """Training accuracy, and beside it validation accuracy, over mini-batches; see `accuracies_png`.

    Args:
        histories: one curve per method, by the name that the legend gives it; at least one.
        teacher: its last accuracies are the horizontal lines.
        title: above both panels.

    Returns:
        The figure as a PNG file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; names the extra that brings it.
        ValueError: there are no histories.
    """
    if not histories:
        raise ValueError("histories (={}) must hold at least one curve")
    looks = {name: (i, 0) for i, name in enumerate(histories)}
    lines = teacher.train_accuracy[-1], teacher.val_accuracy[-1]
    return accuracies_png({name: [history] for name, history in histories.items()}, looks, lines, title)


def accuracies_png(
    histories: Mapping[str, Sequence[History]],
    looks: Mapping[str, tuple[int, int]],
    teacher: tuple[float, float],
    title: str = "",
) -> bytes:
    """The layout of the paper's figures 4 to 6: training and validation accuracy over mini-batches, side by side.

    Args:
        histories: of every seed, by the name that the legend gives them.
        looks: colour and line of each; see `Curve`.
        teacher: its accuracies in training and validation, where the horizontal lines are.
        title: above both panels.
    """
    panels = {}
    for kind, line in zip(("train", "val"), teacher, strict=True):
        curves = [
            Curve(name, [(h.step, getattr(h, f"{kind}_accuracy")) for h in runs], *looks[name])
            for name, runs in histories.items()
        ]
        heading = {"train": "Training", "val": "Validation"}[kind]
        panels[heading] = Panel(curves, f"{heading.lower()} accuracy", line, accuracy=True)
    return panels_png(panels, title)


@dataclass(frozen=True)
class Panel:
    """Curves with the same axes.

    Attributes:
        quantity: the name of the vertical axis.
        teacher: where the horizontal line is; None for none.
        accuracy: the quantity is a share in [0, 1].
    """

    curves: Sequence[Curve]
    quantity: str
    teacher: float | None = None
    accuracy: bool = False


def panels_png(panels: Mapping[str, Panel], title: str = "") -> bytes:
    """Panels beside one another, over mini-batches, with one legend below them all. Returns a PNG file."""
    entries = len({curve.label for panel in panels.values() for curve in panel.curves}) + 1
    # A figure of its own, not pyplot's: no global state, and no window system is asked for.
    height = 4 + 0.22 * -(-entries // 3)
    figure = require("matplotlib.figure").Figure(figsize=(11, height), layout="constrained")
    axes_of = figure.subplots(1, len(panels), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axes, (heading, panel) in zip(axes_of, panels.items(), strict=True):
        for curve in panel.curves:
            handles[curve.label] = _draw(axes, curve)
        if panel.teacher is not None:
            handles["teacher"] = axes.axhline(panel.teacher, color="black", linestyle=(0, (6, 3)), linewidth=1)
        axes.set(xlabel="mini-batches", ylabel=panel.quantity, title=heading)
        if panel.accuracy:
            axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
    _legend(figure, handles)
    figure.suptitle(title)
    return _png(figure)


def intervals_png(
    rows: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], quantities: Sequence[str], title: str = ""
) -> bytes:
    """Differences with intervals, a panel for each quantity: rows from above to below, series in colours.

    Args:
        rows: by name, the series' (mean, margin) of each quantity.
        quantities: the names of the horizontal axes.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    height = 1.4 + 0.14 * sum(len(row) + 1 for row in rows.values()) + 0.22 * -(-len(series) // 3)
    figure = require("matplotlib.figure").Figure(figsize=(11, max(height, 3)), layout="constrained")
    axes_of = figure.subplots(1, len(quantities), squeeze=False, sharey=True)[0]
    handles: dict[str, Any] = {}
    y, ticks = 0, []
    for row in rows.values():
        ticks.append(y + (len(row) - 1) / 2)
        for name, estimates in row.items():
            i = series.index(name)
            look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            for axes, (mean, margin) in zip(axes_of, estimates, strict=True):
                handles[name] = axes.errorbar(mean, y, xerr=margin, markersize=4, capsize=2, linewidth=1.2, **look)
            y += 1
        y += 1
    for axes, quantity in zip(axes_of, quantities, strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlabel=quantity)
        axes.grid(alpha=0.3, axis="x")
    axes_of[0].set_yticks(ticks, list(rows))
    axes_of[0].invert_yaxis()
    _legend(figure, handles)
    figure.suptitle(title)
    return _png(figure)


def _draw(axes: Any, curve: Curve) -> Any:
    """The mean, and the range as a band."""
    found: dict[int, list[float]] = {}
    for steps, values in curve.runs:
        for step, value in zip(steps, values, strict=True):
            found.setdefault(step, []).append(value)
    steps = sorted(found)
    colour = COLOURS[curve.colour % len(COLOURS)]
    line = LINES[(curve.line + curve.colour // len(COLOURS)) % len(LINES)]
    if len(curve.runs) > 1:
        low, high = ([f(found[s]) for s in steps] for f in (min, max))
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    means = [statistics.fmean(found[s]) for s in steps]
    return axes.plot(steps, means, color=colour, linestyle=line, linewidth=1.6)[0]


def _legend(figure: Any, handles: Mapping[str, Any]) -> None:
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize="small", frameon=False
    )


def _png(figure: Any) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    return png.getvalue()
