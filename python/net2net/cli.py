"""The command `net2net`. A subcommand is one entry of `COMMANDS`: its arguments, and a function that does the job."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from net2net import benchmarks, console, data, inspection, options
from net2net.devices import device as device_of
from net2net.environment import EXTRAS, environment
from net2net.experiments import artifacts, digits
from net2net.experiments.digits import DemoConfig
from net2net.extras import require
from net2net.files import write_atomically
from net2net.picture import picture
from net2net.training import TrainConfig, runs


@dataclass(frozen=True)
class Command:
    """A subcommand. `run` returns the exit status."""

    name: str
    help: str
    epilog: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return the exit status.

    0: done; 1: it could not be done, with the reason on stderr; 2: a wrong command line; 130: interrupted.
    """
    args = _parser().parse_args(argv)
    try:
        return args.command.run(args)
    except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        print(f"net2net {args.command.name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"net2net {args.command.name}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="net2net",
        description="Grow trained networks wider and deeper without changing what they compute.",
        epilog="example: net2net demo --out runs/demo",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = subparsers.add_parser(
            command.name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.set_defaults(command=command)
    return parser


# -- demo ------------------------------------------------------------------------------------------------------------


def _add_demo(parser: argparse.ArgumentParser) -> None:
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
        type=_positive_int,
        metavar="N",
        help="side in pixels that images are resized to (default: a folder's own, 16 to 64; digits 16)",
    )
    add("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="where results go (default: %(default)s)")
    for option, kind, default, text in (
        ("--seed", _seed, usual.seed, "of everything random"),
        ("--steps", _positive_int, usual.student_steps, "mini-batches for each of the three students"),
        ("--teacher-steps", _positive_int, usual.teacher_steps, "mini-batches for the teacher"),
        ("--eval-every", _positive_int, usual.eval_every, "mini-batches between two evaluations"),
        ("--batch-size", _positive_int, usual.batch_size, "images per mini-batch"),
        ("--lr", _positive_float, usual.lr, "the teacher's first learning rate"),
        ("--base", _positive_float, usual.base, "factor on all channels of the networks"),
    ):
        metavar = "X" if kind is _positive_float else "N"
        add(option, type=kind, default=default, metavar=metavar, help=f"{text} (default: %(default)s)")
    add(
        "--threads",
        type=_positive_int,
        metavar="N",
        help="CPU threads (default: 1 for the digits, whose layers are too small to share out; torch's own for --data)",
    )
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")


def _demo(args: argparse.Namespace) -> int:
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


# -- train -----------------------------------------------------------------------------------------------------------


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="begin with this config.json of another run; options go before it")
    add("--resume", action="store_true", help="go on with the run if it has been begun, from its last checkpoint")
    options.add_arguments(parser, TrainConfig)


def _train(args: argparse.Namespace) -> int:
    config = runs.read_config(args.config) if args.config else TrainConfig()
    given = options.given(TrainConfig, args)
    config = options.override(config, given)
    if args.resume:  # what is not given is as it was
        config = options.override(runs.saved_config(runs.folder_of(config)) or config, given)
    with console.progress_bar(config.loop.steps, shown=os.environ.get("RANK", "0") == "0") as on_step:
        runs.run(config, resume=args.resume, on_step=lambda step: on_step("training", step))
    print("wrote", runs.folder_of(config))
    return 0


# -- doctor ----------------------------------------------------------------------------------------------------------


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    pass


def _doctor(args: argparse.Namespace) -> int:
    """Plain prints: this must work where nothing but torch is installed."""
    found = environment()
    print("versions")
    for package, version in found["versions"].items():
        hint = f"  (pip install 'n2n-kernels[{EXTRAS[package]}]')" if package in EXTRAS else ""
        print(f"  {package:<14} {version if version is not None else 'not installed' + hint}")
    print("machine")
    print(f"  {'platform':<14} {found['platform']}")
    print(f"  {'cores':<14} {found['cpu_cores']} ({found['torch_threads']} threads used by torch)")
    print(f"  {'GPUs':<14} {', '.join(found['gpus']) or 'none'}")
    print(f"  {'torch CUDA':<14} {found['torch_cuda'] or 'torch is built without CUDA'}")
    print("kernels")
    for backend, reason in found["backends"].items():
        print(f"  {backend:<14} {'ok' if reason is None else 'missing: ' + reason}")
    build = found["build"]
    print("native module")
    print(f"  {'built':<14} {'yes' if build['native'] is None else 'no: ' + build['native']}")
    print(f"  {'CUDA':<14} {build['cuda'] or 'no, for the CPU alone'}")
    if build["cuda_architectures"]:
        print(f"  {'architectures':<14} {build['cuda_architectures']}")
    return 0


# -- bench -----------------------------------------------------------------------------------------------------------


def _add_bench(parser: argparse.ArgumentParser) -> None:
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
    add("--threads", type=_positive_int, metavar="N", help="CPU threads (default: torch's own)")
    add("--time-limit", type=_positive_float, metavar="SECONDS", help="skip what has not begun by then")


def _bench(args: argparse.Namespace) -> int:
    return benchmarks.run(args.out, args.size, args.only, args.threads, args.time_limit)


# -- inspect ---------------------------------------------------------------------------------------------------------


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="MODULE:FACTORY", help="what makes the model: torchvision.models:resnet18")
    add(
        "--input",
        required=True,
        action="append",
        metavar="SHAPE",
        help="of an input, 1x3x64x64; 1x16:50000 for tokens below 50000; once for each positional argument",
    )
    add("--widen", type=_positive_float, default=1.5, metavar="X", help="the factor to show (default: %(default)s)")
    add("--svg", type=Path, metavar="FILE", help="draw the groups too, and how they are connected, into this file")


