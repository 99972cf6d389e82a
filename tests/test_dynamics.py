"""The dynamics-preserving rule: a student's function after some steps is the teacher's after as many."""

import copy
import io
from typing import Any

import net2net
import pytest
import torch
from models import EXAMPLES
from net2net.dynamics import KEY
from net2net.rmsprop import RMSpropTF
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop
from zoo import NETWORKS

#: Of the largest output.
EXACT = 1e-9

OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (Adam, {"lr": 1e-3, "amsgrad": True, "weight_decay": 0.1, "eps": 1e-3}),
    "adamw": (AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    "rmsprop-tf": (RMSpropTF, {"lr": 1e-3, "eps": 1.0, "weight_decay": 0.1}),
    "rmsprop": (RMSprop, {"lr": 1e-3, "momentum": 0.9, "centered": True, "eps": 1.0, "weight_decay": 0.1}),
    "nadam": (NAdam, {"lr": 1e-3}),
    "radam": (RAdam, {"lr": 3e-3}),
    "adamax": (Adamax, {"lr": 1e-3}),
    "adagrad": (Adagrad, {"lr": 1e-3}),
    "adadelta": (Adadelta, {"lr": 0.1}),
}

#: Whether units have equally many replicas does not matter, nor how they share.
WIDENINGS: dict[str, dict[str, Any]] = {
    "even": {"width": 2, "mapping": "balanced"},
    "uneven": {"width": 1.7},
    "dyadic": {"width": 1.7, "split": "dyadic"},
    "random": {"width": 1.7, "split": "random"},
}


