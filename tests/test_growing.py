"""Growth inside the training loop: verified, logged, and the same however often the run is killed."""

import dataclasses
import multiprocessing
import os
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import net2net
import pytest
import torch
from net2net.data import Dataset, MemoryFeed, digits
from net2net.files import remove_folder
from net2net.growth_text import parse
from net2net.training import (
    LoopConfig,
    Schedule,
    State,
    TrainConfig,
    attach,
    growing,
    logs,
    moving_average,
    runs,
    train,
)
from net2net.training.config import GrowthConfig
from net2net.training.growing import Growing, grow_state, plans
from net2net.training.growth_record import Record
from net2net.training.loop import COLUMNS
from net2net.training.optimizers import make
from test_resume import config_of, outcome, tiny
from torch import nn

pytest.importorskip("safetensors", reason="safetensors is not installed")

pytestmark = pytest.mark.usefixtures("one_thread")

ENTRIES = "step 7: widen 1.5; step 10: deepen 1; step 10: kernel 5 layers=0; plateau patience=2 delta=9: widen 1.25"
CASES: dict[str, dict[str, Any]] = {
    "a tenth": {"ema": 0.9, "optimizer": "rmsprop", "schedule": "cosine", "augment": "inception"},
    "dynamics": {"growth_lr": "dynamics", "optimizer": "adamw", "channels_last": True, "in_memory": True},
}


@pytest.fixture(scope="module")
def data() -> Dataset:
    small = digits()
    return dataclasses.replace(small, train_x=small.train_x.double(), val_x=small.val_x.double())


# -- killed and resumed ----------------------------------------------------------------------------------------------


def grown_config(images: Path, tmp_path: Path, name: str, **changes: Any) -> TrainConfig:
    every = {"log_every": 2, "eval_every": 4, "save_every": 5, "grow": ENTRIES, "growth_batches": 2, "workers": 0}
    return config_of(images, tmp_path, name, steps=24, **{**every, **changes})


