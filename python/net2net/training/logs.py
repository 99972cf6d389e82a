"""What a run leaves to read: `metrics.jsonl` and `metrics.csv`, and TensorBoard's events where that is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from net2net.files import naming, write_atomically
from net2net.training.loop import COLUMNS, Row


class Logs:
    """Rows appended to the files in `folder`; see `COLUMNS`. Used in a `with` statement.

    Args:
        folder: exists.
        step: the run goes on after so many steps. Rows of later ones, written before it was killed, are dropped, and
            will be written again.
    """

    def __init__(self, folder: Path, step: int = 0, *, fresh: bool = True) -> None:
        rows = [] if fresh else [row for row in read(folder) if row["step"] <= step]
        write_atomically(folder / "metrics.jsonl", "".join(map(_json, rows)))
        write_atomically(folder / "metrics.csv", ",".join(COLUMNS) + "\n" + "".join(map(_csv, rows)))
        self._jsonl = (folder / "metrics.jsonl").open("a")
        self._csv = (folder / "metrics.csv").open("a")
        self._tensorboard: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=None if fresh else step + 1)

    def row(self, row: Row) -> None:
        """Write one row; who reads along sees it at once."""
        for file, text in ((self._jsonl, _json(row)), (self._csv, _csv(row))):
            with naming(Path(file.name)):
                file.write(text)
                file.flush()
        if self._tensorboard is not None:
            for name, value in row.items():
                if isinstance(value, str):
                    self._tensorboard.add_text(name, value, row["step"])
                elif name != "step":
                    self._tensorboard.add_scalar(name, value, row["step"])

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._jsonl, self._csv, self._tensorboard):
            if file is not None:
                with suppress(OSError):  # of a row that could not be written, which has been said
                    file.close()


def read(folder: Path) -> list[Row]:
    """The rows in `metrics.jsonl`, without one whose writing was interrupted; none if there is no such file."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # a whole row ends with a newline
    return [json.loads(line) for line in lines]


def _json(row: Row) -> str:
    return json.dumps(row) + "\n"


def _csv(row: Row) -> str:
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
    return text.getvalue()