def loss(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return (out - torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).square().mean()


def train(model: nn.Module, optimizer: Optimizer, x: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, x).backward()
        optimizer.step()


def trained(name: str, kind: str = "sgd") -> tuple[nn.Module, Optimizer, Tensor]:
    model, x = (EXAMPLES | NETWORKS)[name].build()
    make, options = OPTIMIZERS[kind]
    optimizer = make(model.train().parameters(), **options)
    train(model, optimizer, x, 3)
    return model, optimizer, x


def difference(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = a(x)
        return ((b(x) - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("widening", WIDENINGS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_function_follows_the_teachers(kind: str, widening: str) -> None:
    teacher, optimizer, x = trained("residual", kind)
    plan = net2net.plan_widen(teacher, x, noise="none", **WIDENINGS[widening])
    student = plan.apply(teacher)
    grown = plan.grow_optimizer(optimizer, student, dynamics=True)
    at_growth = copy.deepcopy(teacher)
    train(teacher, optimizer, x, 10)
    train(student, grown, x, 10)
    assert difference(teacher, student, x) < EXACT
    assert difference(teacher, at_growth, x) > 0.01  # there was something to follow


@pytest.mark.parametrize("kind", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize(
    "name", ["gated", "tied", "dense", "vision_transformer", "language_model", "grouped", "rotary", "scan"]
)
def test_in_networks_of_all_kinds(name: str, kind: str) -> None:
    teacher, optimizer, x = trained(name, kind)
    plan = net2net.plan_widen(teacher, x, 1.5, noise="none")
    student = plan.apply(teacher)
    grown = plan.grow_optimizer(optimizer, student, dynamics=True)
    train(teacher, optimizer, x, 5)
    train(student, grown, x, 5)
    assert difference(teacher, student, x) < EXACT


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "rmsprop"])
def test_the_same_as_learning_rates(kind: str) -> None:
    """Where all units have equally many replicas, groups of parameters with other options do the same."""
    teacher, optimizer, x = trained("residual", kind)
    plan = net2net.plan_widen(teacher, x, 2, mapping="balanced", noise="none")
    student = plan.apply(teacher)
    grown = plan.grow_optimizer(optimizer, student)
    # RMSProp's momentum depends on epsilon, which here is one that makes it the teacher's.
    same_momentum = plan.grow_optimizer(optimizer, student, dynamics=True)
    for p in student.parameters() if kind == "rmsprop" else ():
        grown.state[p]["momentum_buffer"] = same_momentum.state[p]["momentum_buffer"]
    options = {k: v for k, v in grown.param_groups[0].items() if k != "params"}
    state, grown.param_groups[:] = grown.state, []
    for name, p in student.named_parameters():
        c_i = c_o = 1.0
        for axis in plan._grown_axes(name):
            assert len(set(axis.share.tolist())) == 1
            share = axis.share[0].item()
            c_i, c_o = (c_i * share, c_o) if axis.split else (c_i, c_o * share)
        own = dict(options)
        own["lr"] *= c_i / c_o if kind == "sgd" else c_i
        own["weight_decay"] *= 1 / c_i if kind == "adamw" else c_o / c_i
        if kind != "sgd":
            own["eps"] *= c_o
        grown.param_groups.append({"params": [p], **own})
    assert state is grown.state
    train(teacher, optimizer, x, 10)
    train(student, grown, x, 10)
    assert difference(teacher, student, x) < EXACT


def test_without_the_rule_it_is_another_trajectory() -> None:
    teacher, optimizer, x = trained("residual")
    plan = net2net.plan_widen(teacher, x, 2, mapping="balanced", noise="none")
    student = plan.apply(teacher)
    grown = plan.grow_optimizer(optimizer, student)
    train(teacher, optimizer, x, 5)
    train(student, grown, x, 5)
    assert difference(teacher, student, x) > 1e-3


@pytest.mark.parametrize("how", ["wider", "deeper"])
def test_growing_again(how: str) -> None:
    """The coordinates are still those of the first teacher. New layers are held fixed here."""
    teacher, optimizer, x = trained("gated", "adam")
    first = net2net.plan_widen(teacher, x, 1.5, noise="none")
    student = first.apply(teacher)
    grown = first.grow_optimizer(optimizer, student, dynamics=True)
    train(teacher, optimizer, x, 3)
    train(student, grown, x, 3)
    if how == "wider":
        plan: net2net.GrowthPlan = net2net.plan_widen(student, x, 1.3, noise="none", seed=1)
    else:
        plan = net2net.plan_deepen(student, x)
    larger = plan.apply(student)
    grown = plan.grow_optimizer(grown, larger, dynamics=how == "wider")
    for name, p in larger.named_parameters():
        p.requires_grad_(".grown" not in name)
    train(teacher, optimizer, x, 3)
    train(larger, grown, x, 3)
    assert difference(teacher, larger, x) < EXACT


def test_growing_again_without_the_rule_keeps_the_old_coordinates() -> None:
    teacher, optimizer, x = trained("residual", "adam")
    first = net2net.plan_widen(teacher, x, 1.5, noise="none")
    student = first.apply(teacher)
    grown = first.grow_optimizer(optimizer, student, dynamics=True)
    second = net2net.plan_widen(student, x, 1.3, noise="none", seed=1)
    wider = second.apply(student)
    again = second.grow_optimizer(grown, wider)
    for factors, p in zip(again.param_groups[0][KEY], again.param_groups[0]["params"], strict=True):
        for f in factors["gradient"] + factors["value"]:
            assert torch.broadcast_shapes(f.shape, p.shape) == p.shape
    before = copy.deepcopy(wider)
    train(wider, again, x, 2)
    assert difference(before, wider, x) > 1e-6


def test_a_state_dict_keeps_the_rule() -> None:
    teacher, optimizer, x = trained("gated", "adam")
    plan = net2net.plan_widen(teacher, x, 1.7, noise="none")
    student = plan.apply(teacher)
    grown = plan.grow_optimizer(optimizer, student, dynamics=True)
    train(student, grown, x, 2)
    file = io.BytesIO()
    torch.save(grown.state_dict(), file)
    file.seek(0)
    again = copy.deepcopy(student)
    resumed = Adam(again.parameters(), lr=1.0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    net2net.keep_dynamics(resumed)
    net2net.keep_dynamics(resumed)
    train(student, grown, x, 3)
    train(again, resumed, x, 3)
    assert difference(student, again, x) == 0


def test_a_step_leaves_gradients_and_frozen_parameters_alone() -> None:
    teacher, optimizer, x = trained("residual")
    plan = net2net.plan_widen(teacher, x, 2, mapping="balanced", noise="none")
    student = plan.apply(teacher)
    student.stem.weight.requires_grad_(False)
    grown = plan.grow_optimizer(optimizer, student, dynamics=True)
    stem = student.stem.weight.clone()
    loss(student, x).backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    grown.step()
    assert torch.equal(stem, student.stem.weight)
    assert all(torch.equal(g, student.get_parameter(name).grad) for name, g in gradients.items())


def test_a_parameter_that_joins_later_steps_as_usual() -> None:
    teacher, optimizer, x = trained("gated")
    plan = net2net.plan_widen(teacher, x, 2, noise="none")
    student = plan.apply(teacher)
    grown = plan.grow_optimizer(optimizer, student, dynamics=True)
    later = nn.Parameter(torch.ones(3))
    grown.add_param_group({"params": [later], "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False})
    later.grad = torch.ones(3)
    loss(student, x).backward()
    grown.step()
    assert torch.equal(later, torch.zeros(3))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_runs_the_model_in_its_own_coordinates(kind: str, by_name: bool) -> None:
    teacher, optimizer, x = trained("gated", kind)
    plan = net2net.plan_widen(teacher, x, 1.5, noise="none")
    student, other = plan.apply(teacher), plan.apply(teacher)
    stepped = plan.grow_optimizer(optimizer, student, dynamics=True)
    closing = plan.grow_optimizer(optimizer, other, dynamics=True)

    def closure() -> Tensor:
        closing.zero_grad()
        value = loss(other, x)
        value.backward()
        return value

    for _ in range(3):
        expected = loss(student, x).detach()
        value = closing.step(closure=closure) if by_name else closing.step(closure)
        assert torch.equal(value.detach(), expected)
        train(student, stepped, x, 1)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), other.parameters(), strict=True))


def test_what_cannot_be_is_refused() -> None:
    teacher, optimizer, x = trained("gated")
    plan = net2net.plan_widen(teacher, x, 2, noise="none")
    student = plan.apply(teacher)
    grown = plan.grow_optimizer(optimizer, student, dynamics=True)
    before = copy.deepcopy(student)
    p = grown.param_groups[0]["params"][2]
    p.grad = torch.ones_like(p).to_sparse()
    with pytest.raises(TypeError, match="sparse"):
        grown.step()
    assert difference(before, student, x) == 0
    with pytest.raises(TypeError, match="must be a torch"):
        net2net.keep_dynamics(student)  # type: ignore[arg-type]
    untouched = SGD(student.parameters(), lr=0.1)
    net2net.keep_dynamics(untouched)
    assert not untouched._optimizer_step_pre_hooks
