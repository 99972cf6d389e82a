"""Random networks, grown in every way: what grows computes the same and follows the gradients' law; what cannot grow is
left alone. `make fuzz` draws many more of them than a usual run."""

from typing import Any

import net2net
import torch
from fuzz import cases
from hypothesis import given, note
from hypothesis import strategies as st
from random_networks import Recipe, recipes
from torch import Tensor, nn

EXACT = 1e-10

WIDENING = st.fixed_dictionaries(
    {
        "width": st.sampled_from([1.25, 1.5, 2, 3]),
        "mapping": st.sampled_from(["random", "balanced", "importance"]),
        "split": st.sampled_from(["uniform", "dyadic", "random"]),
        "noise": st.sampled_from(["cancelling", "none"]),
        "seed": st.integers(0, 100),
    }
)


def backward(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    out = model(x)
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().square().backward()


def planned(model: nn.Module, x: Tensor, **how: Any) -> Any:
    """A plan, or None where nothing can be widened."""
    try:
        return net2net.plan_widen(model, x, **how)
    except ValueError as error:
        if not str(error).startswith("nothing was widened"):
            raise
        return None


@cases(30)
@given(recipes(), WIDENING)
def test_widened(recipe: Recipe, how: dict[str, Any]) -> None:
    model, x = recipe.build()
    plan = planned(model, x, **how)
    if plan is None:
        return
    note(plan.summary())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    student = plan.apply(model)
    for training in (False, True):
        assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@cases(30)
@given(recipes(), WIDENING)
def test_gradients_follow_the_law(recipe: Recipe, how: dict[str, Any]) -> None:
    model, x = recipe.build()
    plan = planned(model, x, **{**how, "noise": "none"})
    if plan is None:
        return
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    backward(model, x)
    optimizer.step()
    student = plan.apply(model)
    grown = plan.grow_optimizer(optimizer, student)
    backward(student, x)
    largest = max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None)
    for name, p in student.named_parameters():
        if p.grad is not None:
            assert (p.grad - grown.state[p]["momentum_buffer"]).abs().max() <= 1e-9 * largest, name


@cases(30)
@given(recipes(), st.integers(0, 100))
def test_deepened(recipe: Recipe, seed: int) -> None:
    model, x = recipe.build()
    try:
        plan = net2net.plan_deepen(model, x, data=[x], seed=seed)
    except ValueError as error:
        if not str(error).startswith("there is no place"):
            raise
        return
    student = plan.apply(model)
    assert net2net.verify(model, student, x).max_rel < EXACT
    wider = planned(student, x, width=1.5, seed=seed)
    if wider is not None:
        assert net2net.verify(model, wider.apply(student), x).max_rel < EXACT
