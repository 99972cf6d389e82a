"""The report of an experiment: one HTML page that holds all it shows, and the same tables as Markdown."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from net2net import options
from net2net.experiments import summary
from net2net.experiments.config import ReproduceConfig
from net2net.experiments.experiment import Experiment
from net2net.experiments.runs import Result
from net2net.experiments.summary import Estimate, Row, Verdict


@dataclass(frozen=True)
class Table:
    """Names in the first column, figures in the others."""

    title: str
    headings: list[str]
    rows: list[list[str]]

    def brief(self, *columns: int) -> Table:
        """Some of the columns."""
        pick = [self.headings, *self.rows]
        headings, *rows = [[line[i] for i in columns] for line in pick]
        return Table(self.title, headings, rows)

    def markdown(self) -> str:
        lines = [self.headings, ["---"] + ["---:"] * (len(self.headings) - 1), *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}\n"

    def html(self) -> str:
        def line(tag: str, cells: list[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "\n".join(line("td", row) for row in self.rows)
        return (
            f"<h2>{escape(self.title)}</h2>\n<table>\n<thead>{line('th', self.headings)}</thead>\n"
            f"<tbody>\n{body}\n</tbody>\n</table>"
        )


def tables(experiment: Experiment, results: Sequence[Result]) -> list[Table]:
    """The variants, and the claims."""
    found = [variants_table(summary.rows(experiment, results), experiment.reference, experiment.against)]
    verdicts = summary.verdicts(experiment, results)
    return [*found, claims_table(verdicts)] if verdicts else found


def variants_table(rows: Sequence[Row], reference: str, against: str | None = None) -> Table:
    """One row for each variant; with `against`, the differences from that one too."""
    columns: dict[str, Callable[[Row], str]] = {
        "variant": lambda row: row.variant,
        "parameters": lambda row: f"{row.parameters:,}",
        "first rate": lambda row: f"{row.lr:.4g}",
        "seeds": lambda row: f"{row.seeds}" + (f" ({row.diverged} diverged)" if row.diverged else ""),
        "to the teacher's": lambda row: reached(row.to_teacher, row.seeds),
        f"to that of {reference}": lambda row: reached(row.to_reference, row.seeds),
        "speed-up": lambda row: ratio(row.speed_up),
        "loss before any step": lambda row: number(row.first_loss, "{:.3f}"),
        "validation accuracy": lambda row: number(row.final, "{:.2%}"),
        "training accuracy": lambda row: number(row.train, "{:.2%}"),
        "training loss": lambda row: number(row.loss, "{:.4f}"),
    }
    if against is not None:
        columns[f"training loss, less that of {against}"] = lambda row: number(row.less, "{:+.4f}")
        columns[f"validation accuracy, less that of {against}"] = lambda row: number(row.more, "{:+.2%}")
    body = [[cell(row) for cell in columns.values()] for row in rows]
    return Table("Mini-batches to an accuracy, and what it was at the end", list(columns), body)


def claims_table(verdicts: Sequence[Verdict]) -> Table:
    """One row for each claim."""
    return Table(
        "What was claimed, and what was found",
        ["claim", "compared by", "difference", "verdict"],
        [[v.claim.text, v.claim.measure, number(v.difference, "{:+.4f}"), v.words] for v in verdicts],
    )


def number(estimate: Estimate | None, form: str) -> str:
    """The mean, and the margin of its interval."""
    if estimate is None:
        return "-"
    text = form.format(estimate.mean)
    return text if estimate.margin is None else f"{text} ± {form.replace('+', '').format(estimate.margin)}"


def reached(steps: Sequence[int], seeds: int) -> str:
    """The mean number of mini-batches, and in how many seeds, if it was not all."""
    if not steps:
        return "never"
    return f"{sum(steps) / len(steps):.0f}" + (f" ({len(steps)} of {seeds})" if len(steps) < seeds else "")


def ratio(value: float | None) -> str:
    """Of mini-batches."""
    return "-" if value is None else "at once" if math.isinf(value) else f"{value:.1f}x"


NOTES = (
    "Means over seeds; ± is half of the 95 % confidence interval by Student's t. Accuracies and losses at the end are "
    "means over the last quarter of a run's evaluations after the first step, rounded up, and at most "
    f"{summary.LAST} of them. An accuracy is reached at the first evaluation that has it. The goals are of the same "
    "seed: of the teacher, its last evaluation, for that very network is what students begin with; of the reference, "
    "its accuracy at the end. The speed-up compares mini-batches to the latter with those of the reference itself. "
    "Verdicts compare seed by seed; where the interval of the difference holds 0, they are undecided. There, "
    "differences in accuracy count as spread by one image of the validation set at least. Mean accuracy is the area "
    "under the validation curve."
)


def size(config: ReproduceConfig) -> str:
    """How large an experiment it is, in a sentence: no one shall take a small one for the paper's."""
    grid = config.grid
    return (
        f"Images: {config.data.data}, {config.data.batch_size} per mini-batch. Networks with {grid.base:g} times the "
        f"channels of the standard one; {grid.teacher_steps:,} mini-batches for the teacher, {config.loop.steps:,} for "
        "each of the others."
    )


def markdown(experiment: Experiment, config: ReproduceConfig, results: Sequence[Result], command: str) -> str:
    """The tables, for a README."""
    parts = [f"# {experiment.title}\n", f"    {command}\n", f"{size(config)}\n", f"{NOTES}\n"]
    return "\n".join([*parts, *(table.markdown() for table in tables(experiment, results))])


def html(
    experiment: Experiment,
    config: ReproduceConfig,
    results: Sequence[Result],
    figures: Mapping[str, bytes],
    environment: Mapping[str, Any],
    command: str,
) -> str:
    """A page that needs no other file: images are in it, and nothing is loaded. It is well-formed XML, too.

    Args:
        figures: PNG files by what stands below them.
        environment: see `net2net.environment`.
        command: that made it.
    """
    images = "\n".join(
        f'<figure><img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(caption)}" />'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, png in figures.items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    machine = f"{environment['platform']}; GPUs: {', '.join(environment['gpus']) or 'none'}; {versions}"
    settings = Table(
        "Settings",
        ["option", "value"],
        [
            [f"--{name.replace('_', '-')}", str(value)]
            for section in options.to_json(config).values()
            for name, value in section.items()
        ],
    )
    seeds = Table(
        "Every run", ["run", "seed", "final validation accuracy", "seconds", "ended"], [_run(r) for r in results]
    )
    body = "\n".join(table.html() for table in tables(experiment, results))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<title>{escape(experiment.title)}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }}
th, td {{ padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top }}
th:first-child, td:first-child {{ text-align: left }}
figure {{ margin: 1.5rem 0 }}
img {{ max-width: 100% }}
figcaption {{ color: #555; font-size: 13px }}
code {{ background: #f3f3f3; padding: 0.1rem 0.3rem }}
</style>
</head>
<body>
<h1>{escape(experiment.title)}</h1>
<p><code>{escape(command)}</code></p>
<p>{escape(size(config))}</p>
{images}
{body}
<p>{escape(NOTES)}</p>
{seeds.html()}
{settings.html()}
<p>{escape(machine)}</p>
</body>
</html>
"""


def _run(result: Result) -> list[str]:
    history = result.history
    accuracy = "-" if result.error else f"{summary.final(history.step, history.val_accuracy):.2%}"
    seconds = f"{history.seconds[-1]:.0f}" if history.step else "-"
    return [result.variant, str(result.seed), accuracy, seconds, result.error or "as planned"]
