"""Everything that decides a reproduction of the paper's experiments, and the budgets that choose it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from net2net.options import Section, option
from net2net.training.config import DataConfig, OptimizerConfig, ScheduleConfig
from net2net.training.loop import LoopConfig


@dataclass(frozen=True)
class GridConfig(Section):
    """Which runs there are."""

    seeds: int = option(2, "everything is run so often, with the seeds 0, 1, ...", least=1, changeable=True)
    teacher_steps: int = option(250, "mini-batches of the teacher; --steps is for each of the others", least=1)
    rates: str = option(
        "0.04,0.1,0.2",
        "the students' first learning rates as shares of the teacher's; the paper advises 0.1, its figure 4 has 0.002, "
        "0.005 and 0.01",
        changeable=True,
    )
    feature_prediction: bool = option(
        False, "figure4: also a student that learns to predict the teacher's hidden layers", changeable=True
    )
    every: bool = option(
        False,
        "symmetry: every combination of noise, optimizer state and rate rule, not one thing changed at a time",
        changeable=True,
    )
    base: float = option(0.125, "factor on all channels of the networks", least=0.01)
    growth_batches: int = option(
        8, "mini-batches on which statistics are taken where layers are added, and growth is compared", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.shares

    @property
    def shares(self) -> list[float]:
        """`rates` as numbers."""
        try:
            found = [float(word) for word in self.rates.split(",")]
        except ValueError:
            found = []
        if not found or not all(0 < share < float("inf") for share in found) or len(set(found)) < len(found):
            raise ValueError(f"rates (={self.rates!r}) must be different positive numbers, separated by commas")
        return found

    def together(self, before: GridConfig) -> GridConfig:
        """The grid with the runs of both, which may differ in what is changeable."""
        rates = self.rates
        if set(before.shares) - set(self.shares):
            rates = ",".join(f"{share:g}" for share in sorted({*self.shares, *before.shares}))
        return replace(
            self,
            seeds=max(self.seeds, before.seeds),
            rates=rates,
            feature_prediction=self.feature_prediction or before.feature_prediction,
            every=self.every or before.every,
        )


@dataclass(frozen=True)
class MachineConfig(Section):
    """Where."""

    device: str = option("auto", "cpu, cuda, cuda:1, ...; auto: a GPU if there is one", changeable=True)
    threads: int | None = option(None, "CPU threads; automatic: torch's own", least=1, changeable=True)
    deterministic: bool = option(False, "on a GPU too: only algorithms that give the same bits every time")


@dataclass(frozen=True)
class ReproduceConfig:
    """An experiment as it is saved in `config.json`. What training is like is what `net2net train` has, too."""

    grid: GridConfig = field(default_factory=GridConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)


#: What an experiment has otherwise. The paper has one rate where it deepens; and where rules for the rate are compared,
#: the teacher's must not have run down to a tenth, or "keep" and "tenth" were the same.
CHANGES: dict[str, dict[str, Any]] = {
    "figure5": {"rates": "0.1"},
    "figure6": {"rates": "0.1"},
    "symmetry": {"final_lr": 0.3},
}

#: What each budget sets; all else has its default.
BUDGETS: dict[str, dict[str, Any]] = {
    # Minutes per seed on one CPU core, with the digits.
    "smoke": {
        "seeds": 2, "base": 0.125, "teacher_steps": 250, "steps": 200, "batch_size": 32, "eval_every": 20,
        "save_every": 100, "schedule": "cosine", "final_lr": 0.1, "channels_last": True, "threads": 1,
        "growth_batches": 8,
    },
    # For small images (Fashion-MNIST, CIFAR-10): about an hour on a GPU, a night on a CPU.
    "small": {
        "seeds": 3, "base": 0.25, "teacher_steps": 4000, "steps": 4000, "batch_size": 64, "eval_every": 100,
        "save_every": 1000, "schedule": "cosine", "final_lr": 0.1, "channels_last": True, "in_memory": True,
        "eval_images": 5000, "growth_batches": 8,
    },
    # The network in its full size, as Inception was trained: many hours on a GPU.
    "full": {
        "seeds": 3, "base": 1.0, "teacher_steps": 100_000, "steps": 100_000, "batch_size": 128, "eval_every": 1000,
        "save_every": 2000, "schedule": "exponential", "label_smoothing": 0.1, "weight_decay": 4e-5, "clip": 2.0,
        "precision": "bfloat16", "channels_last": True, "compile": True, "workers": 12, "eval_images": 10_000,
        "growth_batches": 4,
    },
}  # fmt: skip
