"""The main job: train a narrow teacher, grow it wider and deeper, and train on, beside the paper's baselines.

    teacher --widen--> standard width --deepen--> one more pair after every pair --> train on
    teacher --random pad--> standard width, one more random pair after every pair --> train
    random initialisation of the same architecture                               --> train

Nothing here prints, draws or writes: `run` returns a `DemoResult`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import net2net
from net2net.data import Dataset, MemoryFeed
from net2net.deepen import DeepenPlan
from net2net.experiments.networks import NARROW, Networks, Size, count, deepening, seeded
from net2net.models import InceptionBN
from net2net.models.inception import initialise_layers
from net2net.training import History, LoopConfig, Schedule, State, attach, rmsprop, train

TEACHER, NET2NET, RANDOM_PAD, SCRATCH = "teacher", "Net2Net", "random pad", "random initialisation"
GROWING = "growing"
SMALL, STANDARD, DEEP = Size(NARROW), Size(), Size(extra_pairs=1)


@dataclass(frozen=True)
class DemoConfig:
    """Everything that decides the outcome, apart from the data and the device."""

    seed: int = 0
    base: float = 0.125
    teacher_steps: int = 250
    student_steps: int = 250
    batch_size: int = 32
    lr: float = 0.045
    eps: float = 1.0
    student_lr: float = 0.1  # Net2Net's first rate, as a share of the teacher's: the paper's rule
    pad_lr: float = 0.3  # likewise random pad's: the best for it of 0.1, 0.3 and 1, with three seeds
    final_lr: float = 0.1  # every training ends at this share of its first rate
    eval_every: int = 20
    eval_images: int = 1000
    growth_images: int = 256  # one batch, on which statistics are taken and the growth is proved

    @property
    def total_steps(self) -> int:
        """Mini-batches of all four trainings together."""
        return self.teacher_steps + 3 * self.student_steps


@dataclass(frozen=True)
class Proof:
    """How far teacher and student are apart on a batch, in one mode.

    `max_abs` is the largest difference of a logit, `max_rel` that divided by the teacher's largest logit, both with the
    networks run in float64; the others are the same with the networks as they are.
    """

    max_abs: float
    max_rel: float
    max_abs_float32: float
    max_rel_float32: float


@dataclass(frozen=True)
class GrowthStep:
    """One function-preserving step: what it did, how long it took, and the proof that nothing changed."""

    name: str
    parameters_before: int
    parameters_after: int
    plan_seconds: float
    apply_seconds: float
    optimizer_seconds: float
    eval_mode: Proof
    train_mode: Proof
    skipped: list[str]
    summary: str


@dataclass(frozen=True)
class Training:
    """One training run. `lr` is its first learning rate."""

    name: str
    parameters: int
    lr: float
    history: History


@dataclass(frozen=True)
class DemoResult:
    """Everything that was measured; `dataclasses.asdict` makes it JSON-able."""

    config: DemoConfig
    dataset: str
    train_images: int
    val_images: int
    teacher: Training
    growth: list[GrowthStep]
    students: list[Training]

    def steps_to_teacher(self, training: Training) -> int | None:
        """Mini-batches until a student first had the teacher's final validation accuracy; None: it never had."""
        return training.history.steps_to_reach(self.teacher.history.val_accuracy[-1])


@dataclass(frozen=True)
class _Grown:
    """The teacher's descendants, before they are trained."""

    steps: list[GrowthStep]
    student: nn.Module
    optimizer: torch.optim.Optimizer
    padded: nn.Module


