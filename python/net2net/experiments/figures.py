"""The figures of an experiment, from its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from net2net.experiments.experiment import Experiment
from net2net.experiments.replicas import NOTE
from net2net.experiments.runs import Result
from net2net.experiments.summary import by_variant_and_seed, difference
from net2net.plots import Curve, Panel, accuracies_png, intervals_png, panels_png
from net2net.training import History


def draw(experiment: Experiment, results: Sequence[Result]) -> dict[str, bytes]:
    """PNG files by name: those that the experiment wants, as far as there are results for them."""
    return {name: png for name in experiment.figures if (png := FIGURES[name](experiment, results))}


def curves(experiment: Experiment, results: Sequence[Result]) -> bytes:
    """The paper's: accuracy over mini-batches, one colour for a method, one kind of line for what tells its variants
    apart. The teacher's own training is shown where it is the reference."""
    teacher = _histories(experiment.teacher.name, results)
    itself = [experiment.teacher] if experiment.teacher.name == experiment.reference else []
    shown = [*itself, *experiment.shown]
    histories = {v.name: found for v in shown if (found := _histories(v.name, results))}
    if not histories or not teacher:
        return b""
    lines = fmean(h.train_accuracy[-1] for h in teacher), fmean(h.val_accuracy[-1] for h in teacher)
    return accuracies_png(histories, _looks(experiment), lines, experiment.title)


def replicas(experiment: Experiment, results: Sequence[Result]) -> bytes:
    """How far replicas are apart, over mini-batches."""
    looks = _looks(experiment)
    panels = {}
    for what, quantity in (("weights", "incoming weights"), ("outputs", "outputs")):
        found = []
        for v in experiment.shown:
            measured = [r.notes[NOTE] for r in results if r.variant == v.name and r.notes.get(NOTE)]
            if measured:
                found.append(Curve(v.name, [(m["step"], m[what]) for m in measured], *looks[v.name]))
        if found:
            panels[f"Replicas' {quantity}"] = Panel(found, "relative distance")
    return panels_png(panels, experiment.title) if panels else b""


def at_the_end(experiment: Experiment, results: Sequence[Result]) -> bytes:
    """What all variants came to, as the difference from the one that all are compared with, seed by seed, with
    intervals: a row for a method, a colour for what tells its variants apart."""
    by_variant = by_variant_and_seed(results)
    usual = by_variant.get(experiment.against or "", {})
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for v in experiment.variants:
        estimates = [
            difference(by_variant.get(v.name, {}), usual, measure)
            for measure in ("final training loss", "final accuracy")
        ]
        found = [(e.mean, e.margin or 0.0) for e in estimates if e is not None]
        if found and v.name != experiment.reference:  # far from all others
            rows.setdefault(v.method, {})[v.detail or v.method] = found
    quantities = [f"{what} at the end, difference" for what in ("training loss", "validation accuracy")]
    return intervals_png(rows, quantities, f"Compared with: {experiment.against}") if rows else b""


FIGURES: dict[str, Callable[[Experiment, Sequence[Result]], bytes]] = {
    "curves": curves,
    "replicas": replicas,
    "final": at_the_end,
}

CAPTIONS = {
    "curves": "Accuracy over mini-batches: means over seeds, and the seeds' range. Horizontal: the teacher's last. The "
    "axis begins below the lowest mean of the second half, not at 0.",
    "replicas": "Distance of replicas: 0 for equal ones, sqrt(2) for unrelated ones.",
    "final": "At the end: mean differences with 95 % confidence intervals, of all variants, seed by seed.",
}


def _histories(name: str, results: Sequence[Result]) -> list[History]:
    return [r.history for r in results if r.variant == name and r.history.step]


def _looks(experiment: Experiment) -> dict[str, tuple[int, int]]:
    """Colour by method, line by detail."""
    shown = [*experiment.shown, experiment.teacher]
    methods = list(dict.fromkeys(v.method for v in shown))
    details: dict[str, list[str]] = {}
    looks = {}
    for v in shown:
        known = details.setdefault(v.method, [])
        known.append(v.detail)
        looks[v.name] = methods.index(v.method), len(known) - 1
    return looks
