"""Lifelong learning: a training set that grows, and a network that grows with it.

    python -m net2net.experiments.lifelong --out runs/lifelong

The handwritten digits arrive in stages, each with more images than the last. A network that suits the first few of them
learns those; when more arrive, it is grown (wider, deeper, larger kernels) without changing what it computes, and goes
on with its optimizer's state. Beside it, the small network sees the same images in the same order and never grows, and
the final network starts anew with each stage's images. All validate on the same images.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from net2net.data import Dataset, MemoryFeed, digits
from net2net.environment import environment
from net2net.files import write_atomically
from net2net.growth_text import parse
from net2net.training import History, LoopConfig, State, rmsprop, train
from net2net.training.config import lr_rule
from net2net.training.growing import grow_state, upcoming
from net2net.training.growth_record import Record

GROWN, SMALL, ANEW = "grown", "small", "anew"


@dataclass(frozen=True)
class Stage:
    """New images, and what the network grows by when they arrive.

    Attributes:
        images: in the training set from now on.
        steps: mini-batches of this stage.
        growths: for `growth_text.parse`, without its "when: ".
    """

    images: int
    steps: int
    growths: tuple[str, ...] = ()


@dataclass(frozen=True)
class LifelongConfig:
    """Everything that decides the outcome, apart from the data and the device."""

    stages: tuple[Stage, ...] = (
        Stage(100, 150),
        Stage(400, 150, ("widen 2",)),
        Stage(1438, 150, ("widen 1.5", "deepen 1")),
    )
    width: int = 8
    batch_size: int = 32
    lr: float = 0.02
    growth_lr: str = "tenth"
    eval_every: int = 25
    seed: int = 0


@dataclass(frozen=True)
class StageResult:
    """A stage as the three networks went through it: parameters, and validation accuracy after its first `eval_every`
    mini-batches and at its end."""

    images: int
    parameters: dict[str, int]
    early: dict[str, float]
    val_accuracy: dict[str, float]
    growths: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class LifelongResult:
    """Everything that was measured; `dataclasses.asdict` makes it JSON-able."""

    config: LifelongConfig
    stages: list[StageResult]
    histories: dict[str, History]


def network(width: int, in_channels: int, num_classes: int) -> nn.Sequential:
    """A small convolutional network with batch normalisation, for images of 8 pixels and more."""

    def block(channels: int, units: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, units, 3, padding=1, bias=False), nn.BatchNorm2d(units), nn.ReLU()]

    return nn.Sequential(
        *block(in_channels, width),
        nn.MaxPool2d(2),
        *block(width, 2 * width),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, num_classes),
    )


def run(
    config: LifelongConfig,
    dataset: Dataset,
    device: torch.device | str = "cpu",
    on_growth: Callable[[Record], None] = lambda record: None,
) -> LifelongResult:
    """Go through all stages.

    Args:
        config: stages, rates, seed.
        dataset: images, of which the first ones of the training set are those of the first stage, and so on.
        device: where everything runs.
        on_growth: called with the record of every growth.

    Raises:
        ValueError: a stage has more images than there are, or fewer than the one before; names it.
    """
    counts = [stage.images for stage in config.stages]
    if not counts or counts != sorted(counts) or counts[-1] > len(dataset.train_x):
        raise ValueError(f"stages (images: {counts}) must grow, up to the {len(dataset.train_x)} images there are")
    dataset = dataset.to(device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        first = network(config.width, dataset.in_channels, dataset.num_classes).to(device)
    states = {name: _begin(first, config) for name in (GROWN, SMALL)}
    results: list[StageResult] = []
    end = 0
    for number, stage in enumerate(config.stages):
        seen = dataclasses.replace(
            dataset, train_x=dataset.train_x[: stage.images], train_y=dataset.train_y[: stage.images]
        )
        feed = MemoryFeed(seen, config.batch_size, seed=config.seed, max_shift=1)
        grown = states[GROWN]
        for state in states.values():
            state.epoch, state.batch = state.epoch + 1, 0  # places in the order of the images before mean nothing now
        records = []
        for [growth] in (parse(f"step {end}: {text}") for text in stage.growths):
            images = upcoming(grown, feed, 4)
            records.append(grow_state(grown, growth, images, lr=lr_rule(config.growth_lr), seed=config.seed + number))
            on_growth(records[-1])
        states[ANEW] = _begin(_anew(grown.model, config.seed), config)
        end += stage.steps
        for name, state in states.items():
            steps = stage.steps if name == ANEW else end
            train(state, feed, LoopConfig(steps=steps, eval_every=config.eval_every), seed=config.seed)
        results.append(
            StageResult(
                stage.images,
                {name: sum(p.numel() for p in state.model.parameters()) for name, state in states.items()},
                {name: _early(state.history, state.step - stage.steps) for name, state in states.items()},
                {name: state.history.val_accuracy[-1] for name, state in states.items()},
                records,
            )
        )
    return LifelongResult(config, results, {name: state.history for name, state in states.items()})


def table(result: LifelongResult) -> str:
    """A line per stage: images, and for each network parameters, validation accuracy early and at the end."""
    lines = [f"{'images':>8}" + "".join(f"{name:>26}" for name in (GROWN, SMALL, ANEW))]
    for stage in result.stages:
        names = (GROWN, SMALL, ANEW)
        cells = [f"{stage.parameters[n]:,} {stage.early[n]:8.1%} {stage.val_accuracy[n]:7.1%}" for n in names]
        lines.append(f"{stage.images:>8}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    usual = LifelongConfig()
    parser = argparse.ArgumentParser(prog="python -m net2net.experiments.lifelong", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("runs/lifelong"), help="where results.json goes")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of everything random (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="mini-batches of each stage (default: 150)")
    parser.add_argument("--growth-lr", default=usual.growth_lr, help="see net2net train (default: %(default)s)")
    args = parser.parse_args(argv)
    stages = tuple(dataclasses.replace(s, steps=s.steps if args.steps is None else args.steps) for s in usual.stages)
    config = dataclasses.replace(usual, stages=stages, seed=args.seed, growth_lr=args.growth_lr)
    torch.set_num_threads(1)  # layers as small as these are slower on several
    result = run(config, digits(), on_growth=print)
    print(table(result))
    args.out.mkdir(parents=True, exist_ok=True)
    document = dataclasses.asdict(result) | {"environment": environment()}
    write_atomically(args.out / "results.json", json.dumps(document, indent=1) + "\n")
    print("wrote", args.out / "results.json")
    return 0


def _early(history: History, start: int) -> float:
    """Validation accuracy at the first evaluation after step `start`."""
    return next(a for s, a in zip(history.step, history.val_accuracy, strict=True) if s > start)


def _begin(model: nn.Module, config: LifelongConfig) -> State:
    model = copy.deepcopy(model)
    return State(model, rmsprop(model.parameters(), config.lr))


def _anew(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture from random initialisation."""
    model = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()
    return model


if __name__ == "__main__":
    raise SystemExit(main())