def run(
    config: DemoConfig,
    dataset: Dataset,
    device: torch.device | str = "cpu",
    on_step: Callable[[str, int], None] = lambda phase, steps: None,
) -> DemoResult:
    """Run the whole comparison.

    Args:
        config: sizes, steps, rates, seed.
        dataset: images for the network's "small" stem, about 16 to 64 pixels.
        device: where everything runs.
        on_step: called with the name of what is going on and the number of mini-batches done so far in all
            trainings together; `config.total_steps` at the end.

    Returns:
        The measurements.

    Raises:
        ValueError: `config` does not fit the data; names the argument and its value.
        RuntimeError: a growth step changed the function, or gave another architecture than it should.
    """
    dataset = dataset.to(device)
    networks = Networks(dataset.num_classes, dataset.in_channels, config.base)
    feed = MemoryFeed(dataset, config.batch_size, seed=config.seed, eval_images=config.eval_images)
    done = 0

    def training(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Training:
        nonlocal done
        before = done
        lr = optimizer.param_groups[0]["lr"]
        schedule = Schedule("cosine", steps=steps, final=config.final_lr)
        history = train(
            State(model, optimizer, attach(optimizer, schedule)),
            feed,
            LoopConfig(steps=steps, eval_every=config.eval_every),
            seed=config.seed,
            on_step=lambda step: on_step(name, before + step),
        )
        done += steps
        return Training(name, count(model), lr, history)

    def fresh_optimizer(model: nn.Module, share: float = 1.0) -> torch.optim.Optimizer:
        return rmsprop(model.parameters(), config.lr * share, eps=config.eps)

    teacher = networks.make(SMALL, config.seed, device)
    optimizer = fresh_optimizer(teacher)
    taught = training(TEACHER, teacher, optimizer, config.teacher_steps)

    on_step(GROWING, done)
    grown = _grow(config, networks, dataset, teacher, optimizer)
    for group in grown.optimizer.param_groups:
        group["lr"] = config.lr * config.student_lr
    scratch = networks.make(DEEP, config.seed, device)

    students = [
        training(NET2NET, grown.student, grown.optimizer, config.student_steps),
        training(RANDOM_PAD, grown.padded, fresh_optimizer(grown.padded, config.pad_lr), config.student_steps),
        training(SCRATCH, scratch, fresh_optimizer(scratch), config.student_steps),
    ]
    return DemoResult(config, dataset.name, len(dataset.train_x), len(dataset.val_x), taught, grown.steps, students)


def _grow(
    config: DemoConfig, networks: Networks, dataset: Dataset, teacher: InceptionBN, optimizer: torch.optim.Optimizer
) -> _Grown:
    """Widen to the standard width, then deepen by one pair after every pair; and the random counterpart."""
    batch = dataset.train_x[: config.growth_images]
    widths = networks.widths(STANDARD)
    started = time.perf_counter()
    widen = net2net.plan_widen(teacher, batch[:2], widths, seed=config.seed)
    wider, wide, optimizer = _apply("wider", widen, time.perf_counter() - started, teacher, optimizer, batch)
    networks.check(wide, STANDARD)

    def plan_deepen(model: nn.Module) -> DeepenPlan:
        return net2net.plan_deepen(model, batch[:2], **deepening(teacher, DEEP.extra_pairs, [batch], config.seed))

    started = time.perf_counter()
    deepen = plan_deepen(wide)
    deeper, student, optimizer = _apply("deeper", deepen, time.perf_counter() - started, wide, optimizer, batch)
    networks.check(student, DEEP)

    padded = net2net.random_pad(teacher, widen, seed=config.seed)
    deepen = plan_deepen(padded)
    padded = deepen.apply(padded)
    with seeded(config.seed):
        for name in deepen.inserted:
            initialise_layers(padded.get_submodule(name))
    return _Grown([wider, deeper], student, optimizer, padded)


def _apply(
    name: str,
    plan: net2net.GrowthPlan,
    plan_seconds: float,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
) -> tuple[GrowthStep, nn.Module, torch.optim.Optimizer]:
    """Carry out one step on weights and optimizer, time it, and prove it in eval and in train mode on `batch`."""
    started = time.perf_counter()
    student = plan.apply(teacher)
    _wait(batch)
    applied = time.perf_counter()
    grown = plan.grow_optimizer(optimizer, student)
    _wait(batch)
    finished = time.perf_counter()
    step = GrowthStep(
        name,
        count(teacher),
        count(student),
        plan_seconds,
        apply_seconds=applied - started,
        optimizer_seconds=finished - applied,
        eval_mode=_proof(name, teacher.eval(), student.eval(), batch),
        train_mode=_proof(name, teacher.train(), student.train(), batch),
        skipped=[str(skipped) for skipped in plan.skipped],
        summary=plan.summary(),
    )
    return step, student, grown


def _proof(name: str, teacher: nn.Module, student: nn.Module, batch: Tensor) -> Proof:
    """Compare the two on `batch` in the mode that they are in; RuntimeError if they are not the same function.

    That is decided in float64. In train mode a network of 47 and more normalised layers magnifies the rounding of its
    own forward pass: just after initialisation a teacher in float32 is 0.004 (relative) away from itself in float64,
    and so are its students from it. In float64 what remains is the growth's own share, the rounding of float32 weights.
    """
    in_float32 = net2net.verify(teacher, student, batch)
    exact = net2net.verify(
        copy.deepcopy(teacher).double(), copy.deepcopy(student).double(), batch.double(), tolerance=1e-3
    )
    if not exact.ok:
        mode = "train" if teacher.training else "eval"
        raise RuntimeError(f"the step {name!r} changed the function in {mode} mode: {exact}")
    return Proof(exact.max_abs, exact.max_rel, in_float32.max_abs, in_float32.max_rel)


def _wait(x: Tensor) -> None:
    """Wait for the device's work, so that the clock shows it."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
