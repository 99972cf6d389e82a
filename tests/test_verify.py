"""verify: sees differences, and where they begin; leaves no traces."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import net2net
import pytest
import torch
from models import EXAMPLES
from torch import nn


def test_a_difference_is_seen_and_placed() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    student = net2net.widen(model, x, 1.5)
    with torch.no_grad():
        student[10].bias[3] += 0.5
    report = net2net.verify(model, student, x)
    assert not report.ok
    assert report.max_abs > 0
    assert report.parts[0].module == "12"
    assert "NOT the same" in str(report)


def test_nan_and_shape_differences_are_never_ok() -> None:
    model, x = EXAMPLES["mlp"].build()
    broken, _ = EXAMPLES["mlp"].build()
    with torch.no_grad():
        broken[4].bias.fill_(float("nan"))
    assert not net2net.verify(model, broken, x).ok
    assert net2net.verify(broken, broken, x).ok
    assert not net2net.verify(model, nn.Linear(5, 2).double().eval(), x).ok


def test_nothing_is_left_behind() -> None:
    model, x = EXAMPLES["residual"].build()
    student = net2net.widen(model, x, 1.5)
    model.train()
    student.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    assert net2net.verify(model, student, x).ok
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(m._forward_hooks for m in model.modules())


def test_modes_must_agree() -> None:
    model, x = EXAMPLES["mlp"].build()
    other, _ = EXAMPLES["mlp"].build()
    with pytest.raises(ValueError, match="training"):
        net2net.verify(model, other.train(), x)


class Returns(nn.Module):
    def __init__(self, value: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> Any:
        return self.value(x)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x + 1j, lambda x: x - 1j),
        (lambda x: SimpleNamespace(y=x), lambda x: SimpleNamespace(y=x + 1)),
        (lambda x: {"a": x, "n": 3}, lambda x: {"a": x, "n": 4}),
        (lambda x: (x * 1e12, x), lambda x: (x * 1e12, 2 * x)),
        (lambda x: x, lambda x: x.double()),
    ],
)
def test_differences_in_any_output_are_seen(one: Callable[..., Any], other: Callable[..., Any]) -> None:
    x = torch.randn(3, 4)
    assert net2net.verify(Returns(one), Returns(one), x).ok
    assert not net2net.verify(Returns(one), Returns(other), x).ok


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        net2net.verify(Returns(lambda x: 3), Returns(lambda x: 3), torch.randn(2))


class Narrowing(nn.Module):
    """A norm that computes in float32, whatever it is given, as those of many language models do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def test_steps_in_a_narrower_dtype_are_allowed_their_rounding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 37), Narrowing(), nn.Linear(37, 3)).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    student = net2net.widen(model, x, 3)
    report = net2net.verify(model, student, x)
    assert report.ok
    assert 1e-9 < report.max_rel < 1e-6
    with torch.no_grad():
        student[2].weight[0, 0] += 1e-3
    assert not net2net.verify(model, student, x).ok
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    other = net2net.widen(plain, x, 2)
    with torch.no_grad():
        other[2].weight += 1e-7
    assert net2net.verify(plain, other, x).tolerance == 1e-9
    assert not net2net.verify(plain, other, x).ok
