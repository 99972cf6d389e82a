"""The log of a run: every row in every file, and none of a future that has not been."""

import csv
from pathlib import Path

import pytest
from net2net.training import logs
from net2net.training.logs import Logs
from net2net.training.loop import COLUMNS, Row

ROWS: list[Row] = [
    {"step": 0, "epoch": 0, "seconds": 0.0, "val_loss": 2.5, "val_accuracy": 0.1},
    {"step": 10, "epoch": 0, "seconds": 0.5, "lr": 0.1, "loss": 1 / 3},
    {"step": 20, "epoch": 1, "seconds": 1.0, "lr": 0.1, "loss": 0.2, "val_loss": 1.5, "val_accuracy": 0.7},
]


def write(folder: Path, rows: list[Row], step: int = 0, fresh: bool = True) -> None:
    with Logs(folder, step, fresh=fresh) as log:
        for row in rows:
            log.row(row)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_both_files_have_every_row(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    assert logs.read(tmp_path) == ROWS
    lines = table(tmp_path)
    assert list(lines[0]) == list(COLUMNS)
    for line, row in zip(lines, ROWS, strict=True):
        assert {name: float(text) for name, text in line.items() if text} == row


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "epo')  # killed while it wrote
    assert logs.read(tmp_path) == ROWS
    write(tmp_path, ROWS[2:], step=10, fresh=False)
    assert logs.read(tmp_path) == ROWS
    assert len(table(tmp_path)) == 3


def test_a_new_run_begins_new_files(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, ROWS[:1])
    assert logs.read(tmp_path) == ROWS[:1]


def test_without_tensorboard_there_is_no_folder_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write(tmp_path, ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "metrics.jsonl"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own
def test_tensorboard_has_every_row(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, ROWS)
    write(tmp_path, ROWS[2:], step=10, fresh=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val_loss")] == [0, 20]
    assert [event.value for event in events.Scalars("val_loss")] == [2.5, 1.5]