def short(config: TrainConfig, steps: int) -> TrainConfig:
    return dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=steps))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work(config: TrainConfig, where: str, at: int) -> None:
    """Train; killed after step `at`, or when growth number `at` has come to the place `where`."""
    multiprocessing.set_start_method("fork", force=True)
    if where == "plan is written":
        write = net2net.plan.write_atomically

        def half(path: Path, text: str) -> None:
            if path.name.startswith(f"{at:02d}-"):
                (path.parent / f".{path.name}.killed").write_text(text[: len(text) // 2])
                die()
            write(path, text)

        net2net.plan.write_atomically = half  # type: ignore[attr-defined]
    done = 0

    def on_growth(record: Record) -> None:
        nonlocal done
        done += 1
        if where == "has grown" and int(record.plans[0][:2]) == at:
            die()

    runs.run(
        config, resume=True, on_growth=on_growth, on_step=lambda step: die() if where == "step" and step == at else None
    )


def train_in(processes: ForkServerContext, config: TrainConfig, where: str = "", at: int = 0) -> int | None:
    process = processes.Process(target=work, args=(config, where, at))
    process.start()
    process.join(timeout=120)
    if process.is_alive():
        process.kill()
        pytest.fail("training did not end")
    return process.exitcode


def untimed(config: TrainConfig) -> Any:
    files, state, rows = outcome(config)
    for record in state["notes"]["growth"]["done"]:
        record.pop("seconds", None)
    for row in rows:
        row.pop("growth_seconds", None)
    return files, state, rows


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed(processes: ForkServerContext, images: Path, tmp_path: Path, case: str) -> None:
    whole, killed = (grown_config(images, tmp_path, name, **CASES[case]) for name in ("whole", "killed"))
    assert train_in(processes, whole) == 0
    for where, at in (
        ("step", 6),  # before
        ("plan is written", 1),  # in
        ("has grown", 1),  # after it, but the last checkpoint is from before
        ("step", 13),  # when two are in the last checkpoint
        ("has grown", 4),
    ):
        assert train_in(processes, killed, where, at) == -signal.SIGKILL, (where, at)
    assert train_in(processes, killed) == 0
    theirs, ours = untimed(killed), untimed(whole)
    for a, b in zip(theirs, ours, strict=True):
        assert a == b
    folders = [runs.folder_of(config) / "checkpoints" / "growth" for config in (killed, whole)]
    a, b = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert a == b
    assert [name[3:].split("-")[0] for name in sorted(a)] == ["widen", "deepen", "kernel", "widen"]
    assert [row["grown"] for row in ours[2] if "grown" in row] == ENTRIES.split("; ")
    assert [row["step"] for row in ours[2] if "grown" in row] == [7, 10, 10, 16]  # patience begins anew at 10


def test_a_run_starts_from_a_grown_checkpoint(processes: ForkServerContext, images: Path, tmp_path: Path) -> None:
    """One that grew while it ran, and whose checkpoint grew afterwards; killed before it has saved anything, it starts
    again, and later it goes on from its own."""
    first = grown_config(images, tmp_path, "first", grow="step 7: widen 1.5")
    runs.run(first)
    saved = runs.folder_of(first) / "checkpoints" / "step-00000020"
    teacher = net2net.load(saved, lambda: tiny(10, 3))
    images_ = torch.randn(2, 3, 8, 8)
    wider = net2net.plan_widen(teacher, images_, 1.5, seed=3)
    wider.grow_checkpoint(saved, tmp_path / "grown")
    student = net2net.load(tmp_path / "grown", lambda: tiny(10, 3))
    assert [e["source"] for e in net2net.growth_log(tmp_path / "grown")] == ["step-00000007", "step-00000020"]
    assert net2net.verify(teacher.eval(), student.eval(), images_).ok

    def config(name: str) -> TrainConfig:
        entries = "step 22: deepen 1"
        made = grown_config(images, tmp_path, name, grow=entries, start=str(tmp_path / "grown"), save_every=4)
        return dataclasses.replace(made, loop=dataclasses.replace(made.loop, steps=28))

    state = runs.run(config("whole"))
    assert state.step == 28
    assert [record["plans"] for record in state.notes["growth"]["done"]] == [
        ["01-widen-step-00000020.json", "01-widen-step-00000020-2.json"], ["02-deepen-step-00000022.json"],
    ]  # fmt: skip
    assert train_in(processes, config("killed"), "step", 21) == -signal.SIGKILL
    assert train_in(processes, config("killed"), "step", 25) == -signal.SIGKILL
    assert train_in(processes, config("killed")) == 0
    assert untimed(config("killed")) == untimed(config("whole"))
    with pytest.raises(ValueError, match=r"grow \(='step 7: widen 1\.5'\) was due before the run starts, after 20"):
        runs.run(grown_config(images, tmp_path, "late", grow="step 7: widen 1.5", start=str(tmp_path / "grown")))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        runs.run(grown_config(images, tmp_path, "none", start=str(tmp_path / "nowhere")))
    assert not (tmp_path / "runs" / "none").exists()


def test_a_start_with_the_same_options_goes_on(images: Path, tmp_path: Path) -> None:
    """With the bits of one run, where growth has left the rate as it was."""
    shared: dict[str, Any] = {
        "in_memory": True,
        "growth_lr": "keep",
        "grow": "",
        "save_every": 4,
        "optimizer": "adamw",
        "warmup": 6,
    }
    whole = grown_config(images, tmp_path, "whole", **shared | {"grow": "step 3: widen 1.5"})
    state = runs.run(short(whole, 12))
    start = str(tmp_path / "whole" / "checkpoints" / "step-00000008")
    later = runs.run(short(grown_config(images, tmp_path, "later", **shared, start=start), 12))
    assert all(map(torch.equal, state.model.state_dict().values(), later.model.state_dict().values()))
    assert state.optimizer.param_groups[0]["lr"] == later.optimizer.param_groups[0]["lr"]
    assert state.scheduler is not None
    assert later.scheduler is not None
    assert state.scheduler.state_dict() == later.scheduler.state_dict()


def test_a_start_has_options_of_its_own(images: Path, tmp_path: Path) -> None:
    """Learning rate, schedule, options of the optimizer, size of mini-batches: all but what was learned."""
    shared: dict[str, Any] = {"in_memory": True, "save_every": 4, "schedule": "cosine"}
    first = short(grown_config(images, tmp_path, "first", **shared, grow="step 3: widen 1.5"), 8)
    before = runs.run(first)
    assert before.optimizer.param_groups[0]["lr"] == 0
    own: dict[str, Any] = {"lr": 0.5, "momentum": 0.3, "decay": 0.7, "eps": 0.2, "weight_decay": 0.01, "batch_size": 20}
    own |= {"schedule": "exponential", "decay_epochs": 1, "decay_rate": 0.5, "grow": "epoch 5: widen 1.5"}
    own |= {"start": str(tmp_path / "first" / "checkpoints" / "step-00000008"), "save_every": 1, "keep": 0}
    state = runs.run(short(grown_config(images, tmp_path, "untrained", **{**own, "grow": ""}), 8))
    assert [(g["momentum"], g["alpha"], g["eps"]) for g in state.optimizer.param_groups] == [(0.3, 0.7, 0.2)] * 2
    assert [g["weight_decay"] for g in state.optimizer.param_groups] == [0.01, 0]
    for p, q in zip(state.model.parameters(), before.model.parameters(), strict=True):
        for moment in ("square_avg", "momentum_buffer"):
            assert torch.equal(state.optimizer.state[p][moment], before.optimizer.state[q][moment])

    config = short(grown_config(images, tmp_path, "own", **own, log_every=1), 12)
    state = runs.run(config)
    assert (state.epoch, state.batch) == (6, 0)  # two mini-batches in an epoch, where the other run had five
    rows = logs.read(tmp_path / "own")
    rates = [row["lr"] for row in rows if "loss" in row]
    assert rates == pytest.approx(
        [0.5 * 0.5**4, 0.5 * 0.5**4, 0.05, 0.05]
    )  # half in an epoch, then a tenth of the first
    assert [row["step"] for row in rows if "grown" in row] == [10]

    few = short(grown_config(images, tmp_path, "few", **{**own, "grow": ""}, log_every=3), 12)
    runs.run(few)
    losses = {row["step"]: row["loss"] for row in logs.read(tmp_path / "few") if "loss" in row}
    single = [row["loss"] for row in rows if "loss" in row]
    assert losses[9] == pytest.approx(single[0])  # of this run's first step, not of the other's last ones
    with pytest.raises(ValueError, match=r"--steps \(=7\) must be at least the 8 that --start"):
        runs.run(short(grown_config(images, tmp_path, "late", **own), 7))
    assert not (tmp_path / "late").exists()
    for step in (10, 11, 12):
        remove_folder(tmp_path / "own" / "checkpoints" / f"step-{step:08d}")
    resumed = runs.run(config, resume=True)
    assert all(map(torch.equal, state.model.state_dict().values(), resumed.model.state_dict().values()))


def test_a_checkpoint_is_replayed_by_hand(images: Path, tmp_path: Path) -> None:
    config = grown_config(images, tmp_path, "run", in_memory=True)
    state = runs.run(config)
    path = runs.folder_of(config) / "checkpoints" / "step-00000024"
    model = tiny(10, 3)
    for plan in plans(path):
        model = plan.apply(model)
    saved = pytest.importorskip("safetensors.torch").load_file(path / "model.safetensors")
    model.load_state_dict(saved)
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    (path.parent / "growth" / "02-deepen-step-00000010.json").unlink()
    with pytest.raises(ValueError, match=r"needs the plan .*02-deepen-step-00000010\.json"):
        runs.run(config, resume=True)


# -- what a growth does ----------------------------------------------------------------------------------------------


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).double()


def state_of(optimizer: str = "sgd", lr: float = 0.02, kind: str = "constant", steps: int = 30) -> State:
    model = small_net()
    optim = make(optimizer, model, lr)
    return State(model, optim, attach(optim, Schedule(kind, steps=steps, final=0.1)), moving_average(model, 0.9))


def train_with(
    data: Dataset, state: State, text: str, steps: int = 12, *, config: dict[str, Any] | None = None, **loop: Any
) -> tuple[list[dict[str, Any]], list[Record]]:
    rows: list[dict[str, Any]] = []
    records: list[Record] = []
    feed = MemoryFeed(data, 32, eval_images=64)
    every = {"eval_every": 4, "log_every": 1, **loop}
    growth = GrowthConfig(grow=text, **(config or {}))
    between = Growing(growth, feed, steps, seed=3, on_row=rows.append, on_growth=records.append)
    train(state, feed, LoopConfig(steps=steps, **every), between=between, on_row=rows.append)
    return rows, records


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adamw"])
def test_dynamics_are_kept_through_growth(data: Dataset, optimizer: str) -> None:
    """Without noise the grown network goes on as the small one would have, and so does its average."""
    plain, grown = state_of(optimizer, kind="cosine"), state_of(optimizer, kind="cosine")
    before, _ = train_with(data, plain, "")
    after, records = train_with(
        data, grown, "step 5: widen 1.5 noise=none; step 9: widen 2 noise=none", config={"growth_lr": "dynamics"}
    )
    assert [r.parameters[0] < r.parameters[1] for r in records] == [True, True]
    assert all(r.max_abs is not None and r.max_abs < 1e-10 and r.lr[0] == r.lr[1] for r in records)
    usual = [row for row in after if "grown" not in row]
    for a, b in zip(before, usual, strict=True):
        assert {**a, "seconds": 0} == pytest.approx({**b, "seconds": 0}, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("tenth", [0.02, 0.002, 0.002]),  # of the first rate, each time
        ("keep", [0.02, 0.02, 0.02]),
        ("dynamics", [0.02, 0.02, 0.02]),
        ("0.5", [0.02, 0.01, 0.005]),
    ],
)
def test_learning_rates(data: Dataset, rule: str, expected: list[float]) -> None:
    rows, records = train_with(
        data, state_of(), "step 4: widen 1.5; step 8: deepen 1", config={"growth_lr": rule}, log_every=4
    )
    rates = [row["lr"] for row in rows if "loss" in row]
    assert rates == pytest.approx(expected)
    assert [r.lr for r in records] == [pytest.approx(tuple(expected[i : i + 2])) for i in range(2)]


