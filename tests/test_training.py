"""The training loop: deterministic by seed, the same as plain torch, and honest about what it measures."""

import copy
import dataclasses
import json
import math
from itertools import islice

import net2net
import pytest
import torch
import torch.nn.functional as F
from net2net.data import Dataset, MemoryFeed, digits
from net2net.models import inception_bn
from net2net.training import History, LoopConfig, Schedule, State, attach, evaluate, moving_average, rmsprop, train
from net2net.training.loop import COLUMNS
from net2net.training.optimizers import make
from torch import nn

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits()


def small_net(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(64, 10),
    )


def state_of(model: nn.Module, lr: float = 0.02) -> State:
    return State(model, rmsprop(model.parameters(), lr))


def run(data: Dataset, seed: int = 0, max_shift: int = 0, **options: object) -> tuple[History, nn.Module]:
    model = small_net()
    config = LoopConfig(**{"steps": 30, "eval_every": 10, **options})  # type: ignore[arg-type]
    feed = MemoryFeed(data, 32, seed=seed, max_shift=max_shift)
    return train(state_of(model), feed, config, seed=seed), model


def measured(history: History) -> dict[str, list[float]]:
    """All but the wall time."""
    return {name: value for name, value in dataclasses.asdict(history).items() if name != "seconds"}


def assert_same(a: nn.Module, b: nn.Module) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_learns_the_digits(data: Dataset) -> None:
    history, _ = run(data, steps=150, eval_every=50)
    assert history.val_accuracy[0] < 0.3
    assert history.val_accuracy[-1] > 0.9
    assert history.train_loss[-1] < history.train_loss[0] / 3


def test_inception_trains(data: Dataset) -> None:
    torch.manual_seed(0)
    model = inception_bn(10, in_channels=1, base=1 / 32, stem="small")
    history = train(
        state_of(model, 0.045),
        MemoryFeed(data, 32, eval_images=64),
        LoopConfig(steps=3, eval_every=3, channels_last=True),
    )
    assert history.step == [0, 3]
    assert all(map(math.isfinite, history.train_loss + history.val_loss))


@pytest.mark.parametrize("optimizer", ["rmsprop", "rmsprop-torch", "sgd", "adamw"])
def test_first_steps_are_those_of_plain_torch(data: Dataset, optimizer: str) -> None:
    """Bit by bit: learning rates with a warm-up, clipping, label smoothing, accumulation, an average."""
    model = small_net(dropout=0.2)
    plain = copy.deepcopy(model)
    schedule = Schedule("cosine", steps=6, final=0.1, warmup=2)

    ours = make(optimizer, model, 0.01, weight_decay=1e-3)
    state = State(model, ours, attach(ours, schedule), moving_average(model, 0.9))
    config = LoopConfig(steps=6, clip=1.0, label_smoothing=0.1, accumulate=2, eval_every=100, log_every=2)
    rows: list[dict[str, float]] = []
    train(state, MemoryFeed(data, 32, seed=3, max_shift=1, flips=True), config, seed=7, on_row=rows.append)

    theirs = make(optimizer, plain, 0.01, weight_decay=1e-3)
    average = copy.deepcopy(plain)
    losses, norms = [], []
    torch.manual_seed(7)
    for step, (x, y) in enumerate(islice(MemoryFeed(data, 32, seed=3, max_shift=1, flips=True).batches(0, 0), 6)):
        for group in theirs.param_groups:
            group["lr"] = 0.01 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 6)) / 2) * min((step + 1) / 2, 1)
        theirs.zero_grad()
        loss = 0.0
        for part in (slice(0, 16), slice(16, 32)):
            half = F.cross_entropy(plain(x[part]), y[part], label_smoothing=0.1) / 2
            half.backward()
            loss += half.item()
        losses.append(loss)
        norms.append(nn.utils.clip_grad_norm_(plain.parameters(), 1.0).item())
        theirs.step()
        with torch.no_grad():
            for a, w in zip(average.state_dict().values(), plain.state_dict().values(), strict=True):
                if w.is_floating_point():
                    a.copy_(w if step == 0 else a.lerp(w, 1 - 0.9))
    assert_same(model, plain)
    assert state.ema is not None
    for (name, a), b in zip(state.ema.module.state_dict().items(), average.state_dict().values(), strict=True):
        assert not a.is_floating_point() or torch.equal(a, b), name
    assert [row["loss"] for row in rows[1:]] == pytest.approx([sum(losses[i : i + 2]) / 2 for i in (0, 2, 4)], rel=1e-6)
    assert [row["grad_norm"] for row in rows[1:]] == norms[1::2]
    assert rows[-1]["lr"] == theirs.param_groups[0]["lr"]


@pytest.mark.parametrize("max_shift", [0, 1])
def test_same_seed_same_run(data: Dataset, max_shift: int) -> None:
    first, model = run(data, max_shift=max_shift)
    torch.manual_seed(99)  # the global generator must not matter
    again, other = run(data, max_shift=max_shift)
    assert measured(first) == measured(again)
    assert_same(model, other)


