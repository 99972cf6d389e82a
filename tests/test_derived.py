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


def count(m: Between, y: Tensor) -> Tensor:
    return normed(y) if (y.amax(1) > 9).nonzero().shape[0] == 0 else y


def kinds(m: Between, y: Tensor) -> Tensor:
    return normed(y) if len(torch.unique(y.argmax(1))) > 1 else y


def raised(m: Between, y: Tensor) -> Tensor:
    z = y.mean((2, 3))
    try:
        torch.linalg.cholesky(z.T @ z)
    except torch.linalg.LinAlgError:
        return y
    return normed(y)


def width(m: Between, y: Tensor) -> Tensor:
    z = m.after(y)
    return z / m.before.out_channels if z.abs().max() > 5 else z


def written(m: Between, y: Tensor) -> Tensor:
    seen = torch.zeros(len(y)).to(y)
    torch._foreach_add_([seen], [y.amax((1, 2, 3))])
    return normed(y) if seen.max() > 0.5 else y


def listed(m: Between, y: Tensor) -> Tensor:
    return y * sum(m.before.bias.tolist())


def normed(y: Tensor) -> Tensor:
    return y / (1 + y.sum(1, keepdim=True).abs())


READ = [branch, bound, shift, loop, same, numpy, cut, count, kinds, raised, width, written, listed]


def test_checks_for_numbers_that_are_none(x: Tensor) -> None:
    def checked(_m: Between, y: Tensor) -> Tensor:
        if torch.isnan(y).any() or not y.isfinite().all() or torch.isinf(y).any():
            raise ValueError
        return y

    model = model_of(checked)
    plan = net2net.plan_widen(model, x, 1.5)
    assert len(plan.widened) == 2
    assert net2net.verify(model, plan.apply(model), x).max_rel < 1e-10


@pytest.mark.parametrize("what", READ)
def test_what_python_has_read_cannot_be_followed(what: Callable[[Between, Tensor], Tensor], x: Tensor) -> None:
    model = model_of(what)
    with pytest.raises(ValueError, match="nothing was widened"):
        net2net.plan_widen(model, x, 1.5)


def test_what_comes_before_grows() -> None:
    """What is in memory when values are read, all that comes later, and what the code at hand can reach may be treated
    differently for them; not what is behind them."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.other = nn.Linear(6, 7), nn.Linear(7, 6)

        def forward(self, y: Tensor) -> Tensor:
            return self.other(F.relu(self.inner(y))) if y.mean() > 0 else y

    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())
    model, x = nn.Sequential(body, Gated(), nn.Linear(6, 3)).double(), torch.randn(4, 5).double()
    plan = net2net.plan_widen(model, x, 2.0)
    assert [w.layers for w in plan.widened] == [["0.0"]]
    assert net2net.verify(model, plan.apply(model), x).max_rel < 1e-10


# What depends on the inputs alone is seen as the example has it; what a width tells is not what it was.
FOLLOWED: dict[str, tuple[Callable[[Between, Tensor, Tensor], Tensor], bool]] = {
    "product_of_inputs": (lambda m, y, x: normed(y) if (x.flatten(1) @ x.flatten(1).T).mean() > 0.1 else y, False),
    "filtered_inputs": (lambda m, y, x: normed(y) if F.conv2d(x, x[:1]).abs().max() > 1 else y, False),
    "index": (lambda m, y, x: y[:, :, [y.shape[1] % 5]], False),
    "index_select": (lambda m, y, x: y.index_select(2, torch.tensor([y.shape[1] % 5])), False),
    "linspace": (lambda m, y, x: y[:, :, torch.linspace(0, 7, y.shape[1] // 3).long()], False),
    "windows": (lambda m, y, x: y.unfold(2, y.shape[1] // 4, 1).amax(-1), False),
    "fixed_index": (lambda m, y, x: y[:, :, [4, 2]], True),
    "fixed_windows": (lambda m, y, x: y.unfold(2, 3, 1).amax(-1), True),
    "score": (lambda m, y, x: put(y, lambda z, mask: z[mask].exp()), True),
    "validated": (lambda m, y, x: y + torch.distributions.Normal(y, 1.0).mean, True),
    "one_hot_by_name": (
        lambda m, y, x: y + F.one_hot(input=y.amax(1).long().clamp(0, 2), num_classes=3).to(y).mean(-1)[:, None],
        True,
    ),
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_what_depends_on_inputs_and_widths(case: str, x: Tensor) -> None:
    what, grows = FOLLOWED[case]
    model = model_of(lambda m, y: what(m, y, x))
    plan = net2net.plan_widen(model, x, 1.5)
    student = plan.apply(model)
    assert net2net.verify(model, student, x).max_rel < 1e-10
    assert student.after.weight.shape[0] > CHANNELS
    assert (student.before.weight.shape[0] > CHANNELS) == grows


def pruned(m: Between, y: Tensor) -> Tensor:
    """As many tokens of each image as others."""
    z = places(y).flatten(1, 2)
    kept = torch.zeros(z.shape[:2], dtype=torch.bool).scatter(1, z.amax(-1).topk(16).indices, True)
    return z[kept].view(len(y), 16, -1).mT[..., None]


def active(m: Between, y: Tensor) -> Tensor:
    """A loop that goes on while there is something to do."""
    z = places(y).flatten(0, 2)
    left = torch.arange(len(z))
    while left.numel():
        z[left] = z[left] * 0.5
        left = left[z[left].mean(-1).abs() > 0.1]
    return z.view(*y.shape[:1], *y.shape[2:], -1).permute(0, 3, 1, 2)


def test_where_a_whole_selection_does_not_do(x: Tensor) -> None:
    model = model_of(pruned)
    student = net2net.plan_widen(model, x, 1.5).apply(model)
    for inputs in (x, 2 * x.flip(0)):
        assert net2net.verify(model, student, inputs).max_rel < 1e-10
    with pytest.raises(ValueError, match=r"reads values of activations \(a size\)"):
        net2net.plan_widen(model_of(active), x, 1.5)


def test_a_mask_by_a_score(x: Tensor) -> None:
    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.score, self.b = nn.Linear(5, 8), nn.Linear(8, 1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x))
            y[self.score(y)[..., 0] > 0] *= 2
            return self.b(y)

    torch.manual_seed(0)
    model, tokens = Scored().double(), torch.randn(4, 6, 5).double()
    plan = net2net.plan_widen(model, tokens, 1.5)
    assert [w.layers for w in plan.widened] == [["a"]]
    for inputs in (tokens, -tokens):
        assert net2net.verify(model, plan.apply(model), inputs).max_rel < 1e-10


def test_state_in_a_dict_in_a_dict() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.state: dict[str, dict[str, Tensor]] = {}

        def forward(self, x: Tensor) -> Tensor:
            y, kept = F.relu(self.a(x)), self.state.setdefault("inner", {})
            if "z" in kept:
                y = y + kept["z"]
            kept["z"] = z = self.b(y)
            return self.c(z)

    torch.manual_seed(0)
    with pytest.raises(ValueError, match="keeps them as an attribute"):
        net2net.plan_widen(Remembering().double(), torch.randn(4, 5).double(), 1.5)


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
