"""Train mode: a model that does in it what it does in eval mode is not looked at twice, and any other is."""

from collections.abc import Callable
from typing import Any

import net2net
import pytest
import torch
import torch.nn.functional as F
from net2net.echo import trail_of
from net2net.groups import infer, structure
from net2net.running import Inputs
from net2net.trail import Trail
from torch import Tensor, nn

EXACT = 1e-10


class Between(nn.Module):
    """What is done between two layers, once or twice."""

    def __init__(self, what: Callable[["Between", Tensor], Any]) -> None:
        super().__init__()
        self.what = [what]  # not a method: it is part of the code
        self.a, self.norm, self.b, self.head = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.table: Tensor
        self.register_buffer("table", torch.arange(1.0, 4)[:, None])
        self.left: dict[str, int] = {"n": 0}

    def forward(self, x: Tensor) -> Any:
        y = self.what[0](self, self.norm(self.a(x)))
        return [self.head(y[0]), *y[1:]] if isinstance(y, tuple) else self.head(y)


def dropped_samples(m: Between, y: Tensor) -> Tensor:
    if not m.training:
        return y
    kept = y.new_empty(len(y), 1).bernoulli_(0.7)
    return y * kept.div_(0.7)


def moving_buffer(m: Between, y: Tensor) -> Tensor:
    if m.training:
        m.table = m.table * 2
    return y * m.table[1]


def written(m: Between, y: Tensor) -> Tensor:
    m.left["n"] += m.training
    return y


def dropped_half(m: Between, y: Tensor) -> Tensor:
    """In eval mode dropout would give back its argument, which is a part of something."""
    one, other = torch.stack([y, m.b(y)]).unbind()
    return F.dropout(other, 0.3, True) if m.training else one


def read_and_forgotten(m: Between, y: Tensor) -> Tensor:
    if m.training:
        try:
            return y * sum(y.flatten().tolist())
        except:  # noqa: E722 -- code does that
            pass
    return y


def with_counter(m: Between, y: Tensor) -> Tensor:
    m.norm.num_batches_tracked.add_(1 + m.training)
    return torch.cat([y, m.b(y)], 1).index_select(1, m.norm.num_batches_tracked[None] % 16).expand_as(y) * y


ALIKE: dict[str, Callable[[Between, Tensor], Any]] = {
    "nothing": lambda m, y: y.relu(),
    "dropout": lambda m, y: F.dropout(y, 0.3, m.training) + m.b(y),
    "dropout in place": lambda m, y: m.b(F.dropout(y * 1, 0.3, m.training, inplace=True)) + y,
    "dropout of channels": lambda m, y: F.dropout1d(y[:, :, None], 0.3, m.training)[:, :, 0] + m.b(y),
    "always dropout": lambda m, y: F.dropout(y, 0.3, True) + m.b(y),
    "dropped samples": lambda m, y: dropped_samples(m, m.b(y)) + y,
    "dropout, written to": lambda m, y: F.dropout(m.b(y), 0.3, m.training).add_(y),
    "memory of no value": lambda m, y: torch.empty_like(y).copy_(y),
    "normed twice": lambda m, y: m.norm(m.b(m.norm(y))),
    "a constant": lambda m, y: y * torch.tensor([2.0]).to(y),
    "a buffer": lambda m, y: y * m.table[1],
}

OTHERWISE: dict[str, Callable[[Between, Tensor], Any]] = {
    "an output more": lambda m, y: (y, m.b(y)) if m.training else (y,),
    "the other output": lambda m, y: (y, *(m.table[:1], m.table[1:2])[:: -1 if m.training else 1]),
    "a layer more": lambda m, y: m.b(y) if m.training else y,
    "another constant": lambda m, y: y * torch.tensor([2.0 if m.training else 3.0]).to(y),
    "another row": lambda m, y: y * m.table[int(m.training)],
    "another operand": lambda m, y: y * (m.table if m.training else m.table.clone())[1],
    "another order": lambda m, y: torch.sub(*(m.b(y), y)[:: -1 if m.training else 1]),
    "another number": lambda m, y: y * (2 + m.training),
    "another nesting": lambda m, y: F.pad(y, (0, 0)) if m.training else y,
    "a hard-coded size": lambda m, y: y.view(-1, 8) if m.training else y,
    "an end beyond": lambda m, y: y[:64] if m.training else y,
    "values": lambda m, y: y * 2 if m.training and y.abs().max() < 0 else y,
    "random way": lambda m, y: y * 2 if m.training and torch.rand(()) < 0.5 else y,
    "a buffer anew": moving_buffer,
    "a record written": written,
    "its own statistics": lambda m, y: F.batch_norm(y, None, None, training=True),
    "frozen statistics": lambda m, y: F.batch_norm(y, m.norm.running_mean, m.norm.running_var),
    "what is written after dropout": lambda m, y: (lambda z: F.dropout(z, 0.3, m.training).add_(y) + z)(m.b(y)),
    "noise that is added": lambda m, y: y + torch.empty_like(y).bernoulli_(0.5) if m.training else y,
    "dropout of a part": dropped_half,
    "values that are forgotten": read_and_forgotten,
    "a counter": with_counter,
    "noise of noise": lambda m, y: F.alpha_dropout(y, 0.3, m.training),
    "an error": lambda m, y: y if not m.training else y.view(7, 77),
}

