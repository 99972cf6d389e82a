"""Figures, with matplotlib (the extra `n2n-kernels[demo]`)."""

from __future__ import annotations

import io
from collections.abc import Mapping

from net2net.extras import require
from net2net.training import History

# Okabe and Ito's palette: told apart with every kind of colour vision, and in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def curves_png(histories: Mapping[str, History], teacher: History, title: str = "") -> bytes:
    """The layout of the paper's figure 4: training accuracy, and beside it validation accuracy, over mini-batches.

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
    # A figure of its own, not pyplot's: no global state, and no window system is asked for.
    figure = require("matplotlib.figure").Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    train = {name: history.train_accuracy for name, history in histories.items()}
    val = {name: history.val_accuracy for name, history in histories.items()}
    for axes, kind, accuracies, line in (
        (panels[0], "Training", train, teacher.train_accuracy[-1]),
        (panels[1], "Validation", val, teacher.val_accuracy[-1]),
    ):
        for (name, accuracy), colour in zip(accuracies.items(), _cycle(len(histories)), strict=True):
            axes.plot(histories[name].step, accuracy, color=colour, label=name, linewidth=1.6)
        axes.axhline(line, color="black", linestyle="--", linewidth=1, label="teacher")
        axes.set(xlabel="mini-batches", ylabel=f"{kind.lower()} accuracy", title=kind, ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    panels[1].legend(loc="lower right")
    figure.suptitle(title)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