def test_other_seed_other_run(data: Dataset) -> None:
    assert measured(run(data)[0]) != measured(run(data, seed=1)[0])


def test_global_generator_is_left_alone(data: Dataset) -> None:
    model = small_net(dropout=0.5)
    before = torch.get_rng_state()
    train(state_of(model), MemoryFeed(data, 32), LoopConfig(steps=2))
    assert torch.equal(before, torch.get_rng_state())


def test_history(data: Dataset) -> None:
    done: list[int] = []
    model = small_net()
    config = LoopConfig(steps=25, eval_every=10)
    feed = MemoryFeed(data, 32)
    history = train(state_of(model), feed, config, on_step=done.append)
    assert history.step == [0, 10, 20, 25]
    assert done == list(range(1, 26))
    lengths = {name: len(values) for name, values in dataclasses.asdict(history).items()}
    assert {n for name, n in lengths.items() if not name.startswith("ema")} == {4}
    assert (lengths["ema_val_accuracy"], lengths["ema_val_loss"]) == (0, 0)
    assert history.seconds[0] == 0
    assert history.seconds == sorted(history.seconds)
    assert History(**json.loads(json.dumps(dataclasses.asdict(history)))) == history
    assert (history.val_accuracy[-1], history.val_loss[-1]) == evaluate(model, feed.sample("val"))
    assert model.training


def test_rows_of_the_log(data: Dataset) -> None:
    model = small_net()
    state = state_of(model)
    state.ema = moving_average(model, 0.5)
    rows: list[dict[str, float]] = []
    train(state, MemoryFeed(data, 32), LoopConfig(steps=7, eval_every=4, log_every=2), on_row=rows.append)
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 7]
    assert [row["step"] for row in rows if "val_loss" in row] == [0, 4, 7]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]
    assert all(row.keys() <= set(COLUMNS) for row in rows)
    assert [row["ema_val_loss"] for row in rows if "ema_val_loss" in row] == state.history.ema_val_loss
    assert len(state.history.ema_val_accuracy) == 3


def test_no_steps_only_evaluate(data: Dataset) -> None:
    history, model = run(data, steps=0)
    assert history.step == [0]
    assert_same(model, small_net())


def test_steps_to_reach() -> None:
    history = History(step=[0, 10, 20], val_accuracy=[0.1, 0.9, 0.8])
    assert [history.steps_to_reach(a) for a in (0.05, 0.8, 0.9, 0.95)] == [0, 10, 10, None]


def test_going_on_is_going_on(data: Dataset) -> None:
    """In two calls, with the global generators used in between, as in one: also in the middle of an epoch."""
    models = []
    for parts in ((50,), (7, 46, 50)):
        model = small_net(dropout=0.3)
        state = state_of(model)
        for steps in parts:
            train(state, MemoryFeed(data, 32, max_shift=1), LoopConfig(steps=steps, eval_every=100))
            torch.rand(3)
        assert (state.step, state.epoch, state.batch) == (50, 1, 50 - 1438 // 32)
        models.append(model)
    assert_same(*models)


def test_what_is_between_steps_may_replace_the_state(data: Dataset) -> None:
    """As growing does: the loop goes on with another model and optimizer from the step on."""
    state = state_of(small_net())
    other = small_net(seed=1)
    seen: list[int] = []

    def between(state: State) -> None:
        seen.append(state.step)
        if state.step == 3:
            state.model, state.optimizer = other, rmsprop(other.parameters(), 0.02)

    first = state.model
    config = LoopConfig(steps=5, eval_every=100)
    train(state, MemoryFeed(data, 32), config, between=between)
    assert seen == [0, 1, 2, 3, 4, 5]
    expected, untouched = small_net(seed=1), small_net()
    later = state_of(expected)
    later.step = later.batch = 3
    train(later, MemoryFeed(data, 32), config)
    train(state_of(untouched), MemoryFeed(data, 32), LoopConfig(steps=3, eval_every=100))
    assert_same(other, expected)
    assert_same(first, untouched)


def test_growing_between_two_steps(data: Dataset) -> None:
    """Model, optimizer, schedule and average grow in one step, and what is logged goes on where it was."""
    model = small_net()
    optimizer = make("rmsprop", model, 0.02)
    schedule = attach(optimizer, Schedule("cosine", steps=30, final=0.1))
    state = State(model, optimizer, schedule, moving_average(model, 0.8))
    losses: list[tuple[float, float]] = []

    def between(state: State) -> None:
        if state.step == 15:
            before = evaluate(state.model, [(data.val_x, data.val_y)])[1]
            grown = net2net.grow(
                state.model,
                data.train_x[:2],
                widen=1.5,
                optimizer=state.optimizer,
                scheduler=state.scheduler,
                ema=state.ema,
            )
            state.model, state.optimizer, state.scheduler, state.ema = grown[:4]  # type: ignore[assignment]
            losses.append((before, evaluate(state.model, [(data.val_x, data.val_y)])[1]))

    rows: list[dict[str, float]] = []
    config = LoopConfig(steps=30, log_every=5, eval_every=15)
    history = train(state, MemoryFeed(data, 32), config, between=between, on_row=rows.append)
    [(before, after)] = losses
    assert after == pytest.approx(before, rel=1e-4)
    assert state.model is not model
    assert [m.out_channels for m in state.model if isinstance(m, nn.Conv2d)] == [18, 24]  # type: ignore[attr-defined]
    assert history.val_loss[2] < history.val_loss[1]
    assert history.ema_val_loss[2] < history.ema_val_loss[1]
    plain = Schedule("cosine", steps=30, final=0.1)
    assert [row["lr"] for row in rows if "lr" in row] == [0.02 * plain(step - 1) for step in range(5, 31, 5)]


def test_evaluate_is_right_and_touches_nothing(data: Dataset) -> None:
    model = small_net()
    model[1].eval()  # a mixed mode, as with frozen statistics
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accuracy, loss = evaluate(model, zip(data.val_x.split(100), data.val_y.split(100), strict=True))
    assert [m.training for m in model] == [i != 1 for i in range(11)]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        logits = model.eval()(data.val_x)
    assert accuracy == (logits.argmax(dim=1) == data.val_y).double().mean().item()
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, data.val_y).item(), rel=1e-5)


