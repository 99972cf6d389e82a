"""What code does by the values of activations, which are zeros while a growth is planned."""

from collections.abc import Callable

import net2net
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 12


class Between(nn.Module):
    """Something between two convolutions."""

    def __init__(self, what: Callable[["Between", Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.linear, self.head = nn.Linear(CHANNELS, CHANNELS), nn.Conv2d(CHANNELS, 5, 1)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        y = self.what(self, F.relu(self.before(x)) * 3)
        return self.head(F.relu(self.after(y))).mean((2, 3))


def places(y: Tensor) -> Tensor:
    """[..., C]: channels last, as masks of places want them."""
    return y.permute(0, 2, 3, 1).clone()


def put(y: Tensor, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    z = places(y)
    mask = z.amax(-1) > 1
    z[mask] = value(z, mask)
    return z.permute(0, 3, 1, 2)


# What each makes of activations [B, C, H, W], and whether their channels can grow nevertheless.
CASES: dict[str, tuple[Callable[[Between, Tensor], Tensor], bool]] = {
    "sum": (lambda m, y: y + places(y)[y.amax(1) > 1].sum() / 100, False),
    "mean": (lambda m, y: y + places(y)[y.amax(1) > 1].mean(0)[None, :, None, None], True),
    "norm": (lambda m, y: y / (1 + y[y > 1].norm()), False),
    "masked_select": (lambda m, y: y + y.masked_select(y > 1).mean(), False),
    "nonzero": (lambda m, y: y + places(y)[torch.where(y.amax(1) > 1)].sum() / 100, False),
    "repeat": (lambda m, y: y + y.repeat_interleave((y.mean((1, 2, 3)) > 0).long(), 0).sum() / 100, False),
    "put_sum": (lambda m, y: put(y, lambda z, mask: z[mask].sum(-1, keepdim=True)), False),
    "put_positions": (lambda m, y: put(y, lambda z, mask: z[mask] * torch.arange(CHANNELS).to(z)), False),
    "put_linear": (lambda m, y: put(y, lambda z, mask: m.linear(z)[mask]), True),
    "put_linear_of_selected": (lambda m, y: put(y, lambda z, mask: m.linear(z[mask])), True),
    "put_number": (lambda m, y: y.clone().index_put_((y > 1,), torch.ones((), dtype=y.dtype)), True),
    "one_hot": (lambda m, y: y + F.one_hot(y.amax(1).long().clamp(0, 2), 3).to(y).mean(-1)[:, None], True),
    "printed": (lambda m, y: y + len(f"{y.mean():.2f}{y!r}") * 0, True),
}


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 8, 8, dtype=torch.float64)


def model_of(what: Callable[[Between, Tensor], Tensor]) -> Between:
    model = Between(what).double().eval()
    for p in model.parameters():
        nn.init.normal_(p, 0, 0.4)
    return model


@pytest.mark.parametrize("case", CASES)
def test_selections(case: str, x: Tensor) -> None:
    what, grows = CASES[case]
    model = model_of(what)
    plan = net2net.plan_widen(model, x, 1.5)
    student = plan.apply(model)
    for inputs in (x, 2 * x.flip(0), torch.zeros_like(x)):
        assert net2net.verify(model, student, inputs).max_rel < 1e-10
    assert student.after.weight.shape[0] > CHANNELS
    assert (student.before.weight.shape[0] > CHANNELS) == grows


def branch(m: Between, y: Tensor) -> Tensor:
    return y.flip(1) if y.mean(1).max() > 0.2 else y


def bound(m: Between, y: Tensor) -> Tensor:
    return y[:, : (y.amax(1) > 1).sum()].sum(1, keepdim=True) + y


def shift(m: Between, y: Tensor) -> Tensor:
    return y.roll(1 + int(y.amax((1, 2, 3)).tolist()[0]) % 5, 1)


def loop(m: Between, y: Tensor) -> Tensor:
    for _ in range(int((y.amax(1) > 1).sum()) % 3 + 1):
        y = y.roll(1, 1)
    return y


def same(m: Between, y: Tensor) -> Tensor:
    return y.flip(1) if torch.equal(y, torch.zeros_like(y)) else y


def numpy(m: Between, y: Tensor) -> Tensor:
    return y + torch.from_numpy(y.detach().numpy().sum(1, keepdims=True))


def cut(m: Between, y: Tensor) -> Tensor:
    return torch.cat(torch.tensor_split(y, y.amax((1, 2, 3))[:1].long() % 5 + 2, 1)[::-1], 1)


def test_checks_for_numbers_that_are_none(x: Tensor) -> None:
    def checked(_m: Between, y: Tensor) -> Tensor:
        if torch.isnan(y).any() or not y.isfinite().all() or torch.isinf(y).any():
            raise ValueError
        return y

    model = model_of(checked)
    plan = net2net.plan_widen(model, x, 1.5)
    assert len(plan.widened) == 2
    assert net2net.verify(model, plan.apply(model), x).max_rel < 1e-10


@pytest.mark.parametrize("what", [branch, bound, shift, loop, same, numpy, cut])
def test_what_python_has_read_cannot_be_followed(what: Callable[[Between, Tensor], Tensor], x: Tensor) -> None:
    model = model_of(what)
    with pytest.raises(ValueError, match=r"the code reads values of activations|no rule for aten\.equal"):
        net2net.plan_widen(model, x, 1.5)


def test_what_comes_before_grows() -> None:
    """Only what is in memory when values are read, and all that comes later, may be treated differently for them."""

    class Logging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())
            self.inner, self.head = nn.Linear(6, 7), nn.Linear(7, 3)
            self.seen: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            self.seen.append(y.mean().item())
            return self.head(F.relu(self.inner(y)))

    torch.manual_seed(0)
    model, x = Logging().double(), torch.randn(4, 5).double()
    plan = net2net.plan_widen(model, x, 2.0)
    assert [w.layers for w in plan.widened] == [["body.0"]]
    assert net2net.verify(model, plan.apply(model), x).max_rel < 1e-10


def test_values_of_inputs_and_single_weights_are_known() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.scale = nn.Linear(5, 8), nn.Linear(8, 3), nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = self.a(x)
            if mask.all() or self.scale.item() > 1:
                y = y * self.scale.item()
            return self.b(y[mask].relu())

    torch.manual_seed(0)
    model, x = Scaled().double(), torch.randn(4, 5).double()
    mask = torch.tensor([True, False, True, True])
    student = net2net.widen(model, (x, mask), 2.0)
    assert student.a.weight.shape[0] == 16
    # Nothing is there to follow here.
    plan = net2net.plan_widen(model, (x, mask | True), 2.0)
    assert net2net.verify(model, plan.apply(model), (x, mask)).max_rel < 1e-10
    with pytest.raises(ValueError, match="nothing that could be followed"):
        net2net.plan_widen(model, (x, mask & False), 2.0)


def test_a_mask_that_puts_a_parameter() -> None:
    """As models of speech hide some of their frames."""

    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.hidden = nn.Linear(5, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y[x[..., 0] > 0] = self.hidden
            return self.b(F.relu(y))

    torch.manual_seed(0)
    model, x = Hiding().double(), torch.randn(2, 7, 5).double()
    plan = net2net.plan_widen(model, x, 1.5)
    student = plan.apply(model)
    assert student.hidden.shape == (12,)
    for inputs in (x, -x, x.abs()):
        assert net2net.verify(model, student, inputs).max_rel < 1e-10
