"""A run that is killed goes on as if nothing had happened: the same bits at the end."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from net2net import options
from net2net.training import TrainConfig, checkpoint, logs, runs
from torch import nn

pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("rich", reason="rich is not installed")

TINY = "test_resume:tiny"
CASES: dict[str, dict[str, Any]] = {
    "read and augmented by workers": {"augment": "inception", "workers": 2, "ema": 0.9, "label_smoothing": 0.1},
    "in memory": {"in_memory": True, "optimizer": "adamw", "accumulate": 2, "clip": 1.0, "channels_last": True},
}


def tiny(num_classes: int, in_channels: int) -> nn.Module:
    """Batch statistics and dropout: both have state that must be carried over."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32, num_classes),
    )


def config_of(images: Path, tmp_path: Path, name: str, steps: int = 40, **changes: Any) -> TrainConfig:
    shared = {"data": str(images), "runs": str(tmp_path), "model": TINY, "batch_size": 8, "threads": 1, "device": "cpu"}
    every = {"steps": steps, "log_every": 2, "eval_every": 16, "save_every": 3, "lr": 0.01}
    return options.override(TrainConfig(), shared | every | {"name": name} | changes)


def work(config: TrainConfig, seconds: float | None) -> None:
    """Train; killed so many seconds after the first step, if any."""
    multiprocessing.set_start_method("fork", force=True)  # as outside: readers that start at once
    armed = False

    def on_step(step: int) -> None:
        nonlocal armed
        if not armed and seconds is not None:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        armed = True

    runs.run(config, resume=True, on_step=on_step)


def stay(config: TrainConfig, begun: Any, end: Any) -> None:
    """Train, but stay in the first step until the end."""
    multiprocessing.set_start_method("fork", force=True)

    def on_step(step: int) -> None:
        begun.set()
        end.wait()

    runs.run(config, on_step=on_step)


def train_in(processes: ForkServerContext, config: TrainConfig, seconds: float | None = None) -> int | None:
    process = processes.Process(target=work, args=(config, seconds))
    process.start()
    process.join(timeout=60)
    if process.is_alive():
        process.kill()
        pytest.fail("training did not end within a minute")
    return process.exitcode


def outcome(config: TrainConfig) -> tuple[dict[str, bytes], dict[str, Any], list[dict[str, float]]]:
    """What a run leaves, without the wall times."""
    place = runs.folder_of(config)
    last = checkpoint.saved(place / "checkpoints")[-1]
    state = json.loads((last / "state.json").read_text())
    del state["seconds"], state["history"]["seconds"]
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in logs.read(place)]
    return {file.name: file.read_bytes() for file in last.glob("*.safetensors")}, state, rows


def compare_killed_with_uninterrupted(
    processes: ForkServerContext, images: Path, tmp_path: Path, case: str, kills: int, longest: float, steps: int
) -> None:
    whole = config_of(images, tmp_path, "whole", steps, **CASES[case])
    assert train_in(processes, whole) == 0
    killed = config_of(images, tmp_path, "killed", steps, **CASES[case])
    moments = random.Random(kills)
    deaths = 0
    for _ in range(kills):
        deaths += train_in(processes, killed, moments.uniform(0, longest)) == -signal.SIGKILL
    assert deaths
    assert train_in(processes, killed) == 0
    for theirs, ours in zip(outcome(killed), outcome(whole), strict=True):
        assert theirs == ours
    place = runs.folder_of(killed)
    assert not [path.name for path in (*place.glob(".*"), *(place / "checkpoints").glob(".*"))]
    assert (place / "checkpoints" / "latest").read_text() == f"step-{steps:08d}\n"
    assert len(checkpoint.saved(place / "checkpoints")) == 3
    assert (place / "metrics.csv").read_text().count("\n") == 1 + len(logs.read(place))


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed(processes: ForkServerContext, images: Path, tmp_path: Path, case: str) -> None:
    compare_killed_with_uninterrupted(processes, images, tmp_path, case, kills=3, longest=0.3, steps=40)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_often(processes: ForkServerContext, images: Path, tmp_path: Path, case: str) -> None:
    compare_killed_with_uninterrupted(processes, images, tmp_path, case, kills=25, longest=1.0, steps=300)


def test_resuming_what_is_done_changes_nothing(processes: ForkServerContext, images: Path, tmp_path: Path) -> None:
    config = config_of(images, tmp_path, "done", steps=4, in_memory=True)
    assert train_in(processes, config) == 0
    before = outcome(config)
    assert train_in(processes, config) == 0
    assert outcome(config) == before


def test_runs_are_not_mixed_up(images: Path, tmp_path: Path) -> None:
    config = config_of(images, tmp_path, "run", steps=1, in_memory=True)
    runs.run(config)
    with pytest.raises(FileExistsError, match="run exists already; --resume goes on"):
        runs.run(config)
    with pytest.raises(ValueError, match=r"--lr \(=0.5\) is 0.01 in the run that is to be resumed"):
        runs.run(options.override(config, {"lr": 0.5}), resume=True)
    runs.run(options.override(config, {"keep": 1, "workers": 1}), resume=True)
    assert runs.saved_config(tmp_path / "run") == options.override(config, {"keep": 1, "workers": 1})
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["versions"]["torch"]


def test_a_run_is_one_process_at_a_time(processes: ForkServerContext, images: Path, tmp_path: Path) -> None:
    """Until it is killed, though its readers of images may outlive it."""
    config = config_of(images, tmp_path, "run", steps=3, log_every=1, workers=1)
    begun, end = processes.Event(), processes.Event()
    first = processes.Process(target=stay, args=(config, begun, end))
    first.start()
    assert begun.wait(60)
    log = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(BlockingIOError, match="run is being written by another process"):
        runs.run(config, resume=True)
    with pytest.raises(FileExistsError, match="exists already"):
        runs.run(config)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == log
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join(60)
    assert runs.run(config, resume=True).step == 3


def test_other_images_are_refused(images: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(images, tmp_path / "images"))
    config = config_of(copied, tmp_path, "run", steps=1, workers=0)
    runs.run(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    for split, message in (("val", "19 validation images now, and had 20"), ("train", "39 training images now, and")):
        next((copied / split).glob("*/*.png")).unlink()
        with pytest.raises(ValueError, match=rf"--data \(='.*images'\) has {message}"):
            runs.run(config, resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 41}, r"batch_size \(=41\) must be at most the training set's 40 images"),
        ({"model": "torch.nn:Identity"}, r"--model \(='torch.nn:Identity'\) must return logits \[1, 10\], not \[1, 3"),
        ({"model": "torchvision.models:resnet18", "image_size": 8, "data": "digits"}, "cannot take images"),
        ({"in_memory": True, "augment": "inception"}, r"--augment \(='inception'\) is for images that are read"),
        ({"data": "nowhere"}, "does not exist"),
    ],
)
def test_refused_before_anything_is_written(
    images: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        runs.run(config_of(images, tmp_path, "refused", **changes))
    assert not (tmp_path / "refused").exists()
