"""`net2net demo`: train a narrow network, grow it wider and deeper, train on, and compare with starting anew."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from net2net import console, data
from net2net.cli import arguments
from net2net.cli.command import Command
from net2net.devices import device as device_of
from net2net.experiments import artifacts, digits
from net2net.experiments.digits import DemoConfig
from net2net.extras import require


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    usual = DemoConfig()
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="images to train on: a folder with train/CLASS/* and val/CLASS/*, or with FashionMNIST/raw/ "
        "(default: scikit-learn's handwritten digits)",
    )
    add(
        "--image-size",
        type=arguments.positive_int,
        metavar="N",
        help="side in pixels that images are resized to (default: a folder's own, 16 to 64; digits 16)",
    )
    add("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="where results go (default: %(default)s)")
    for option, kind, default, text in (
        ("--seed", arguments.seed, usual.seed, "of everything random"),
        ("--steps", arguments.positive_int, usual.student_steps, "mini-batches for each of the three students"),
        ("--teacher-steps", arguments.positive_int, usual.teacher_steps, "mini-batches for the teacher"),
        ("--eval-every", arguments.positive_int, usual.eval_every, "mini-batches between two evaluations"),
        ("--batch-size", arguments.positive_int, usual.batch_size, "images per mini-batch"),
        ("--lr", arguments.positive_float, usual.lr, "the teacher's first learning rate"),
        ("--base", arguments.positive_float, usual.base, "factor on all channels of the networks"),
    ):
        metavar = "X" if kind is arguments.positive_float else "N"
        add(option, type=kind, default=default, metavar=metavar, help=f"{text} (default: %(default)s)")
    add(
        "--threads",
        type=arguments.positive_int,
        metavar="N",
        help="CPU threads (default: 1 for the digits, whose layers are too small to share out; torch's own for --data)",
    )
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")


def _run(args: argparse.Namespace) -> int:
    for module in ("rich", "matplotlib"):  # better missed now than after the training
        require(module)
    if args.out.exists() and not args.out.is_dir():
        raise NotADirectoryError(f"--out (={str(args.out)!r}) is a file, not a folder")
    device = device_of(args.device)
    threads = args.threads
    if args.data is None:
        dataset = data.digits(args.image_size or 16)
        threads = threads or 1  # on a busy machine two threads that wait for each other take twice as long as one
    else:
        dataset = data.folder(args.data, args.image_size)
    if threads is not None:
        torch.set_num_threads(threads)
    config = DemoConfig(
        seed=args.seed,
        base=args.base,
        teacher_steps=args.teacher_steps,
        student_steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        eval_every=args.eval_every,
    )
    with console.progress_bar(config.total_steps) as on_step:
        result = digits.run(config, dataset, device, on_step)
    files = artifacts.write(result, args.out, str(device))
    console.print_result(result)
    print("wrote", " and ".join(str(path) for path in files))
    return 0


COMMAND = Command(
    "demo",
    "train a narrow network, grow it wider and deeper, train on, and compare with starting anew",
    "example:\n"
    "  net2net demo                                  handwritten digits, a minute or two on a CPU\n"
    "  net2net demo --data cifar10 --steps 2000      a folder with train/CLASS/* and val/CLASS/*\n\n"
    "Writes results.json (everything measured) and curves.png (the paper's figure 4) into --out.",
    _add_arguments,
    _run,
)
