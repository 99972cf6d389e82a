"""`net2net reproduce`: the paper's experiments, and the ablation of how replicas are told apart."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from pathlib import Path

from net2net import console, options
from net2net.cli.command import Command
from net2net.experiments import report
from net2net.experiments.config import BUDGETS, CHANGES, ReproduceConfig
from net2net.experiments.reproduce import EXPERIMENTS, configure, of_folder, reproduce
from net2net.experiments.runs import total_steps


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "experiment",
        choices=list(EXPERIMENTS),
        help="figure4: wider; figure5: deeper; figure6: beyond; symmetry: noise",
    )
    add(
        "--budget",
        choices=list(BUDGETS),
        default="smoke",
        help="what is not given is as it says (default: %(default)s)",
    )
    add("--out", type=Path, metavar="DIR", help="where results go, and are gone on with (default: runs/EXPERIMENT)")
    options.add_arguments(parser, ReproduceConfig, defaults=False)


def _run(args: argparse.Namespace) -> int:
    given = options.given(ReproduceConfig, args)
    config = configure(args.experiment, args.budget, given)
    out = args.out or Path("runs") / args.experiment
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out (={str(out)!r}) is a file, not a folder")
    experiment = EXPERIMENTS[args.experiment](config)
    with console.progress_bar(total_steps(experiment, config)) as on_step:
        results = reproduce(args.experiment, config, out, _command(args, given), on_step)
    shown, _ = of_folder(args.experiment, out)
    variants, *claims = report.tables(shown, results)
    for table in (variants.brief(0, 4, 5, 6, 8, 10), *(table.brief(0, 2, 3) for table in claims)):
        console.print_table(table.title, table.headings, table.rows)
    print("wrote", out / "report.html")
    return 0


def _command(args: argparse.Namespace, given: dict[str, object]) -> str:
    """The command line that says the same."""
    words = ["net2net", "reproduce", args.experiment, "--budget", args.budget]
    for name, value in given.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)


def _budgets() -> str:
    """What each sets, as options."""
    paragraphs = []
    for name, values in {**BUDGETS, **CHANGES}.items():
        text = f"{name}: " + "; ".join(f"{key.replace('_', '-')} {value}" for key, value in values.items())
        paragraphs.append(textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(paragraphs)


COMMAND = Command(
    "reproduce",
    "train teachers, students and baselines as in the paper's figures, with several seeds, and report what came of it",
    "example:\n"
    "  net2net reproduce figure4                                     the digits; some minutes per seed on a CPU\n"
    "  net2net reproduce figure5 --budget small --data cifar10       hours on a GPU\n"
    "  net2net reproduce figure4 --budget full --data imagenet --image-size 224 --out runs/imagenet4\n"
    "  net2net reproduce symmetry --seeds 8 --every\n\n"
    "The same command goes on after an interruption; more --seeds or other --rates add runs to those that are there,\n"
    "and the report shows all that --out has. A folder is of one experiment.\n"
    "--steps is for each student and baseline, --teacher-steps for the teacher, --lr the teacher's first rate.\n"
    "Writes report.html (everything in one page), table.md, figures and results.jsonl (raw numbers) into --out.\n\n"
    "budgets, and what experiments change of them:\n" + _budgets(),
    _add_arguments,
    _run,
)