def test_a_tenth_and_the_schedule_goes_on(data: Dataset) -> None:
    """From a tenth of the first rate, along the rest of the schedule."""
    rows, _ = train_with(data, state_of(kind="cosine"), "step 4: widen 1.5; step 8: widen 1.5")
    plain = Schedule("cosine", steps=30, final=0.1)
    usual = {row["step"]: row["lr"] for row in rows if "loss" in row}
    for step in range(1, 13):
        start = 0 if step <= 4 else 4 if step <= 8 else 8
        share = 0.1 * plain(step - 1) / plain(start) if start else plain(step - 1)
        assert usual[step] == pytest.approx(0.02 * share), step


@pytest.mark.parametrize(("rule", "after"), [("tenth", 0.1), ("keep", 1.0), ("dynamics", 1.0), ("0.5", 0.5)])
def test_a_warm_up_leads_up_to_the_rate_after_a_growth(data: Dataset, rule: str, after: float) -> None:
    state = state_of()
    state.scheduler = attach(state.optimizer, Schedule(warmup=8))
    rows, [record] = train_with(data, state, "step 3: widen 1.5", config={"growth_lr": rule})
    rates = [row["lr"] for row in rows if "loss" in row]
    full = [0.02 if step < 3 else 0.02 * after for step in range(12)]
    assert rates == pytest.approx([lr * min((step + 1) / 8, 1) for step, lr in enumerate(full)])
    assert record.lr[1] == pytest.approx(rates[3])
    assert f"(warming up to {0.02 * after:.4g})" in str(record)


