"""`net2net inspect`: show what of a model can be widened, what is coupled to what, and why something is left alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from net2net import inspection
from net2net.cli import arguments
from net2net.cli.command import Command
from net2net.files import write_atomically
from net2net.picture import picture


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="MODULE:FACTORY", help="what makes the model: torchvision.models:resnet18")
    add(
        "--input",
        required=True,
        action="append",
        metavar="SHAPE",
        help="of an input, 1x3x64x64; 1x16:50000 for tokens below 50000; once for each positional argument",
    )
    add(
        "--widen",
        type=arguments.positive_float,
        default=1.5,
        metavar="X",
        help="the factor to show (default: %(default)s)",
    )
    add("--svg", type=Path, metavar="FILE", help="draw the groups too, and how they are connected, into this file")


def _run(args: argparse.Namespace) -> int:
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


COMMAND = Command(
    "inspect",
    "show what of a model can be widened, what is coupled to what, and why something is left alone",
    "example:\n"
    "  net2net inspect --model torchvision.models:resnet18 --input 1x3x64x64\n"
    "  net2net inspect --model 'net2net.models:inception_bn(num_classes=10)' --input 2x3x64x64 --widen 2\n"
    "  net2net inspect --model torchvision.models:densenet121 --input 1x3x64x64 --svg densenet121.svg",
    _add_arguments,
    _run,
)
