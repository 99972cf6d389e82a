"""verify: sees differences, and where they begin; leaves no traces."""

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
