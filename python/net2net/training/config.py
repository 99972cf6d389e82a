"""Everything that decides a run of `net2net train`, with the settings that Inception was trained with as defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from net2net.data import augment
from net2net.growth_schedule import GrowthSchedule
from net2net.optimizer import STATES
from net2net.options import Section, option
from net2net.training import optimizers, schedules
from net2net.training.loop import LoopConfig


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images, and what is done to them."""

    data: str = option(
        "digits",
        "folder with train/CLASS/* and val/CLASS/* (ImageNet's layout), FashionMNIST/raw/ or cifar-10-batches-py/; "
        "digits: scikit-learn's",
    )
    image_size: int | None = option(None, "side in pixels; automatic: the images' own, 16 to 64", least=8)
    augment: str = option(
        "auto",
        "inception: random part of the area, flip, colours; small: moved by up to 1/8, flip; shift: moved alone; "
        "auto: inception above 64 pixels, shift for the digits, else small",
        choices=("auto", *augment.KINDS),
    )
    batch_size: int = option(32, "images per mini-batch, of all processes together", least=1)
    workers: int = option(2, "processes that read images; 0: none but this one", least=0, changeable=True)
    in_memory: bool = option(
        False,
        "keep all images on the device, for small sets (digits always are). They are normalised by the training set's "
        "own mean and standard deviation, where images that are read have (x - 0.5) / 0.5: numbers differ from theirs",
    )
    eval_images: int = option(0, "evaluate on so many images of either set at most; 0: all of val/", least=0)


@dataclass(frozen=True)
class ModelConfig(Section):
    """The network."""

    model: str = option(
        "net2net.models:inception_bn",
        "what makes the model, as torchvision.models:resnet18(zero_init_residual=True); num_classes, in_channels and "
        "stem are given to it if it takes them",
    )
    ema: float = option(0.0, "decay of the moving average of the weights; 0: none", least=0, below=1)


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """How the weights are changed."""

    optimizer: str = option(
        "rmsprop",
        "rmsprop: epsilon inside the root, as Inception was trained (TensorFlow); rmsprop-torch: outside",
        choices=optimizers.KINDS,
    )
    lr: float = option(0.045, "first learning rate", above=0)
    momentum: float = option(0.9, "of RMSProp and SGD; AdamW's first beta", least=0, below=1)
    decay: float = option(0.9, "of RMSProp's squared gradients", least=0, below=1)
    eps: float | None = option(None, "epsilon; automatic: 1.0 for RMSProp, 1e-8 for AdamW", least=0)
    weight_decay: float = option(0.0, "of weights, not of biases and normalisations; Inception: 4e-5", least=0)


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """The learning rate over time."""

    schedule: str = option(
        "exponential",
        "exponential: times --decay-rate every --decay-epochs, as Inception; cosine: to --final-lr at the end",
        choices=schedules.KINDS,
    )
    warmup: int = option(0, "mini-batches over which the rate rises at first", least=0)
    final_lr: float = option(0.0, "the cosine's last rate, as a share of the first", least=0, most=1)
    decay_rate: float = option(0.94, "of the exponential schedule", above=0, most=1)
    decay_epochs: float = option(2.0, "of the exponential schedule", above=0)


#: Learning rates after a growth, beside any factor.
RATES = ("tenth", "dynamics", "keep")


@dataclass(frozen=True)
class GrowthConfig(Section):
    """When the network grows, and how training goes on then."""

    grow: str = option(
        "",
        "growth, such as 'step 2000: widen 1.5', 'epoch 10: deepen 1 after=stages.*' or 'plateau patience=3: "
        "widen 1.25'; may be given several times, in the order in which they will come",
        joined="; ",
    )
    growth_lr: str = option(
        "tenth",
        "learning rate after a growth; tenth: of the run's first one, from where the schedule goes on (in a warm-up: "
        "which that then leads up to); dynamics: the same, with steps as the smaller network would have taken them; "
        "keep: the same; or a factor",
    )
    growth_state: str = option("exact", "what becomes of the optimizer's state", choices=STATES)
    growth_batches: int = option(
        4, "coming mini-batches on which a growth is compared and new normalisations' statistics are taken", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        GrowthSchedule(self.grow)
        lr_rule(self.growth_lr)


def lr_rule(text: str) -> str | float:
    """One of `RATES`, or a factor. ValueError if it is neither."""
    if text in RATES:
        return text
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise ValueError(f"growth_lr (={text!r}) must be one of {', '.join(RATES)} or a positive factor")
    return factor


@dataclass(frozen=True)
class RunConfig(Section):
    """Where and on what."""

    name: str = option("train", "of the run; its folder is RUNS/NAME")
    runs: str = option("runs", "folder of all runs", changeable=True)
    start: str = option(
        "",
        "checkpoint to begin with: another run's, or what net2net grow has made of one. Weights, the optimizer's "
        "moments and the count of mini-batches are the checkpoint's; the learning rate (whatever growths have made of "
        "the other run's), its schedule from that count on, and the optimizer's other options are this run's",
    )
    keep: int = option(3, "checkpoints that are kept; 0: all", least=0, changeable=True)
    seed: int = option(0, "of everything random", least=0, below=2**63)
    device: str = option("auto", "cpu, cuda, cuda:1, ...; auto: a GPU if there is one", changeable=True)
    threads: int | None = option(None, "CPU threads; automatic: torch's own", least=1)
    deterministic: bool = option(False, "on a GPU too: only algorithms that give the same bits every time")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name in ("", ".", "..") or any(c in self.name for c in "/\\\0"):
            raise ValueError(f"name (={self.name!r}) must be the name of a folder in RUNS, not a path")


@dataclass(frozen=True)
class TrainConfig:
    """A run of `net2net train`, as it is saved in `config.json`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    run: RunConfig = field(default_factory=RunConfig)
