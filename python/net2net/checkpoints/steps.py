"""One checkpoint grown into another, by one plan or several."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from net2net.checkpoints import formats, log
from net2net.checkpoints.architecture import architecture
from net2net.checkpoints.checkpoint import Checkpoint
from net2net.checkpoints.positions import Orders, check_order
from net2net.checkpoints.tally import Progress, Tally
from net2net.checkpoints.trees import Grown, leaves
from net2net.files import check_new, workshop
from net2net.optimizer import check_state
from net2net.plan import GrowthPlan


@dataclass(frozen=True)
class CheckpointReport:
    """What growing a checkpoint did.

    Attributes:
        source, target: the checkpoints.
        models, optimizers: what in them was grown, by its name within the checkpoint (`""`: all of it).
        tensors: in the target.
        bytes_written: of tensors in the target.
        seconds: what all of it took.
        by_position: those of the optimizers that know their parameters by position, which were taken to be in the
            model's order.
        not_finite: tensors of the target that have NaN or infinities -> how many; their bits are the source's.
    """

    source: Path
    target: Path
    models: list[str]
    optimizers: list[str]
    tensors: int
    bytes_written: int
    seconds: float
    not_finite: dict[str, int] = field(default_factory=dict)
    by_position: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        named = [f"{what} {name!r}" if name else f"the {what}" for what, names in
                 (("model", self.models), ("optimizer", self.optimizers)) for name in names]  # fmt: skip
        lines = [
            f"{self.target}: {', '.join(named)} grown; {self.tensors} tensors, {self.bytes_written / 2**20:.1f} MiB in "
            f"{self.seconds:.1f} s"
        ]
        lines += [f"  note: {name} has {n} numbers that are not finite" for name, n in self.not_finite.items()]
        if self.by_position:
            lines.append(
                "  note: the optimizer knows its parameters by position; they were taken to be in the order of "
                "model.parameters() (order= and --order say otherwise)"
            )
        if self.left:
            some = ", ".join(self.left[:3]) + (f" and {len(self.left) - 3} more" if len(self.left) > 3 else "")
            lines.append(f"  note: left as they were, though they may be of parameters that grew: {some}")
        return "\n".join(lines)


def grow_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    plans: Sequence[GrowthPlan],
    *,
    optimizer: str | None = None,
    state: str = "exact",
    model: nn.Module | None = None,
    order: Orders | None = None,
    progress: Progress | None = None,
) -> CheckpointReport:
    """`GrowthPlan.grow_checkpoint` for several growths, one after the other.

    Between two of them the checkpoint lies in a hidden folder beside `dst`. `model` is the one before the first,
    and `order` that of its parameters.
    """
    started = time.perf_counter()
    source, target = Path(src), Path(dst)
    plans = list(plans)
    if not plans:
        raise ValueError("plans is empty: there is nothing to do")
    check_state(state)
    check_order(order)
    assumed = order is None
    check_paths(source, target)
    with workshop(target) as folder:
        with _told(source, target, _FULL):  # tensors that lie in shards are put together there
            current = formats.read(source, folder)
        for number, plan in enumerate(plans):
            grown = Grown(
                plan, current.tree, optimizer=optimizer, state=state, model=model, order=order, what=str(source)
            )
            done = [*current.log, log.entry(plan, source.name)]
            new = Checkpoint(current.format, grown.tree, done, current.rest)
            place = folder / f"{number}{source.suffix}"
            if number == len(plans) - 1:
                new, place = formats.written_as(new, target), folder / target.name
            streams = [stream for _, stream in leaves(new.tree)]
            tally = Tally(progress, sum(stream.nbytes for stream in streams))
            with _told(source, target):
                new.format.write(new, place, tally)
            if place.name != target.name:
                with _told(source, target, _FULL):
                    current = new.format.read(place, folder)
                model = None if model is None else architecture(plan, model)
                order = grown.order
    return CheckpointReport(
        source, target, grown.models, grown.optimizers, len(streams), tally.written, time.perf_counter() - started,
        tally.not_finite, grown.by_position if assumed else [], grown.left,
    )  # fmt: skip


#: There is no more room, or not for this file, or not for this user.
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def _told(source: Path, target: Path, only: tuple[int, ...] = ()) -> Iterator[None]:
    """What the system says while something is written (`only` these errors) is told as being about the target."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        first = _of_the_system(error)
        if first is None or (only and first.errno not in only):
            raise
        raise OSError(first.errno, f"{target} cannot be written: {first.strerror}; {source} is as it was") from error


def _of_the_system(error: BaseException | None) -> OSError | None:
    """What the system said: torch's writers stumble over what a full disk has not taken."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def check_paths(source: Path, target: Path) -> None:
    """Raises what `grow_checkpoint` does about its paths, before anything is read."""
    formats.format_of(source)  # there is something
    if target.exists() and target.samefile(source):
        raise ValueError(f"dst (={str(target)!r}) is src: a checkpoint is never overwritten")
    if source.is_dir() and source.resolve() in target.resolve().parents:
        raise ValueError(f"dst (={str(target)!r}) is inside of src (={str(source)!r}), which stays as it is")
    check_new(target)
