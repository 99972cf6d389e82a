"""`net2net train`: train a network on images, with checkpoints that a killed run goes on from, bit by bit."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from net2net import console, options
from net2net.cli.command import Command
from net2net.training import TrainConfig, runs


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="begin with this config.json of another run; options go before it")
    add("--resume", action="store_true", help="go on with the run if it has been begun, from its last checkpoint")
    options.add_arguments(parser, TrainConfig)


def _run(args: argparse.Namespace) -> int:
    config = runs.read_config(args.config) if args.config else TrainConfig()
    given = options.given(TrainConfig, args)
    config = options.override(config, given)
    if args.resume and args.config is None:  # what is not given is as it was; a file gives everything
        config = options.override(runs.saved_config(runs.folder_of(config)) or config, given)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun has started
    with console.progress_bar(config.loop.steps, shown=first) as on_step:
        runs.run(config, resume=args.resume, on_step=lambda step: on_step("training", step), on_growth=print)
    if first:
        print("wrote", runs.folder_of(config))
    return 0


COMMAND = Command(
    "train",
    "train a network on images, with checkpoints that a killed run goes on from, bit by bit",
    "example:\n"
    "  net2net train --model 'net2net.models:inception_bn(base=0.125)' --steps 500\n"
    "  net2net train --name teacher --data imagenet --image-size 224 --batch-size 256 --workers 16 \\\n"
    "      --precision bfloat16 --channels-last --compile --label-smoothing 0.1 --ema 0.9999 --steps 500000 \\\n"
    "      --eval-every 5000 --save-every 5000\n"
    "  net2net train --name teacher --resume                        go on with it\n"
    "  net2net train --name other --config runs/teacher/config.json --seed 1\n"
    "  torchrun --nproc-per-node 8 -m net2net train --name teacher --resume\n"
    "  net2net train --steps 600 --grow 'step 300: widen 1.5' --grow 'plateau patience=3: deepen 1'\n\n"
    "Writes config.json, metrics.csv, metrics.jsonl and checkpoints/ into RUNS/NAME.",
    _add_arguments,
    _run,
)
