"""`net2net bench`: measure the kernels beside torch's own ways and the memory's speed, in a checkout of the source."""

from __future__ import annotations

import argparse
from pathlib import Path

from net2net import benchmarks
from net2net.cli import arguments
from net2net.cli.command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="where results go (default: %(default)s)")
    size = parser.add_mutually_exclusive_group()
    for name, text in (
        ("quick", "few tensors of each case: minutes on a CPU, and the default there"),
        ("full", "full sizes, as many tensors as fit into memory: the default on a GPU"),
        ("check", "full sizes of the most important cases"),
    ):
        size.add_argument(f"--{name}", dest="size", action="store_const", const=name, help=text)
    add("--only", metavar="PATTERN", help="measure what this regular expression occurs in: 'op: case: contender call'")
    add("--threads", type=arguments.positive_int, metavar="N", help="CPU threads (default: torch's own)")
    add("--time-limit", type=arguments.positive_float, metavar="SECONDS", help="skip what has not begun by then")


def _run(args: argparse.Namespace) -> int:
    return benchmarks.run(args.out, args.size, args.only, args.threads, args.time_limit)


COMMAND = Command(
    "bench",
    "measure the kernels beside torch's own ways and the memory's speed, in a checkout of the source",
    "example:\n"
    "  net2net bench --out runs/bench                       what this machine has the size for\n"
    "  net2net bench --quick --only 'gather_scale.*bfloat16' --threads 2\n\n"
    "Writes bench.json (everything measured), bench.md (tables) and bench.png into --out.",
    _add_arguments,
    _run,
)
