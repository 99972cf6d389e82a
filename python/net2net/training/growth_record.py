"""What is known of a growth in the training loop when it has been done."""

from __future__ import annotations

from dataclasses import dataclass

from net2net.training.loop import Row
from net2net.training.state import State


@dataclass(frozen=True)
class Record:
    """A growth that was done; pairs are before and after.

    Attributes:
        entry: of the schedule.
        step: mini-batches done before.
        max_abs: the largest difference of an output between before and after, in eval mode, on the mini-batches that
            the growth was planned on; None where nothing could be compared.
        max_rel: the same relative to the largest output.
        seconds: what planning, growing and comparing took.
        parameters: their numbers.
        model_bytes: of parameters and buffers.
        optimizer_bytes: of the optimizer's state.
        lr: of the first group of parameters.
        plans: names of the files that have the plans; none where they were not to be saved.
        warming: the share that the schedule's warm-up leaves of these rates; 1 when it is over.
    """

    entry: str
    step: int
    max_abs: float | None
    max_rel: float | None
    seconds: float
    parameters: tuple[int, int]
    model_bytes: tuple[int, int]
    optimizer_bytes: tuple[int, int]
    lr: tuple[float, float]
    plans: list[str]
    warming: float = 1.0

    def __str__(self) -> str:
        changed = "not compared" if self.max_abs is None else f"outputs changed by at most {self.max_abs:.1e}"
        (before, after), (slow, fast) = self.parameters, self.lr
        warming = "" if self.warming == 1 else f" (warming up to {fast / self.warming:.4g})"
        sizes = "; ".join(
            f"{what} {a / 2**20:.2f} -> {b / 2**20:.2f} MiB"
            for what, (a, b) in (("model", self.model_bytes), ("optimizer", self.optimizer_bytes))
        )
        return (
            f"grown after {self.step} mini-batches ({self.entry}): {before:,} -> {after:,} parameters, {changed}; "
            f"{sizes}; learning rate {slow:.4g} -> {fast:.4g}{warming}; {self.seconds:.2f} s"
        )

    def row(self, state: State) -> Row:
        """For the log."""
        compared = {} if self.max_abs is None else {"growth_max_abs": self.max_abs, "growth_max_rel": self.max_rel}
        return {
            "step": self.step,
            "epoch": state.epoch,
            "seconds": state.seconds,
            "lr": self.lr[1],
            "grown": self.entry,
            "parameters": self.parameters[1],
            **compared,
            "growth_seconds": self.seconds,
            "model_bytes": self.model_bytes[1],
            "optimizer_bytes": self.optimizer_bytes[1],
        }
