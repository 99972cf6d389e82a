"""RMSProp as TensorFlow has it: the formulas by hand, and timm's."""

import pytest
import torch
from net2net.rmsprop import RMSpropTF
from torch import nn

OPTIONS = {"lr": 0.05, "alpha": 0.8, "momentum": 0.7, "eps": 0.3, "initial": 1.0, "weight_decay": 0.01}


def gradients(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def test_it_is_what_the_formulas_say() -> None:
    p = nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3))
    w, v, m = p.detach().clone(), torch.ones(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    optimizer = RMSpropTF([p], **OPTIONS)
    for i, gradient in enumerate(gradients(5)):
        lr = optimizer.param_groups[0]["lr"] = 0.05 / (i + 1)  # the momentum keeps the old rates
        p.grad = gradient.clone()
        optimizer.step()
        g = gradient + 0.01 * w
        v = 0.8 * v + 0.2 * g**2
        m = 0.7 * m + lr * g / (v + 0.3).sqrt()
        w = w - m
    torch.testing.assert_close(p.detach(), w, rtol=1e-14, atol=1e-14)
    assert {name: tuple(value.shape) for name, value in optimizer.state[p].items()} == {
        "step": (),
        "square_avg": (4, 3),
        "momentum_buffer": (4, 3),
    }
    assert optimizer.state[p]["step"] == 5


def test_it_is_timms() -> None:
    theirs = pytest.importorskip("timm.optim", reason="timm is not installed").RMSpropTF
    start = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
    results = []
    for kind in (RMSpropTF, theirs):
        p = nn.Parameter(start.clone())
        optimizer = kind([p], lr=0.05, alpha=0.9, momentum=0.9, eps=1.0)
        for gradient in gradients(5):
            p.grad = gradient.clone()
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-13)


def test_parameters_without_gradients_stay() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = RMSpropTF([a, b])
    a.grad = torch.ones(2)

    def closure() -> float:
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert torch.equal(b, torch.ones(3))
    assert b not in optimizer.state
    assert (a < 1).all()


def test_layout_of_state_is_the_parameters() -> None:
    p = nn.Parameter(torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last))
    optimizer = RMSpropTF([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["square_avg"].stride() == p.stride()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr \(=-1.0\) must be at least 0"),
        ({"eps": float("nan")}, r"eps \(=nan\) must be at least 0"),
        ({"momentum": 1.0}, r"momentum \(=1.0\) must be in \[0, 1\)"),
        ({"alpha": -0.1}, r"alpha \(=-0.1\) must be in \[0, 1\)"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RMSpropTF([nn.Parameter(torch.ones(1))], **options)