def test_bfloat16_is_near_float32(data: Dataset) -> None:
    exact, _ = run(data, steps=10)
    rough, model = run(data, steps=10, precision="bfloat16")
    assert measured(exact) != measured(rough)
    assert rough.val_loss[-1] == pytest.approx(exact.val_loss[-1], rel=0.1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_float64_stays_float64(data: Dataset) -> None:
    model = small_net().double()
    wide = dataclasses.replace(data, train_x=data.train_x.double(), val_x=data.val_x.double())
    rows: list[dict[str, float]] = []
    train(state_of(model), MemoryFeed(wide, 32), LoopConfig(steps=1, log_every=1), on_row=rows.append)
    x, y = next(MemoryFeed(wide, 32).batches(0, 0))
    assert rows[1]["loss"] == F.cross_entropy(small_net().double()(x), y).item()


def test_diverging_is_an_error(data: Dataset) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    for config, message in (
        (LoopConfig(steps=10, eval_every=10, log_every=100), "after 10 steps the losses are"),
        (LoopConfig(steps=10, eval_every=10, log_every=5), "after 5 steps the training loss is"),
    ):
        state = State(copy.deepcopy(model), torch.optim.SGD(model.parameters(), lr=1e38))
        state.optimizer = torch.optim.SGD(state.model.parameters(), lr=1e38)
        with pytest.raises(FloatingPointError, match=message):
            train(state, MemoryFeed(data, 32), config)


@pytest.mark.parametrize(
    ("bad", "message"), [("loss", "after 4 steps the training loss is nan"), ("weights", "after 6 steps the weights")]
)
def test_what_diverged_is_not_saved(data: Dataset, bad: str, message: str) -> None:
    """Though nothing is logged or evaluated until long after; in the step before the checkpoint, too."""
    state = state_of(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)))
    saved: list[int] = []

    def between(state: State) -> None:
        with torch.no_grad():
            if bad == "loss" and state.step in (3, 4):  # and then the weights are as good as new
                for p in state.model.parameters():
                    p.fill_(math.nan if state.step == 3 else 0)
        if bad == "weights" and state.step == 5:
            state.optimizer.param_groups[0]["lr"] = math.inf

    config = LoopConfig(steps=100, log_every=100, eval_every=100, save_every=2)
    with pytest.raises(FloatingPointError, match=message):
        train(state, MemoryFeed(data, 32), config, between=between, save=lambda state: saved.append(state.step))
    assert saved == [0, 2, 4] if bad == "weights" else [0, 2]


@pytest.mark.slow
def test_compiled_model_trains_alike(data: Dataset) -> None:
    plain, _ = run(data, steps=5)
    compiled, _ = run(data, steps=5, compile=True)
    assert compiled.val_loss[-1] == pytest.approx(plain.val_loss[-1], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, r"steps \(=-1\) must be at least 0"),
        ({"eval_every": 0}, r"eval_every \(=0\) must be at least 1"),
        ({"accumulate": 0}, r"accumulate \(=0\) must be at least 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing \(=1.0\) must be below 1"),
        ({"clip": math.nan}, r"clip \(=nan\) must be at least 0"),
        ({"precision": "float16"}, r"precision \(='float16'\) must be one of float32, bfloat16"),
        ({"steps": 1.5}, r"steps \(=1.5\) must be of type int"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoopConfig(**options)  # type: ignore[arg-type]
