"""Figures, with matplotlib (the extra `n2n-kernels[demo]`)."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
        panels[heading] = Panel(curves, f"{heading.lower()} accuracy", line)
    limits = accuracy_limits(list(panels.values()))
    return panels_png({heading: replace(panel, limits=limits) for heading, panel in panels.items()}, title)


def accuracy_limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """Where the vertical axes of all these panels begin and end, so that curves can be told apart where they come to.

    They hold every mean in the second half of the curves, the teachers' lines, and a margin; what lies lower, in a
    random network's first steps, is left out.
    """
    means = [_means(curve) for panel in panels for curve in panel.curves]
    last = max(max(found) for found in means)
    values = [value for found in means for step, value in found.items() if 2 * step >= last]
    values += [panel.teacher for panel in panels if panel.teacher is not None]
    margin = max(0.1 * (max(values) - min(values)), 0.005)
    return max(min(values) - margin, -0.02), min(max(values) + margin, 1.02)


@dataclass(frozen=True)
class Panel:
    """Curves with the same axes.

    Attributes:
        quantity: the name of the vertical axis.
        teacher: where the horizontal line is; None for none.
        limits: of the vertical axis; None for what holds all curves.
    """

    curves: Sequence[Curve]
    quantity: str
    teacher: float | None = None
    limits: tuple[float, float] | None = None


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
            handles[curve.label] = _draw(axes, curve, min(0.12, 0.6 / len(panel.curves)))
        if panel.teacher is not None:
            handles["teacher"] = axes.axhline(panel.teacher, color="black", linestyle=(0, (6, 3)), linewidth=1)
        axes.set(xlabel="mini-batches", ylabel=panel.quantity, title=heading)
        if panel.limits is not None:
            axes.set_ylim(panel.limits)
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


def _by_step(curve: Curve) -> dict[int, list[float]]:
    """The values of those runs that got to a step, in the order of the steps."""
    found: dict[int, list[float]] = {}
    for steps, values in curve.runs:
        for step, value in zip(steps, values, strict=True):
            found.setdefault(step, []).append(value)
    return dict(sorted(found.items()))


def _means(curve: Curve) -> dict[int, float]:
    return {step: statistics.fmean(values) for step, values in _by_step(curve).items()}


def _draw(axes: Any, curve: Curve, opacity: float) -> Any:
    """The mean, and the range as a band, which is fainter where there are many."""
    found = _by_step(curve)
    steps = list(found)
    colour = COLOURS[curve.colour % len(COLOURS)]
    line = LINES[(curve.line + curve.colour // len(COLOURS)) % len(LINES)]
    if len(curve.runs) > 1:
        low, high = ([f(found[s]) for s in steps] for f in (min, max))
        axes.fill_between(steps, low, high, color=colour, alpha=opacity, linewidth=0)
    means = _means(curve)
    return axes.plot(steps, list(means.values()), color=colour, linestyle=line, linewidth=1.6)[0]


def _legend(figure: Any, handles: Mapping[str, Any]) -> None:
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize="small", frameon=False
    )


def _png(figure: Any) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    return png.getvalue()
