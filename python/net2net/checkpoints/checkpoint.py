"""What all kinds of checkpoints have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from net2net.checkpoints.tally import Tally


@dataclass
class Checkpoint:
    """A checkpoint, or what is to become one.

    Attributes:
        format: its kind.
        tree: nested dicts and lists, with `Stored` tensors (of one that was read) or `Stream`s (of one to be written).
        log: the growth log.
        rest: what else the format keeps.
    """

    format: Format
    tree: Any
    log: list[dict[str, Any]] = field(default_factory=list)
    rest: Any = None


class Format(ABC):
    """A kind of checkpoint."""

    #: What it is called.
    name: str

    @abstractmethod
    def read(self, path: Path, scratch: Path | None = None) -> Checkpoint:
        """The checkpoint at `path`; values are read when they are looked at. In the folder `scratch` there is room.

        Raises:
            ValueError: it is no such checkpoint, or damaged.
        """

    @abstractmethod
    def write(self, checkpoint: Checkpoint, path: Path, tally: Tally) -> None:
        """The checkpoint, whose tree has streams, as something new at `path`."""

    def check_target(self, path: Path) -> None:  # noqa: B027  (folders may be called anything)
        """ValueError if nothing of this kind can be called so."""
