"""The training loop: deterministic by seed, honest about what it measures, and careful with what it is given."""

import dataclasses
import json
import math
from collections.abc import Iterator

import pytest
import torch
from net2net.data import Dataset, digits
from net2net.models import inception_bn
from net2net.training import History, cosine, evaluate, rmsprop, shift, train
from torch import nn

pytest.importorskip("sklearn", reason="scikit-learn is not installed")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Layers as small as these are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits()


def small_net(seed: int = 0) -> nn.Sequential:
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
        nn.Linear(64, 10),
    )


def run(data: Dataset, seed: int = 0, **options: object) -> tuple[History, nn.Module]:
    model = small_net()
    options = {"steps": 30, "eval_every": 10, **options}
    return train(model, data, rmsprop(model.parameters(), 0.02), seed=seed, **options), model  # type: ignore[arg-type]


def measured(history: History) -> dict[str, list[float]]:
    """All but the wall time."""
    return {name: value for name, value in dataclasses.asdict(history).items() if name != "seconds"}


def test_it_learns_the_digits(data: Dataset) -> None:
    history, _ = run(data, steps=150, eval_every=50)
    assert history.val_accuracy[0] < 0.3
    assert history.val_accuracy[-1] > 0.9
    assert history.train_loss[-1] < history.train_loss[0] / 3


def test_inception_trains(data: Dataset) -> None:
    torch.manual_seed(0)
    model = inception_bn(10, in_channels=1, base=1 / 32, stem="small")
    history = train(model, data, rmsprop(model.parameters(), 0.045), steps=3, eval_every=3, eval_images=64)
    assert history.step == [0, 3]
    assert all(map(math.isfinite, history.train_loss + history.val_loss))


@pytest.mark.parametrize("max_shift", [0, 1])
def test_same_seed_same_run(data: Dataset, max_shift: int) -> None:
    first, model = run(data, max_shift=max_shift)
    torch.manual_seed(99)  # the global generator must not matter
    again, other = run(data, max_shift=max_shift)
    assert measured(first) == measured(again)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_other_seed_other_run(data: Dataset) -> None:
    assert measured(run(data)[0]) != measured(run(data, seed=1)[0])


def test_global_generator_is_left_alone(data: Dataset) -> None:
    model = small_net()
    before = torch.get_rng_state()
    train(model, data, rmsprop(model.parameters(), 0.01), steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_history(data: Dataset) -> None:
    done: list[int] = []
    history, model = run(data, steps=25, on_step=done.append)
    assert history.step == [0, 10, 20, 25]
    assert done == list(range(1, 26))
    assert {len(values) for values in dataclasses.asdict(history).values()} == {4}
    assert history.seconds[0] == 0
    assert history.seconds == sorted(history.seconds)
    assert History(**json.loads(json.dumps(dataclasses.asdict(history)))) == history
    assert (history.val_accuracy[-1], history.val_loss[-1]) == evaluate(model, data.val_x, data.val_y)
    assert model.training


def test_no_steps_only_evaluate(data: Dataset) -> None:
    history, model = run(data, steps=0)
    assert history.step == [0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small_net().parameters(), strict=True))


def test_steps_to_reach() -> None:
    history = History(step=[0, 10, 20], val_accuracy=[0.1, 0.9, 0.8])
    assert [history.steps_to_reach(a) for a in (0.05, 0.8, 0.9, 0.95)] == [0, 10, 10, None]


def test_going_on_is_going_on(data: Dataset) -> None:
    """A second call continues with the optimizer's state: it is not the same as a new optimizer."""
    histories = []
    for keep in (True, False):
        model = small_net()
        optimizer = rmsprop(model.parameters(), 0.02)
        train(model, data, optimizer, steps=10)
        if not keep:
            optimizer = rmsprop(model.parameters(), 0.02)
        histories.append(train(model, data, optimizer, steps=10, seed=1))
    assert histories[0].val_loss[0] == histories[1].val_loss[0]
    assert histories[0].val_loss[-1] != histories[1].val_loss[-1]


def test_learning_rate_falls_and_is_put_back(data: Dataset) -> None:
    model = small_net()
    groups = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[4].parameters(), "lr": 0.01}]
    optimizer = torch.optim.SGD(groups)
    seen: list[tuple[float, ...]] = []
    train(
        model,
        data,
        optimizer,
        steps=4,
        final_lr=0.1,
        on_step=lambda step: seen.append(tuple(g["lr"] for g in optimizer.param_groups)),
    )
    assert seen == [(0.02 * cosine(i / 4, 0.1), 0.01 * cosine(i / 4, 0.1)) for i in range(4)]
    assert [g["lr"] for g in optimizer.param_groups] == [0.02, 0.01]


def test_cosine() -> None:
    assert [cosine(p, 0.1) for p in (0, 0.5, 1)] == pytest.approx([1, 0.55, 0.1])
    assert cosine(0.3, 1.0) == 1


def test_evaluate_is_right_and_touches_nothing(data: Dataset) -> None:
    model = small_net()
    model[1].eval()  # a mixed mode, as with frozen statistics
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accuracy, loss = evaluate(model, data.val_x, data.val_y, batch_size=100)
    assert [m.training for m in model] == [i != 1 for i in range(10)]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        logits = model.eval()(data.val_x)
    assert accuracy == (logits.argmax(dim=1) == data.val_y).double().mean().item()
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, data.val_y).item(), rel=1e-5)


def test_shift() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    assert torch.equal(shift(x, torch.tensor([[1, 1], [1, 1]]), 1), x)
    moved = shift(x, torch.tensor([[0, 1], [1, 2]]), 1)
    assert torch.equal(moved[0, :, 1:], x[0, :, :-1])  # down by one, the edge repeated
    assert torch.equal(moved[0, :, 0], x[0, :, 0])
    assert torch.equal(moved[1, :, :, :-1], x[1, :, :, 1:])  # left by one
    assert torch.equal(moved[1, :, :, -1], x[1, :, :, -1])
    assert moved.shape == x.shape


def test_diverging_is_an_error(data: Dataset) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    with pytest.raises(FloatingPointError, match="after 10 steps the losses are"):
        train(model, data, torch.optim.SGD(model.parameters(), lr=1e38), steps=10, eval_every=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, r"steps \(=-1\) must be at least 0"),
        ({"batch_size": 0}, r"batch_size \(=0\) must be at least 1"),
        ({"batch_size": 2000}, r"batch_size \(=2000\) must be at most the training set's 1438 images"),
        ({"eval_every": 0}, r"eval_every \(=0\) must be at least 1"),
        ({"eval_images": 0}, r"eval_images \(=0\) must be at least 1"),
        ({"max_shift": -1}, r"max_shift \(=-1\) must be at least 0"),
        ({"final_lr": 1.5}, r"final_lr \(=1.5\) must be in \[0, 1\]"),
    ],
)
def test_bad_arguments_are_named(data: Dataset, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(data, **options)
