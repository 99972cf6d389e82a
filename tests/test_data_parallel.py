"""Training in two processes, as `torchrun` starts them: the same gradients as in one, and the same state in both."""

import os
import shutil
import signal
import socket
import threading
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from net2net import options
from net2net.training import TrainConfig, checkpoint, logs, runs
from test_resume import outcome
from torch import nn

load_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").load_file

if not dist.is_available():
    pytest.skip("torch is built without distributed training", allow_module_level=True)


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


def plain(num_classes: int, in_channels: int) -> nn.Module:
    """Nothing that depends on how a mini-batch is shared out, in float64."""
    layers = nn.Conv2d(in_channels, 4, 3, stride=4), nn.Tanh(), nn.Flatten(), nn.Linear(100, num_classes)
    return nn.Sequential(Double(), *(layer.double() for layer in layers))


def normalised(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(4, num_classes),
    )


def deeper(num_classes: int, in_channels: int) -> nn.Module:
    first, norm, *rest = normalised(num_classes, in_channels)
    return nn.Sequential(first, norm, nn.ReLU(), *rest)


def config_of(images: Path, tmp_path: Path, name: str, model: str, **changes: Any) -> TrainConfig:
    every = {"steps": 12, "log_every": 2, "eval_every": 6, "save_every": 3, "lr": 0.01, "augment": "none", "workers": 0}
    fixed = {"data": str(images), "runs": str(tmp_path), "batch_size": 8, "threads": 1, "device": "cpu", "keep": 0}
    return options.override(TrainConfig(), every | fixed | {"name": name, "model": f"{__name__}:{model}"} | changes)


def work(config: TrainConfig, rank: int, port: int, seconds: float | None) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}
    if port:
        os.environ.update({name: str(value) for name, value in where.items()})
    if seconds is not None:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    state = runs.run(config, resume=True)
    held = {f"model {name}": tensor for name, tensor in state.model.state_dict().items()}
    held |= {f"ema {name}": tensor for name, tensor in state.ema.state_dict().items()} if state.ema else {}
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    for parameter, entries in state.optimizer.state.items():
        held |= {f"optimizer {names[parameter]} {key}": torch.as_tensor(value) for key, value in entries.items()}
    torch.save(held, runs.folder_of(config) / f"rank{rank}.pt")


def train_in(processes: ForkServerContext, config: TrainConfig, ranks: int, seconds: float | None = None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] if ranks > 1 else 0
    started = [processes.Process(target=work, args=(config, rank, port, seconds)) for rank in range(ranks)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=60)
        if process.is_alive():
            process.kill()
            pytest.fail("training did not end within a minute")
    assert seconds is not None or [process.exitcode for process in started] == [0] * ranks


@pytest.mark.parametrize("grow", ["", "step 5: widen 1.5"])
def test_two_processes_do_what_one_does(processes: ForkServerContext, images: Path, tmp_path: Path, grow: str) -> None:
    one = config_of(images, tmp_path, "one", "plain", optimizer="sgd", ema=0.8, clip=1.0, grow=grow)
    two = options.override(one, {"name": "two"})
    parts = options.override(one, {"name": "parts", "accumulate": 2})
    train_in(processes, one, 1)
    train_in(processes, two, 2)
    train_in(processes, parts, 2)
    rows = {config.run.name: logs.read(runs.folder_of(config)) for config in (one, two, parts)}
    for other in (two, parts):
        for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
            a, b = (
                load_file(checkpoint.saved(runs.folder_of(config) / "checkpoints")[-1] / file)
                for config in (one, other)
            )
            assert a.keys() == b.keys()
            for name in a:
                torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-12, msg=name)
        for mine, theirs in zip(rows["one"], rows[other.run.name], strict=True):
            mine, theirs = (untimed(row) for row in (mine, theirs))
            assert mine.pop("grown", None) == theirs.pop("grown", None)
            assert mine.pop("growth_max_abs", 0) == pytest.approx(theirs.pop("growth_max_abs", 0), abs=1e-13)
            assert mine.pop("growth_max_rel", 0) == pytest.approx(theirs.pop("growth_max_rel", 0), abs=1e-13)
            assert mine == pytest.approx(theirs, rel=1e-9)


def test_both_have_the_same_in_the_end_and_one_writes(
    processes: ForkServerContext, images: Path, tmp_path: Path
) -> None:
    config = config_of(images, tmp_path, "two", "normalised", ema=0.5)
    train_in(processes, config, 2)
    place = runs.folder_of(config)
    first, second = (torch.load(place / f"rank{rank}.pt") for rank in range(2))
    saved = load_file(checkpoint.saved(place / "checkpoints")[-1] / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:  # running statistics too
        assert torch.equal(first[name], second[name]), name
    for name in saved:
        assert torch.equal(first[f"model {name}"], saved[name]), name
    assert [path.name for path in checkpoint.saved(place / "checkpoints")] == [
        f"step-{s:08d}" for s in (0, 3, 6, 9, 12)
    ]
    assert [row["step"] for row in logs.read(place)] == [0, 2, 4, 6, 8, 10, 12]


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("seconds", "growth_seconds")}


@pytest.mark.parametrize("rule", ["tenth", "dynamics"])
def test_both_grow_alike(processes: ForkServerContext, images: Path, tmp_path: Path, rule: str) -> None:
    """Bit for bit, though each has running statistics of its own until then; killed just after it, too."""
    grow = "step 4: widen 1.5; step 4: deepen 1; plateau patience=1 delta=9: widen 2"
    whole = config_of(
        images, tmp_path, "whole", "deeper", ema=0.5, optimizer="adamw", grow=grow, growth_lr=rule, save_every=5
    )
    train_in(processes, whole, 2)
    first, second = (torch.load(runs.folder_of(whole) / f"rank{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert [row["step"] for row in logs.read(runs.folder_of(whole)) if "grown" in row] == [4, 4, 6]
    # As if killed after the first two growths, in the third.
    place = runs.folder_of(whole) / "checkpoints"
    for path in checkpoint.saved(place)[2:]:
        shutil.rmtree(path)
    (place / "growth" / "03-widen-step-00000006.json").unlink()
    train_in(processes, whole, 2)
    again = torch.load(runs.folder_of(whole) / "rank1.pt")
    for name in first:
        assert torch.equal(first[name], again[name]), name


def test_killed_and_resumed(processes: ForkServerContext, images: Path, tmp_path: Path) -> None:
    whole = config_of(images, tmp_path, "whole", "normalised", steps=60, augment="small", keep=2)
    killed = options.override(whole, {"name": "killed"})
    train_in(processes, whole, 2)
    for seconds in (0.6, 0.9):
        train_in(processes, killed, 2, seconds)
    train_in(processes, killed, 2)
    assert outcome(killed) == outcome(whole)