#: Of these a student alone does something else in train mode, since it is wider.
BY_WIDTH: dict[str, Callable[[Between, Tensor], Any]] = {
    "a number": lambda m, y: y * 2 if m.training and y.shape[1] > 8 else y,
    "a layer": lambda m, y: m.b(y) if m.training and y.shape[1] > 8 else y,
    "an error": lambda m, y: y.view(-1, 8) if m.training and y.shape[1] > 8 else y,
    "an output": lambda m, y: (y, m.table) if m.training and y.shape[1] > 8 else (y,),
    "how much is dropped": lambda m, y: F.dropout(y, 0.0 if y.shape[1] == 8 else 0.5, m.training) + m.b(y),
    "what noise is divided by": lambda m, y: (
        y * y.new_empty(len(y), 1).bernoulli_(1.0).div_(y.shape[1]) if m.training else y
    ),
    "what noise is divided by, a tensor": lambda m, y: (
        y * y.new_empty(len(y), 1).bernoulli_(1.0).div_(torch.tensor(float(y.shape[1]))) if m.training else y
    ),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def example(model: nn.Module) -> Tensor:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for t in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert t is not None
                t.uniform_(0.5, 2)
    return torch.randn(6, 5).double()


@pytest.mark.parametrize("kind", ALIKE)
def test_the_same_in_both_modes(kind: str) -> None:
    model = Between(ALIKE[kind]).double()
    x = example(model)
    assert infer(model, x).left_out is not None
    if kind == "always dropout":  # there is no function that could stay
        return
    student = net2net.plan_widen(model, x, 1.5).apply(model)
    assert student.a.out_features == 12
    for training in (False,) if "drop" in kind else (False, True):
        assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT


@pytest.mark.parametrize("kind", OTHERWISE)
def test_something_else_in_train_mode(kind: str) -> None:
    model = Between(OTHERWISE[kind]).double()
    x = example(model)
    assert infer(model, x).left_out is None
    assert model.left == {"n": 0}


@pytest.mark.parametrize("kind", [*ALIKE, *OTHERWISE])
def test_a_second_look_changes_nothing(kind: str) -> None:
    """What is found without a walk in train mode is what one would find."""
    model = Between((ALIKE | OTHERWISE)[kind]).double()
    x = example(model)
    once, twice = infer(model, x), infer(model, x, alike=False)
    assert [g.reason for g in structure(once.units).groups] == [g.reason for g in structure(twice.units).groups]


@pytest.mark.parametrize("kind", BY_WIDTH)
def test_a_student_that_does_something_else(kind: str) -> None:
    model = Between(BY_WIDTH[kind]).double()
    x = example(model)
    # (A tensor that is made in train mode alone is an operation more.)
    assert (infer(model, x).left_out is None) == ("tensor" in kind)
    try:
        student = net2net.plan_widen(model, x, 1.5).apply(model)
    except ValueError as refused:
        assert "nothing was widened" in str(refused)  # noqa: PT017 -- either is right
        return
    for training in (False, True):
        assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT


class Swapping(Between):
    """Its `train` exchanges the memory of two parameters."""

    def __init__(self) -> None:
        super().__init__(lambda m, y: y * m.one + m.other)
        self.one, self.other = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def train(self, mode: bool = True) -> "Swapping":
        if mode != self.training:
            self.one.data, self.other.data = self.other.data, self.one.data
        return super().train(mode)


class Filling(Between):
    """Its `train` writes to a buffer of indices."""

    def __init__(self) -> None:
        super().__init__(lambda m, y: torch.cat([y, m.b(y)], 1).index_select(1, m.at) * y.mean(1, keepdim=True))
        self.register_buffer("at", torch.arange(8))

    def train(self, mode: bool = True) -> "Filling":
        self.at.copy_(torch.arange(8) + 8 * mode)
        return super().train(mode)


@pytest.mark.parametrize("kind", [Swapping, Filling])
def test_what_train_does_itself(kind: type[Between]) -> None:
    model = kind().double().eval()  # type: ignore[call-arg]
    x = example(model)
    assert infer(model, x).left_out is None
    try:
        student = net2net.plan_widen(model, x, 1.5).apply(model)
    except ValueError:
        return
    for training in (False, True):
        assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT


def test_for_inference_alone() -> None:
    """Its `train` raises."""

    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> "Frozen":
            if mode:
                raise NotImplementedError("this is for inference alone")
            return super().train(mode)

    model = Frozen(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(6, 5).double()
    student = net2net.widen(model, x, 1.5)
    assert student[0].out_features == 12
    assert net2net.verify(model, student, x).max_rel < EXACT


def test_a_forward_is_never_left_in_the_middle() -> None:
    entered: list[int] = []

    def counted(m: Between, y: Tensor) -> Tensor:
        entered.append(1)
        y = m.b(y) if m.training else y
        entered.pop()
        return y

    model = Between(counted).double()
    net2net.plan_widen(model, example(model), 1.5)
    assert not entered


def test_attributes_that_grow_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student is mended while it runs in eval mode; then it is told to do the same in train mode."""
    modes: list[bool] = []

    def looked(model: nn.Module, inputs: Inputs) -> Trail:
        modes.append(model.training)
        return trail_of(model, inputs)

    monkeypatch.setattr("net2net.echo.trail_of", looked)

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out, self.heads = nn.Linear(8, 24), nn.Linear(8, 5), 4

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (self.heads, 2)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.out(F.dropout(y, 0.1, self.training))

    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), Heads()).double()
    x = torch.randn(2, 7, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    student = plan.apply(model)
    assert not plan.skipped
    assert student[2].heads == 8
    assert modes == [True, True]  # what was tried in between is not part of what it does in eval mode
    assert net2net.verify(model.eval(), student.eval(), x).max_rel < EXACT
