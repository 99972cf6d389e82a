"""Learning rates over time."""

import pytest
import torch
from net2net.training.schedules import Schedule, attach, cosine
from torch import nn


def rates(schedule: Schedule, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": 2.0}], lr=1.0)
    scheduler = attach(optimizer, schedule)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine() -> None:
    assert [cosine(p, 0.1) for p in (0, 0.5, 1)] == pytest.approx([1, 0.55, 0.1])
    assert cosine(0.3, 1.0) == 1
    assert rates(Schedule("cosine", steps=4, final=0.1), 6) == [2 * cosine(min(i / 4, 1), 0.1) for i in range(6)]


def test_exponential_falls_in_steps() -> None:
    assert rates(Schedule("exponential", decay=0.5, decay_steps=2), 6) == [2, 2, 1, 1, 0.5, 0.5]


def test_warm_up() -> None:
    assert rates(Schedule(warmup=4), 6) == [0.5, 1, 1.5, 2, 2, 2]


def test_constant() -> None:
    assert rates(Schedule(), 3) == [2, 2, 2]


def test_a_second_schedule_starts_from_the_rates_that_are_there() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    attach(optimizer, Schedule())
    optimizer.param_groups[0]["lr"] = 0.1
    attach(optimizer, Schedule())
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "linear"}, r"kind \(='linear'\) must be one of constant, cosine, exponential"),
        ({"steps": -1}, r"steps \(=-1\) must be at least 0"),
        ({"final": 1.5}, r"final \(=1.5\) must be in \[0, 1\]"),
        ({"decay": 0.0}, r"decay \(=0.0\) must be in \(0, 1\]"),
        ({"decay_steps": 0}, r"decay_steps \(=0\) must be at least 1"),
        ({"warmup": -1}, r"warmup \(=-1\) must be at least 0"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**options)  # type: ignore[arg-type]
