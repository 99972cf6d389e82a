"""Larger kernels, same function."""

from pathlib import Path
from typing import Any

import net2net
import pytest
import torch
from models import EXAMPLES
from torch import Tensor, nn

EXACT = 1e-12

CONVOLUTIONS: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "plain": (nn.Conv2d(3, 4, 3), (2, 3, 9, 9), 5),
    "padded": (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 7, 7), 7),
    "dilated, strided": (nn.Conv2d(3, 4, 3, 2, padding=(2, 1), dilation=(2, 3)), (2, 3, 11, 11), (5, 3)),
    "same": (nn.Conv2d(3, 4, (3, 5), padding="same"), (2, 3, 8, 8), (7, 5)),
    "valid": (nn.Conv2d(3, 4, 2, padding="valid"), (2, 3, 8, 8), 4),
    "circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 8, 8), 5),
    "reflect, same": (nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), (2, 3, 8, 8), 5),
    "grouped": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 8, 8), 5),
    "1-D": (nn.Conv1d(3, 4, 5, padding=2), (2, 3, 12), 9),
    "3-D": (nn.Conv3d(3, 4, (1, 3, 3)), (2, 3, 4, 6, 6), (3, 3, 5)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, 2, padding=1, output_padding=1), (2, 3, 5, 5), 5),
    "transposed, dilated": (nn.ConvTranspose1d(3, 4, 3, dilation=2), (2, 3, 9), 5),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_function_stays(kind: str) -> None:
    convolution, shape, size = CONVOLUTIONS[kind]
    model = nn.Sequential(convolution).double()
    x = torch.randn(shape, dtype=torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    student = net2net.enlarge_kernels(model, x, {"0": size})
    assert student[0].kernel_size == ((size,) * len(convolution.kernel_size) if isinstance(size, int) else size)
    assert student[0].weight.shape[2:] == student[0].kernel_size
    assert net2net.verify(model, student, x).max_rel < EXACT
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    student(x).sum().backward()  # what is around the old kernel learns too
    assert student[0].weight.grad.ne(0).all()


def test_by_pattern_and_in_channels_last() -> None:
    model, x = EXAMPLES["residual"].build()
    model.to(memory_format=torch.channels_last)
    student = net2net.enlarge_kernels(model, x, {"conv?": 5, "stem": (3, 5)})
    assert student.conv2.kernel_size == (5, 5)
    assert student.stem.kernel_size == (3, 5)
    assert student.down.kernel_size == (1, 1)
    assert student.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    for training in (False, True):
        assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT


@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_optimizers_and_state_dicts_go_along(consume: bool, layout: torch.memory_format, tmp_path: Path) -> None:
    model, x = EXAMPLES["residual"].build()
    model.train().to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(x).square().sum().backward()
    optimizer.step()
    before = {name: {k: v.clone() for k, v in optimizer.state[p].items()} for name, p in model.named_parameters()}
    state_dict = {name: t.clone() for name, t in model.state_dict().items()}
    plan = net2net.plan_kernels(model, x, {"conv?": 5, "stem": (3, 5)})
    plan.save(tmp_path / "plan.json")
    plan = net2net.GrowthPlan.load(tmp_path / "plan.json")
    assert "stem" in plan.summary()
    expected = plan.apply(model)
    student = plan.apply(model, consume=consume)
    grown = plan.grow_optimizer(optimizer, student, consume=consume)
    for name, t in plan.grow_state_dict(state_dict).items():
        assert torch.equal(t, student.state_dict()[name]), name
        assert torch.equal(t, expected.state_dict()[name]), name
    for name, p in student.named_parameters():
        state = grown.state[p]
        assert p.shape == state["exp_avg"].shape == state["exp_avg_sq"].shape == plan.student_shape(name)
        assert p.stride() == state["exp_avg"].stride()
        assert state["step"] == before[name]["step"]
        if p.shape == before[name]["exp_avg"].shape:
            assert all(torch.equal(state[key], value) for key, value in before[name].items())
            continue
        square, momentum = before[name]["exp_avg_sq"], before[name]["exp_avg"]
        assert state["exp_avg"].count_nonzero() == momentum.count_nonzero()
        assert state["exp_avg"].sum().item() == pytest.approx(momentum.sum().item())
        torch.testing.assert_close(state["exp_avg_sq"].mean((2, 3)), square.mean((2, 3)))
    student(x).square().sum().backward()
    grown.step()


def test_grow_enlarges_too() -> None:
    model, x = EXAMPLES["residual"].build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    grown = net2net.grow(model, x, widen=1.5, kernel={"conv?": 5}, optimizer=optimizer)
    assert [plan.kind for plan in grown.plans] == ["widen", "kernel"]
    assert grown.report.verified is not None
    assert grown.report.verified.max_rel < EXACT
    assert grown.model.conv1.weight.shape[2:] == (5, 5)
    with pytest.raises(ValueError, match="fits no convolution"):
        net2net.grow(model, x, kernel={"nowhere": 5})


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, r"sizes \(=\{\}\)"),
        ({"nowhere": 5}, "'nowhere'"),
        ({"a": 4}, r"sizes\['a'\] \(=4\) must be the old size \(3, 3\) plus even numbers"),
        ({"a": 1}, r"\(=1\)"),
        ({"a": (5, 5, 5)}, "2 of them"),
        ({"a": 5, "?": 7}, "contradicts"),
        ({"a": 5}, "shared"),
    ],
)
def test_bad_arguments(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        net2net.enlarge_kernels(Shared(), torch.randn(1, 3, 8, 8), sizes)


def test_a_computed_weight_is_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ValueError, match="computed"):
        net2net.enlarge_kernels(model, torch.randn(1, 3, 8, 8), {"0": 5})
