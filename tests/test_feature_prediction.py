"""Feature prediction, the baseline of the paper's section 2.1."""

import copy
from typing import Any

import net2net
import pytest
import torch
import torch.nn.functional as F
from models import EXAMPLES, randomised
from torch import Tensor, nn
from zoo import NETWORKS


def networks() -> tuple[nn.Module, nn.Module, Tensor]:
    teacher, x = EXAMPLES["plain_2d"].build()
    student = nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(9, 15, 3, padding=1), nn.BatchNorm2d(15), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(60, 18), nn.ReLU(), nn.Linear(18, 4),
    )  # fmt: skip
    return teacher, randomised(student).double(), x


PAIRS = {"2": "2", "6": "6", "10": "11"}


def test_it_is_the_error_of_1x1_convolutions() -> None:
    teacher, student, x = networks()
    with net2net.FeaturePrediction(teacher, student, PAIRS, x, weight=0.5) as prediction:
        student(x)
        loss = prediction(x)
        first, _, last = prediction.heads
        errors = [
            F.mse_loss(F.conv2d(student[:3](x), first.weight[:, :, None, None], first.bias), teacher[:3](x)),
            F.mse_loss(F.conv2d(student[:7](x), prediction.heads[1].weight[:, :, None, None], prediction.heads[1].bias),
                       teacher[:7](x)),
            F.mse_loss(last(student[:11](x)), teacher[:12](x)),
        ]  # fmt: skip
        assert loss.item() == pytest.approx(0.5 * sum(e.item() for e in errors) / 3, rel=1e-12)
        loss.backward()
    assert first.weight.shape == (6, 9)
    assert student[0].weight.grad.abs().sum() > 0
    assert student[11].weight.grad is None  # behind the last layer that predicts
    assert all(p.grad is None for p in teacher.parameters())


def test_only_the_heads_are_its_own() -> None:
    teacher, student, x = networks()
    prediction = net2net.FeaturePrediction(teacher, student, PAIRS, x)
    assert {name.split(".")[0] for name in prediction.state_dict()} == {"heads"}
    again = net2net.FeaturePrediction(teacher, student, PAIRS, x)
    assert all(torch.equal(a, b) for a, b in zip(prediction.parameters(), again.parameters(), strict=True))
    other = net2net.FeaturePrediction(teacher, student, PAIRS, x, seed=1)
    assert not torch.equal(prediction.heads[0].weight, other.heads[0].weight)
    other.load_state_dict(prediction.state_dict())


def test_training_on_it_brings_the_layers_together() -> None:
    teacher, student, x = networks()
    student.train()
    with net2net.FeaturePrediction(teacher, student, PAIRS, x) as prediction:
        optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
        optimizer.add_param_group({"params": list(prediction.parameters())})
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            student(x)
            loss = prediction(x)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_the_weight_decays() -> None:
    teacher, student, x = networks()
    prediction = net2net.FeaturePrediction(teacher, student, {"2": "2"}, x, weight=2.0, decay=0.5)
    student(x)
    first = prediction(x).item()
    prediction.step()
    prediction.step()
    student(x)
    assert prediction.weight == 0.5
    assert prediction(x).item() == first / 4


def test_nothing_is_left_behind() -> None:
    teacher, student, x = networks()
    before = copy.deepcopy([teacher.state_dict(), student.state_dict()])
    state = torch.get_rng_state()
    prediction = net2net.FeaturePrediction(teacher, student.train(), PAIRS, x)
    assert torch.equal(state, torch.get_rng_state())
    assert student.training
    prediction.remove()
    prediction.remove()
    assert not any(m._forward_hooks for model in (teacher, student) for m in model.modules())
    for values, model in zip(before, (teacher, student), strict=True):
        assert all(torch.equal(t, values[name]) for name, t in model.state_dict().items())
    with pytest.raises(RuntimeError, match="removed"):
        prediction(x)


def test_the_student_is_run_first() -> None:
    teacher, student, x = networks()
    prediction = net2net.FeaturePrediction(teacher, student, PAIRS, x)
    with pytest.raises(RuntimeError, match="run the student first: nothing has been seen of its 2"):
        prediction(x)
    student(x)
    prediction(x)
    with pytest.raises(RuntimeError, match="run the student first"):
        prediction(x)


def test_tokens() -> None:
    teacher, x = NETWORKS["vision_transformer"].build()
    student = net2net.widen(teacher, x, 2)
    pairs = {"blocks.0": "blocks.0", "blocks.1": "blocks.0"}
    with net2net.FeaturePrediction(teacher, student, pairs, (x,), dim=-1) as prediction:
        student(x)
        assert prediction((x,)).shape == ()
        assert prediction.heads[0].weight.shape == (12, 24)


def test_bad_input_is_named() -> None:
    teacher, student, x = networks()

    def make(pairs: Any = PAIRS, **options: Any) -> None:
        net2net.FeaturePrediction(teacher, student, pairs, x, **options)

    with pytest.raises(ValueError, match=r"weight \(=-1\)"):
        make(weight=-1)
    with pytest.raises(ValueError, match=r"decay \(=0\)"):
        make(decay=0)
    with pytest.raises(ValueError, match=r"pairs \(=\{\}\)"):
        make({})
    with pytest.raises(ValueError, match="the student has no module 'x'"):
        make({"x": "2"})
    with pytest.raises(ValueError, match="the teacher has no module 'x'"):
        make({"2": "x"})
    with pytest.raises(ValueError, match=r"2 gives \(5, 9, 8, 8\) and the teacher's 6 \(5, 10, 4, 4\)"):
        make({"2": "6"})
    with pytest.raises(ValueError, match=r"10 gives \(5, 18\) and the teacher's 6"):
        make({"10": "6"})
    with pytest.raises(ValueError, match=r"dim \(=2\) is no dimension of the output of 10"):
        make({"10": "11"}, dim=2)
    unused = nn.ModuleDict({"inner": student})
    unused.forward = lambda y: (y, y)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the student's inner is not run"):
        net2net.FeaturePrediction(teacher, unused, {"inner": "2"}, x)
    with pytest.raises(ValueError, match="the student's  returns a tuple, not a tensor"):
        net2net.FeaturePrediction(teacher, unused, {"": "2"}, x)
    assert not any(m._forward_hooks for model in (teacher, student) for m in model.modules())
