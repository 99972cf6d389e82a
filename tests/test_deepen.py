"""Deepening whole networks: identity layers are inserted, and nothing else happens."""

from typing import Any

import net2net
import pytest
import torch
import torch.nn.functional as F
from models import EXAMPLES, Example
from torch import Tensor, nn

EXACT = 1e-10
DEEPENABLE = [name for name in EXAMPLES if name != "mlp"]


@pytest.fixture(params=DEEPENABLE)
def example(request: pytest.FixtureRequest) -> Example:
    return EXAMPLES[request.param]


@pytest.mark.parametrize("count", [1, 2])
def test_function_stays_without_data(example: Example, count: int) -> None:
    model, x = example.build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = net2net.plan_deepen(model, x, count=count)
    student = plan.apply(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert len(plan.inserted) == count * len(plan.insertions)
    assert net2net.verify(model, student, x).max_rel < EXACT
    assert net2net.verify(model, student, torch.randn_like(x)).max_rel < EXACT


def test_function_stays_in_both_modes_with_data(example: Example) -> None:
    model, x = example.build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    student = net2net.plan_deepen(model, x, count=2, data=[x]).apply(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert net2net.verify(model, student, x).max_rel < EXACT
    assert net2net.verify(model.train(), student.train(), x).max_rel < EXACT


def test_data_in_several_batches_gives_the_pooled_statistics() -> None:
    model, _ = EXAMPLES["plain_2d"].build()
    batches = [torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n)).double() for n in (3, 5)]
    plan = net2net.plan_deepen(model, batches[0], after="2", data=batches)
    model.train()
    with torch.no_grad():
        x = torch.cat([model[:3](b) for b in batches])
    expected = {"mean": x.mean((0, 2, 3)), "var": x.var((0, 2, 3), correction=0)}
    for what, values in expected.items():
        actual = torch.tensor(getattr(plan.insertions[0], what)[0], dtype=torch.float64)
        torch.testing.assert_close(actual, values, rtol=1e-12, atol=1e-12)
    assert net2net.verify(model.eval(), plan.apply(model), batches[1]).max_rel < EXACT


def test_every_activation_of_a_residual_network_is_found() -> None:
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_deepen(model, x)
    # bn (through the reused activation), bn1, the addition has no module of its own to wrap, nor has the second one;
    # fc1.
    assert {(i.module, i.leading) for i in plan.insertions} == {("bn", True), ("bn1", True), ("fc1", True)}
    assert len(plan.skipped) == 2


def test_a_module_whose_output_others_read_is_not_turned_into_its_activation() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(F.relu(y)) + y  # y itself goes on, so `a` must not end in an activation

    model, x = PreActivation().double(), torch.randn(2, 2, 5, 5).double()
    with pytest.raises(ValueError, match="no place"):
        net2net.plan_deepen(model, x)


def test_names_kernel_sizes_and_kinds() -> None:
    model, x = EXAMPLES["inception"].build()
    pairs = [name for name, _ in model.named_modules() if name.endswith("pair0")]
    assert pairs
    plan = net2net.plan_deepen(model, x, after="*pair0", count=2, kernel_size=[(3, 1), (1, 3)])
    assert [i.module for i in plan.insertions] == pairs
    student = plan.apply(model)
    sizes = [student.get_submodule(name).conv.kernel_size for name in plan.inserted]
    assert sizes == [(3, 1), (1, 3)] * len(pairs)
    assert net2net.verify(model, student, x).max_rel < EXACT


def test_a_module_and_one_inside_it_can_both_be_wrapped() -> None:
    block = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU())
    model, x = nn.Sequential(block, nn.Conv2d(4, 2, 1)).double(), torch.randn(2, 2, 8, 8).double()
    plan = net2net.plan_deepen(model, x, after=["0", "0.1"])
    student = plan.apply(model)
    assert plan.inserted == ["0.layer.1.grown0", "0.grown0"]
    assert all(isinstance(student.get_submodule(name).conv, nn.Conv2d) for name in plan.inserted)
    assert net2net.verify(model, student, x).max_rel < EXACT
    student.load_state_dict(plan.grow_state_dict(model.state_dict()))


def test_growing_again_and_widening_after_deepening() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    student = net2net.deepen(model, x, data=[x])
    student = net2net.widen(student, x, 1.5)
    student = net2net.deepen(student, x, data=[x], count=2)
    for training in (False, True):
        assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes(dtype: torch.dtype) -> None:
    model, x = EXAMPLES["plain_2d"].build(dtype)
    student = net2net.deepen(model, x, data=[x])
    assert {p.dtype for p in student.parameters()} == {dtype}


def test_activations_that_are_not_idempotent_are_refused() -> None:
    model, x = EXAMPLES["mlp"].build()
    with pytest.raises(ValueError, match="tanh is not idempotent"):
        net2net.plan_deepen(model, x, method="identity")
    with pytest.raises(ValueError, match=r"after \(='3'\).*gelu is not idempotent"):
        net2net.plan_deepen(model, x, after="3", method="identity")
    mixed = nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    plan = net2net.plan_deepen(mixed, torch.randn(2, 4), method="identity")
    assert [i.module for i in plan.insertions] == ["3"]
    assert "silu is not idempotent" in plan.skipped[0].reason


def test_code_that_reads_parameters_of_a_module_keeps_it_unwrapped() -> None:
    class Peeking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x)) * self.a.weight.sum()
            return self.c(F.relu(self.b(x)))

    model, x = Peeking().double(), torch.randn(2, 3).double()
    plan = net2net.plan_deepen(model, x)
    assert [i.module for i in plan.insertions] == ["b"]
    assert "does not run the same with this module wrapped" in plan.skipped[0].reason
    assert net2net.verify(model, plan.apply(model), x).max_rel < EXACT
    with pytest.raises(ValueError, match=r"after \(='a'\)"):
        net2net.plan_deepen(model, x, after="a")


def test_code_that_asks_for_a_modules_class_keeps_it_unwrapped() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x) * 2 if isinstance(layer, nn.ReLU) else layer(x)
            return x

    with pytest.raises(ValueError, match="takes another way"):
        net2net.plan_deepen(Asking().double(), torch.randn(2, 3).double())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, r"count \(=0\)"),
        ({"method": "magic"}, r"method \(='magic'\)"),
        ({"after": "nowhere"}, r"after \(='nowhere'\)"),
        ({"kernel_size": 4}, r"kernel_size \(=4\)"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size \(=\(3, 3, 3\)\)"),
        ({"kernel_size": []}, "kernel_size"),
        ({"data": []}, "data"),
        ({"seed": -2}, r"seed \(=-2\)"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    model, x = EXAMPLES["plain_2d"].build()
    with pytest.raises(ValueError, match=message):
        net2net.plan_deepen(model, x, **arguments)


def test_data_that_is_not_finite() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    with pytest.raises(ValueError, match="not finite"):
        net2net.plan_deepen(model, x, data=[torch.full_like(x, float("nan"))])
