"""The main job: train a narrow teacher, grow it wider and deeper, and train on, beside the paper's baselines.

    teacher --widen--> standard width --deepen--> one more pair after every pair --> train on
    teacher --random pad--> standard width, one more random pair after every pair --> train
    random initialisation of the same architecture                               --> train

Nothing here prints, draws or writes: `run` returns a `DemoResult`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import net2net
from net2net.data import Dataset, MemoryFeed
from net2net.deepen import DeepenPlan
from net2net.models import InceptionBN, inception_bn
from net2net.models.inception import initialise_layers
from net2net.training import History, LoopConfig, Schedule, State, attach, rmsprop, train

TEACHER, NET2NET, RANDOM_PAD, SCRATCH = "teacher", "Net2Net", "random pad", "random initialisation"
GROWING = "growing"
NARROW = 0.3**0.5  # the paper's narrow teacher: about 30 % of the parameters in most layers
EXTRA_PAIRS = 1


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
        return Training(name, _count(model), lr, history)

    def fresh_optimizer(model: nn.Module, share: float = 1.0) -> torch.optim.Optimizer:
        return rmsprop(model.parameters(), config.lr * share, eps=config.eps)

    teacher = _network(config, dataset, device, width=NARROW)
    optimizer = fresh_optimizer(teacher)
    taught = training(TEACHER, teacher, optimizer, config.teacher_steps)

    on_step(GROWING, done)
    grown = _grow(config, dataset, teacher, optimizer)
    for group in grown.optimizer.param_groups:
        group["lr"] = config.lr * config.student_lr
    scratch = _network(config, dataset, device, extra_pairs=EXTRA_PAIRS)

    students = [
        training(NET2NET, grown.student, grown.optimizer, config.student_steps),
        training(RANDOM_PAD, grown.padded, fresh_optimizer(grown.padded, config.pad_lr), config.student_steps),
        training(SCRATCH, scratch, fresh_optimizer(scratch), config.student_steps),
    ]
    return DemoResult(config, dataset.name, len(dataset.train_x), len(dataset.val_x), taught, grown.steps, students)


def _network(
    config: DemoConfig,
    dataset: Dataset,
    device: torch.device | str,
    width: float = 1.0,
    extra_pairs: int = 0,
) -> InceptionBN:
    """A random network, the same for the same seed; the global generator stays as it is."""
    with _seeded(config.seed):
        network = inception_bn(
            dataset.num_classes, width, extra_pairs, dataset.in_channels, base=config.base, stem="small"
        )
    # channels_last is the faster layout for these layers on CPUs too: 20 to 25 % less time per step.
    return network.to(device).to(memory_format=torch.channels_last)


def _grow(config: DemoConfig, dataset: Dataset, teacher: InceptionBN, optimizer: torch.optim.Optimizer) -> _Grown:
    """Widen to the standard width, then deepen by one pair after every pair; and the random counterpart."""
    batch = dataset.train_x[: config.growth_images]
    standard = _network(config, dataset, "meta")
    deep = _network(config, dataset, "meta", extra_pairs=EXTRA_PAIRS)

    widths = {name: m.out_channels for name, m in standard.named_modules() if isinstance(m, nn.Conv2d)}
    started = time.perf_counter()
    widen = net2net.plan_widen(teacher, batch[:2], widths, seed=config.seed)
    wider, wide, optimizer = _apply("wider", widen, time.perf_counter() - started, teacher, optimizer, batch)
    _check_shapes("wider", wide, standard)

    def plan_deepen(model: nn.Module) -> DeepenPlan:
        return net2net.plan_deepen(
            model,
            batch[:2],
            after=teacher.pair_names(),
            count=2 * EXTRA_PAIRS,
            kernel_size=[(3, 1), (1, 3)],
            data=[batch],
            seed=config.seed,
        )

    started = time.perf_counter()
    deepen = plan_deepen(wide)
    deeper, student, optimizer = _apply("deeper", deepen, time.perf_counter() - started, wide, optimizer, batch)
    _check_shapes("deeper", student, deep)

    padded = net2net.random_pad(teacher, widen, seed=config.seed)
    deepen = plan_deepen(padded)
    padded = deepen.apply(padded)
    with _seeded(config.seed):
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
        _count(teacher),
        _count(student),
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


def _check_shapes(name: str, student: nn.Module, standard: nn.Module) -> None:
    """The student must be the standard network, up to the names that inserted layers have."""
    shapes, wanted = (sorted(tuple(p.shape) for p in m.parameters()) for m in (student, standard))
    if shapes != wanted:
        raise RuntimeError(
            f"the step {name!r} gave {_count(student)} parameters in {len(shapes)} tensors, "
            f"but the network it should give has {_count(standard)} in {len(wanted)}"
        )


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _wait(x: Tensor) -> None:
    """Wait for the device's work, so that the clock shows it."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
