"""Checkpoints: all that a run is, complete or absent, never overwritten."""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path

import net2net
import pytest
import torch
from net2net.files import new_folder, remove_folder, write_atomically
from net2net.rmsprop import RMSpropTF
from net2net.training import State, checkpoint, moving_average
from net2net.training.logs import Logs
from net2net.training.schedules import Schedule, attach
from torch import nn

pytest.importorskip("safetensors", reason="safetensors is not installed")


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file can be larger than so many bytes, as on a full disk."""
    resource = pytest.importorskip("resource", reason="there are no such limits")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Tied(nn.Module):
    """Two names for one weight, a four-dimensional one, batch statistics."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.bn(self.conv(x)).mean(dim=(2, 3))))


OPTIMIZERS = {
    "rmsprop-tf": lambda p: RMSpropTF(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, betas=(0.8, 0.99)),
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
}


def make(optimizer: str = "rmsprop-tf", width: int = 6, seed: int = 0) -> State:
    torch.manual_seed(seed)
    model = Tied(width).to(memory_format=torch.channels_last)
    weights = OPTIMIZERS[optimizer](model.parameters())
    return State(model, weights, attach(weights, Schedule("exponential", warmup=4)), moving_average(model, 0.9))


def advance(state: State, steps: int) -> None:
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.step)
        state.optimizer.zero_grad()
        state.model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        state.optimizer.step()
        assert state.scheduler is not None
        assert state.ema is not None
        state.scheduler.step()
        state.ema.update_parameters(state.model)
        state.advance(batches_per_epoch=3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_restored_state_goes_on_alike(tmp_path: Path, optimizer: str) -> None:
    state = make(optimizer)
    advance(state, 5)
    state.notes = {"growth": ["step 2: widen"]}
    state.history.step.append(5)
    state.generators = [{"torch": "00"}]
    path = checkpoint.save(state, tmp_path)
    assert path.name == "step-00000005"
    assert (tmp_path / "latest").read_text() == "step-00000005\n"
    other = make(optimizer, seed=1)
    checkpoint.restore(other, path)
    for name in (*checkpoint.SIMPLE, "history"):
        assert getattr(other, name) == getattr(state, name)
    for mine, theirs in zip(state.model.parameters(), other.model.parameters(), strict=True):
        a, b = state.optimizer.state[mine], other.optimizer.state[theirs]
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert torch.equal(value, b[key])
            assert value.stride() == b[key].stride()
    assert [type(v) for v in state.optimizer.param_groups[0].values()] == [
        type(v) for v in other.optimizer.param_groups[0].values()
    ]
    advance(state, 5)
    advance(other, 5)
    assert state.ema is not None
    assert other.ema is not None
    for a_model, b_model in ((state.model, other.model), (state.ema, other.ema)):
        pairs = zip(a_model.state_dict().values(), b_model.state_dict().values(), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)
    assert other.model.second.weight is other.model.first.weight
    assert state.optimizer.param_groups[0]["lr"] == other.optimizer.param_groups[0]["lr"]


def test_a_grown_optimizer_that_keeps_its_teachers_dynamics(tmp_path: Path) -> None:
    """Its factors are tensors in the groups of parameters; they are saved too, and used again."""
    x = torch.randn(4, 3, 8, 8)
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        plan = net2net.plan_widen(model, x, 1.5)
        student = plan.apply(model)
        states.append(State(student, plan.grow_optimizer(RMSpropTF(model.parameters()), student, dynamics=True)))
    first, second = states
    first.optimizer.zero_grad()
    first.model(x).square().sum().backward()
    first.optimizer.step()
    second.optimizer = RMSpropTF(second.model.parameters())
    checkpoint.restore(second, checkpoint.save(first, tmp_path))
    for state in states:
        state.optimizer.zero_grad()
        state.model(x).square().sum().backward()
        state.optimizer.step()
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    factors = first.optimizer.param_groups[0]["net2net_dynamics"]
    assert any(f["value"] or f["gradient"] for f in factors)


def test_tied_weights_are_there_once_under_their_names(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = checkpoint.save(make(), tmp_path)
    tensors = safetensors.load_file(path / "model.safetensors")
    assert "first.weight" in tensors
    assert "second.weight" not in tensors
    assert json.loads((path / "state.json").read_text())["shared"] == {"second.weight": "first.weight"}


def test_never_overwritten(tmp_path: Path) -> None:
    state = make()
    path = checkpoint.save(state, tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    with pytest.raises(FileExistsError, match="step-00000000 exists already"):
        checkpoint.save(state, tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before
    assert not list(tmp_path.glob(".*"))


def test_so_many_are_kept(tmp_path: Path) -> None:
    state = make()
    for _ in range(4):
        checkpoint.save(state, tmp_path, keep=2)
        state.step += 1
    assert [path.name for path in checkpoint.saved(tmp_path)] == ["step-00000002", "step-00000003"]


def test_what_does_not_fit_is_named_and_nothing_is_touched(tmp_path: Path) -> None:
    state = make()
    advance(state, 1)
    path = checkpoint.save(state, tmp_path)
    wide = make(width=8)
    before = copy.deepcopy(wide.model.state_dict())
    with pytest.raises(ValueError, match=r"bn.bias is \(6,\) there and \(8,\) in the model"):
        checkpoint.restore(wide, path)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), wide.model.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="has the state of RMSpropTF, the run's optimizer is SGD"):
        checkpoint.restore(make("sgd"), path)
    without = make()
    without.ema = None
    with pytest.raises(ValueError, match="has a ema, the run has none"):
        checkpoint.restore(without, path)
    with pytest.raises(ValueError, match="is no checkpoint"):
        checkpoint.restore(state, tmp_path / "step-9")
    document = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**document, "version": 99}))
    with pytest.raises(ValueError, match="of version 99"):
        checkpoint.restore(state, path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_before_any_write_rename_or_removal(tmp_path: Path) -> None:
    """The process dies before its n-th call that changes the disk, for every n: what is there can be gone on from."""
    torch.set_num_threads(1)
    state = make()
    for _ in range(2):
        checkpoint.save(state, tmp_path / "before", keep=2)
        advance(state, 1)
    finished, n = False, 0
    while not finished:
        folder = tmp_path / str(n)
        folder.mkdir()
        for old in checkpoint.saved(tmp_path / "before"):
            (folder / old.name).mkdir()
            for file in old.iterdir():
                os.link(file, folder / old.name / file.name)
        (folder / "latest").write_text("step-00000001\n")
        child = os.fork()
        if child == 0:
            _die_before_call(n)
            try:
                checkpoint.save(state, folder, keep=2)
            finally:
                os._exit(0)
        finished = os.waitpid(child, 0)[1] == 0
        last = checkpoint.saved(folder)[-1]
        assert int(last.name[5:]) >= int((folder / "latest").read_text()[5:])
        assert (folder / (folder / "latest").read_text().strip()).is_dir()
        for path in checkpoint.saved(folder):
            restored = make(seed=1)
            checkpoint.restore(restored, path)
            assert restored.step == int(path.name[5:])
        checkpoint.clean(folder)
        assert not list(folder.glob(".*"))
        n += 1
    assert n > 10


def _die_before_call(n: int) -> None:
    left = n

    def dying(call):  # type: ignore[no-untyped-def]
        def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal left
            if left == 0:
                os._exit(9)
            left -= 1
            return call(*args, **kwargs)

        return wrapper

    for name in ("fsync", "rename", "replace", "chmod", "unlink", "rmdir", "mkdir"):
        setattr(os, name, dying(getattr(os, name)))


def test_new_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "new") as place:
            (place / "file").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "new") as place:
        (place / "file").write_text("whole")
    assert (tmp_path / "new" / "file").read_text() == "whole"
    remove_folder(tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_files")
def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"model\.safetensors of .*step-00000000.* cannot be written .*can be resumed"):
        checkpoint.save(make(width=20), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"File too large: '.*a\.json'"):
        write_atomically(tmp_path / "a.json", " " * 2000)
    with Logs(tmp_path) as logs, pytest.raises(OSError, match=r"File too large: '.*metrics\.jsonl'"):
        logs.row({"step": 1, "grown": "x" * 2000})
    assert not [path for path in tmp_path.iterdir() if path.name == "a.json"]