def test_every_growth_is_verified_and_logged(data: Dataset, tmp_path: Path) -> None:
    state = state_of("rmsprop")
    rows, records = train_with(data, state, "step 4: widen 1.5; epoch 0: deepen 1 after=2; step 4: deepen 1 after=6")
    assert [(r.entry, r.step) for r in records] == [
        ("epoch 0: deepen 1 after=2", 0),
        ("step 4: widen 1.5", 4),
        ("step 4: deepen 1 after=6", 4),
    ]
    logged = [row for row in rows if "grown" in row]
    for record, row in zip(records, logged, strict=True):
        assert row.keys() <= set(COLUMNS)
        assert (row["grown"], row["step"], row["growth_max_abs"]) == (record.entry, record.step, record.max_abs)
        assert 0 <= row["growth_max_abs"] < 1e-10
        assert row["model_bytes"] == record.model_bytes[1] > record.model_bytes[0]
        assert row["optimizer_bytes"] == record.optimizer_bytes[1]
        assert record.entry in str(record)
        assert f"{record.parameters[1]:,} parameters" in str(record)
    assert state.notes["growth"]["done"] == [dataclasses.asdict(record) for record in records]
    assert records[-1].parameters[1] == sum(p.numel() for p in state.model.parameters())
    assert state.seconds >= sum(record.seconds for record in records)


