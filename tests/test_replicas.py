"""How far replicas are apart, and a student that predicts its teacher's features."""

import net2net
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from net2net.experiments.predicting import LAYERS, Predicting
from net2net.experiments.replicas import ReplicaDistance, distances, further_replicas
from net2net.models import inception_bn
from net2net.training import State
from torch import nn


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).double()  # fmt: skip


def test_further_replicas() -> None:
    assert further_replicas(np.array([0, 1, 2, 1, 1, 0])).tolist() == [[3, 1], [4, 1], [5, 0]]
    assert further_replicas(np.arange(3)).shape == (0, 2)


def test_distances() -> None:
    units = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    pairs = torch.tensor([[1, 0], [2, 0], [3, 0], [5, 4]])
    assert distances(units, pairs).tolist() == pytest.approx([0.0, 2**0.5, 2.0, 0.0])


def trained(noise: str, steps: int = 6) -> dict[str, list[float]]:
    """Of a student after so many steps, measured after every second."""
    x, y = torch.randn(32, 2, 8, 8, dtype=torch.float64), torch.arange(32) % 3
    plan = net2net.plan_widen(network(), x[:2], 2.0, noise=noise, mapping="balanced")
    student = plan.apply(network())
    state = State(student, torch.optim.SGD(student.parameters(), lr=0.1))
    measure = ReplicaDistance(plan, x, every=2, last=steps)
    measure(state)
    for state.step in range(1, steps + 1):
        state.optimizer.zero_grad()
        F.cross_entropy(student.train()(x), y).backward()
        state.optimizer.step()
        measure(state)
    assert student.training
    assert state.notes["replicas"]["step"] == [0, 2, 4, 6]
    return state.notes["replicas"]


def test_copies_without_noise_stay_together() -> None:
    found = trained("none")
    assert max(found["weights"] + found["outputs"]) < 1e-9


def test_cancelling_noise_parts_them_without_changing_what_they_compute() -> None:
    outputs = trained("cancelling")["outputs"]
    assert outputs[0] < 1e-9
    assert 0.001 < outputs[1] < outputs[2] < outputs[3]


def test_the_papers_noise_parts_them_at_once() -> None:
    assert trained("paper")["outputs"][0] > 0.01


def test_a_plan_without_replicas() -> None:
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    plan = net2net.plan_deepen(network(), x)
    with pytest.raises((ValueError, AttributeError)):
        ReplicaDistance(plan, x, 1, 1)  # type: ignore[arg-type]


def test_predicting_adds_its_gradient() -> None:
    torch.manual_seed(1)
    teacher, student = (inception_bn(3, width=w, base=0.02, in_channels=1, stem="small").double() for w in (1.0, 2.0))
    x, y = torch.randn(4, 1, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    model = Predicting(teacher, student, x)
    names = dict(model.named_parameters())
    assert sum(name.startswith("prediction.heads.") for name in names) == 2 * len(LAYERS)
    assert all(name.startswith(("student.", "prediction.heads.")) for name in names)

    F.cross_entropy(model.train()(x), y).backward()
    found = {name: p.grad.clone() for name, p in names.items() if p.grad is not None}
    model.zero_grad()
    loss = F.cross_entropy(student(x), y) + model.prediction(x)
    loss.backward()
    assert found.keys() == names.keys()
    for name, p in names.items():
        assert p.grad is not None
        assert torch.allclose(found[name], p.grad, rtol=1e-9, atol=1e-12)
    assert torch.equal(model.eval()(x), student(x))


def test_predicting_in_parts() -> None:
    """Parts of a mini-batch have its gradient, also where they are not alike."""
    torch.manual_seed(1)
    teacher, student = (inception_bn(3, base=0.02, in_channels=1, stem="small").double() for _ in range(2))
    x, y = torch.randn(5, 1, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    model = Predicting(teacher, student, x, batch_size=5).train()
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # statistics of a part are other ones
    gradients = []
    for parts in (1, 2):
        model.zero_grad()
        for part, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (F.cross_entropy(model(part), labels) * (len(labels) / 5)).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for whole, summed in zip(*gradients, strict=True):
        assert torch.allclose(whole, summed, rtol=1e-9, atol=1e-12)
