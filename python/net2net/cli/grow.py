"""`net2net grow`: grow a checkpoint into another one, in bounded memory."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from net2net import console, inspection
from net2net.checkpoints import grow_checkpoint, load
from net2net.checkpoints.architecture import architecture, with_zeros
from net2net.checkpoints.load import network
from net2net.checkpoints.positions import ORDERS
from net2net.checkpoints.steps import check_paths
from net2net.cli import arguments
from net2net.cli.command import Command
from net2net.deepen import plan_deepen
from net2net.growth_text import Deepen, Kernel, What, Widen, parse_what
from net2net.kernel_size import plan_kernels
from net2net.optimizer import LAWS, STATES
from net2net.plan import GrowthPlan
from net2net.running import Inputs
from net2net.skeleton import in_mode
from net2net.verify import verify
from net2net.widen import plan_widen

Step = What | Path


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("src", type=Path, metavar="SRC", help="a .safetensors or .pt file, or a folder: shards, a run's, or DCP's")
    add("dst", type=Path, metavar="DST", help="of the same kind; there must be nothing yet")
    for name, metavar, what in (
        ("widen", "'X [OPTION=VALUE ...]'", "by a factor: 1.5, or '1.5 layers=stages.* split=dyadic'"),
        ("deepen", "'N [OPTION=VALUE ...]'", "by so many layers at each place: 1, or '1 after=stages.*'"),
        ("kernel", "'N layers=NAMES'", "larger kernels: '5 layers=stem'"),
    ):
        add(
            f"--{name}",
            dest="steps",
            action="append",
            type=partial(_step, name),
            metavar=metavar,
            help=f"grow {what}; steps are done in the order in which they are given",
        )
    add("--plan", dest="steps", action="append", type=Path, metavar="FILE", help="a step by a plan that was saved")
    add("--model", metavar="MODULE:FACTORY", help="what makes the network before its first growth")
    add(
        "--input",
        action="append",
        metavar="SHAPE",
        help="of an input, 1x3x64x64; 1x16:50000 for tokens below 50000; once for each positional argument",
    )
    add("--seed", type=arguments.seed, default=0, metavar="N", help="of steps that do not say one (default: 0)")
    add(
        "--optimizer",
        metavar="NAME",
        choices=sorted(c.__name__ for c in LAWS),
        help="whose state is in SRC, where it does not say: %(choices)s",
    )
    add(
        "--order",
        metavar="ORDER",
        help="in which an optimizer without names has its parameters: 'model' or 'names' (in each group as in "
        "model.parameters(), or sorted), or a file with all names, one a line",
    )
    add("--state", choices=STATES, default="exact", help="what becomes of the optimizer's state (default: exact)")
    add("--verify", action="store_true", help="then load both networks and compare them on random inputs")


def _step(kind: str, text: str) -> Step:
    try:
        return parse_what(f"{kind} {text}")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _run(args: argparse.Namespace) -> int:
    steps: list[Step] = args.steps or []
    if not steps:
        raise ValueError("nothing to do: give --widen, --deepen, --kernel or --plan")
    check_paths(args.src, args.dst)
    order = _order(args.order)
    planned = all(isinstance(step, Path) for step in steps)
    if not planned or args.verify:
        for name in ("model", "input"):
            if not getattr(args, name):
                raise ValueError(f"--{name} is needed to plan (and to --verify)")
    model = network(args.src, partial(_base, args.model), in_memory=False) if args.model else None
    example = _inputs(args.input or (), model)
    plans, first = [], model
    for step in steps:
        plan = GrowthPlan.load(step) if isinstance(step, Path) else _plan(step, model, example, args.seed)
        print(plan.summary())
        plans.append(plan)
        model = None if model is None else with_zeros(architecture(plan, model))
    with _bar() as progress:
        report = grow_checkpoint(
            args.src,
            args.dst,
            plans,
            optimizer=args.optimizer,
            state=args.state,
            model=first,
            order=order,
            progress=progress,
        )
    print(report)
    if args.verify:
        exact = all(getattr(plan, "noise", "") != "paper" for plan in plans)
        teacher, student = (in_mode(load(path, partial(_base, args.model)), False) for path in (args.src, args.dst))
        found = verify(teacher, student, example)
        print(found)
        return 0 if found.ok or not exact else 1
    return 0


def _order(given: str | None) -> str | list[str] | None:
    if given is None or given in ORDERS:
        return given
    try:
        return Path(given).read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--order (={given!r}) must be {' or '.join(ORDERS)}, or a file of names: {error}") from error


def _base(spec: str) -> nn.Module:
    """The network, if possible without memory for its values: those that count are in the checkpoint."""
    try:
        with torch.device("meta"):
            model = inspection.build(spec)
    except (RuntimeError, NotImplementedError):  # it looks at values
        return in_mode(inspection.build(spec), False)
    saved = model.state_dict(keep_vars=True).values()
    if any(all(buffer is not t for t in saved) for buffer in model.buffers()):
        model = inspection.build(spec)  # what is in no checkpoint has to be made
    return in_mode(model, False)


def _inputs(shapes: Sequence[str], model: nn.Module | None) -> tuple[Tensor, ...]:
    """Random ones, of the dtype that the checkpoint has."""
    dtypes = (p.dtype for p in (model.parameters() if model is not None else ()) if p.is_floating_point())
    dtype = next(dtypes, torch.float32)
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inspection.inputs(shapes))


def _plan(step: What, model: Any, example: Inputs, seed: int) -> GrowthPlan:
    if isinstance(step, Widen):
        return plan_widen(model, example, step.width, **{"seed": seed, **step.options})
    if isinstance(step, Deepen):
        return plan_deepen(model, example, count=step.count, **{"seed": seed, **step.options})
    assert isinstance(step, Kernel)
    return plan_kernels(model, example, dict.fromkeys(step.layers, step.size))


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar where it can be shown: growing does without."""
    if importlib.util.find_spec("rich") is None:
        yield None
        return
    with console.bytes_bar() as progress:
        yield progress


COMMAND = Command(
    "grow",
    "grow a checkpoint into another one, in bounded memory, with its optimizer's state",
    "example:\n"
    "  net2net grow resnet18.safetensors wide.safetensors --model torchvision.models:resnet18 --input 1x3x64x64 \\\n"
    "      --widen 1.5 --deepen '1 after=layer4.*' --verify\n"
    "  net2net grow teacher.pt student.pt --model my.models:vit --input 2x3x224x224 --optimizer AdamW --widen 2\n"
    "  net2net grow runs/teacher/checkpoints/step-00005000 grown --plan growth.json\n\n"
    "The growth log is in what is written: net2net.load(path, factory) makes the grown network of it.",
    _add_arguments,
    _run,
)