def test_a_plateau_of_accuracy_or_loss(data: Dataset) -> None:
    for mode in ("min", "max"):
        text = f"plateau patience=1 delta=99 mode={mode}: widen 1.5"
        _, records = train_with(data, state_of(), text)
        assert [r.step for r in records] == [4]  # the first evaluation is the best so far


def test_noise_of_the_paper_is_measured_not_refused(data: Dataset) -> None:
    _, [record] = train_with(data, state_of(), "step 4: widen 2 noise=paper noise_scale=0.2")
    assert record.max_abs is not None
    assert record.max_abs > 1e-3


def test_noise_differs_from_growth_to_growth_and_seed_to_seed(data: Dataset) -> None:
    feed = MemoryFeed(data, 32)
    [growth] = parse("step 0: widen 2 mapping=balanced")
    found = []
    for seed in (0, 0, 1):
        state = state_of()
        for _ in range(2):
            grow_state(state, growth, growing.upcoming(state, feed, 1), seed=seed)
        found.append(state.model[4].weight.detach())  # type: ignore[index]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_state_is_as_it_was_where_growth_fails(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of()
    before = state.model, state.optimizer, state.scheduler, state.ema
    feed = MemoryFeed(data, 32)
    [growth] = parse("step 0: widen 1.5")
    monkeypatch.setattr(
        growing, "compare_growth", lambda *_: net2net.verify(small_net().eval(), small_net()[:-1].eval(), data.val_x)
    )
    with pytest.raises(RuntimeError, match="not its teacher's equal"):
        grow_state(state, growth, growing.upcoming(state, feed, 1))
    assert (state.model, state.optimizer, state.scheduler, state.ema) == before
    assert state.notes["growth"]["done"] == []


def test_processes_that_disagree_stop(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing.distributed, "running", lambda: True)
    monkeypatch.setattr(growing.distributed, "together", lambda images: images)
    monkeypatch.setattr(growing.distributed, "average_buffers", lambda *models: None)
    monkeypatch.setattr(growing.distributed, "gather", lambda digest: [digest, "another"])
    [growth] = parse("step 0: widen 1.5")
    with pytest.raises(RuntimeError, match="processes have grown different networks"):
        grow_state(state_of(), growth, [data.train_x[:8]])


@pytest.mark.slow
def test_compiled_models_are_compiled_anew(data: Dataset) -> None:
    text = "step 2: widen 1.5; step 4: deepen 1"
    rows = {}
    for compiled in (False, True):
        state = state_of()
        rows[compiled], _ = train_with(data, state, text, 6, compile=compiled)
        assert isinstance(state.model, nn.Sequential)
    losses = {c: [row["loss"] for row in r if "loss" in row] for c, r in rows.items()}
    assert losses[True] == pytest.approx(losses[False], rel=1e-6)


def test_too_large_a_growth_is_refused(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 1 PiB")

    monkeypatch.setattr(growing, "grow", no_memory)
    with pytest.raises(ValueError, match=r"grow \(='step 0: widen 1e6'\) cannot be done: Unable to allocate 1 PiB"):
        growing.rehearse(state_of(), GrowthConfig(grow="step 0: widen 1e6"), 5, 5, (1, 16, 16))


# -- refused before the run begins -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grow": "step 5: shrink 2"}, r"expected what to do"),
        ({"grow": "step 5: widen 1.5", "growth_lr": "half"}, r"growth_lr \(='half'\) must be one of tenth, dynamics"),
        ({"grow": "step 5: widen 1.5", "growth_lr": "-1"}, r"growth_lr \(='-1'\)"),
        ({"grow": "step 24: widen 1.5"}, r"'step 24: widen 1.5'\) is never due: the run ends after 24"),
        ({"grow": "epoch 5: widen 1.5"}, r"'epoch 5: widen 1.5'\) is never due"),
        ({"grow": "step 5: widen 1.5; step 6: widen 2 layers=9"}, r"'step 6: widen 2 layers=9'\) cannot be done"),
        ({"grow": "step 5: deepen 1 after=nowhere"}, "cannot be done: .*nowhere"),
    ],
)
def test_refused_before_anything_is_written(
    images: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        runs.run(grown_config(images, tmp_path, "refused", in_memory=True, **changes))
    assert not (tmp_path / "refused").exists()