def _inspect(args: argparse.Namespace) -> int:
    if args.svg is not None:  # better missed now than after the inference
        if args.svg.is_dir():
            raise IsADirectoryError(f"--svg (={str(args.svg)!r}) is a folder, not a file")
        if not args.svg.parent.is_dir():
            raise FileNotFoundError(f"--svg (={str(args.svg)!r}): there is no folder {str(args.svg.parent)!r}")
    example = inspection.inputs(args.input)
    model = inspection.build(args.model)
    plan, groups = inspection.inspect(model, example, args.widen)
    print(inspection.table(plan, groups))
    if args.svg is not None:
        write_atomically(args.svg, picture(groups, type(model).__name__))
        print("wrote", args.svg)
    return 0


# -- argument types --------------------------------------------------------------------------------------------------


def _positive_int(text: str) -> int:
    return _whole(text, least=1)


def _seed(text: str) -> int:
    return _whole(text, least=0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is less than {least}")
    return value


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive finite number")
    return value


COMMANDS: tuple[Command, ...] = (
    Command(
        "demo",
        "train a narrow network, grow it wider and deeper, train on, and compare with starting anew",
        "example:\n"
        "  net2net demo                                  handwritten digits, a minute or two on a CPU\n"
        "  net2net demo --data cifar10 --steps 2000      a folder with train/CLASS/* and val/CLASS/*\n\n"
        "Writes results.json (everything measured) and curves.png (the paper's figure 4) into --out.",
        _add_demo,
        _demo,
    ),
    Command(
        "train",
        "train a network on images, with checkpoints that a killed run goes on from, bit by bit",
        "example:\n"
        "  net2net train --model 'net2net.models:inception_bn(base=0.125)' --steps 500\n"
        "  net2net train --name teacher --data imagenet --image-size 224 --batch-size 256 --workers 16 \\\n"
        "      --precision bfloat16 --channels-last --compile --label-smoothing 0.1 --ema 0.9999 --steps 500000 \\\n"
        "      --eval-every 5000 --save-every 5000\n"
        "  net2net train --name teacher --resume                        go on with it\n"
        "  net2net train --name other --config runs/teacher/config.json --seed 1\n"
        "  torchrun --nproc-per-node 8 -m net2net train --name teacher --resume\n\n"
        "Writes config.json, metrics.csv, metrics.jsonl and checkpoints/ into RUNS/NAME.",
        _add_train,
        _train,
    ),
    Command(
        "inspect",
        "show what of a model can be widened, what is coupled to what, and why something is left alone",
        "example:\n"
        "  net2net inspect --model torchvision.models:resnet18 --input 1x3x64x64\n"
        "  net2net inspect --model 'net2net.models:inception_bn(num_classes=10)' --input 2x3x64x64 --widen 2\n"
        "  net2net inspect --model torchvision.models:densenet121 --input 1x3x64x64 --svg densenet121.svg",
        _add_inspect,
        _inspect,
    ),
    Command(
        "bench",
        "measure the kernels beside torch's own ways and the memory's speed, in a checkout of the source",
        "example:\n"
        "  net2net bench --out runs/bench                       what this machine has the size for\n"
        "  net2net bench --quick --only 'gather_scale.*bfloat16' --threads 2\n\n"
        "Writes bench.json (everything measured), bench.md (tables) and bench.png into --out.",
        _add_bench,
        _bench,
    ),
    Command(
        "doctor",
        "show versions, devices and backends, with a reason for every one that is missing",
        "example:\n  net2net doctor",
        _add_doctor,
        _doctor,
    ),
)
