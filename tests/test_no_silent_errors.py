"""What is easily mistaken for something else: each of these must be widened exactly or left alone, never wrongly."""

from collections.abc import Callable

import net2net
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXACT = 1e-10


class Between(nn.Module):
    """A function of the units of `a`, and what it may need."""

    def __init__(self, function: Callable[["Between", Tensor], Tensor], features: int = 8) -> None:
        super().__init__()
        self.function = [function]  # not a method: it is part of the code
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 8)
        self.scalar, self.other = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(2.0))
        self.table, self.words = nn.Parameter(torch.randn(64, 8)), nn.Embedding(64, 8)
        self.head = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function[0](self, self.a(x)))


def width(y: Tensor) -> int:
    return y.shape[-1]


def seeded(y: Tensor) -> Tensor:
    torch.manual_seed(width(y))
    return torch.rand(1, dtype=y.dtype)


VECTORS: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "a seed": lambda m, y: y * seeded(y),
    "a generator's seed": lambda m, y: y * torch.rand(1, generator=torch.Generator().manual_seed(width(y))),
    "complex numbers": lambda m, y: m.b(y) * torch.view_as_complex(y.view(len(y), -1, 2)).abs().mean(1, True),
    "bits": lambda m, y: m.b(y) * ((y.view(torch.int64) & 1).double().mean(1, keepdim=True) + 1),
    "scalar parameter": lambda m, y: y * (m.scalar * width(y) ** -0.5),
    "scalar's value": lambda m, y: y * (m.scalar.item() * width(y)),
    "mean of all": lambda m, y: y * (y.mean() * width(y)),
    "two scalars": lambda m, y: m.b(y) * torch.cat([y * m.scalar, y * m.other], 1)[:, 8:].mean(1, keepdim=True),
    "literal": lambda m, y: y * torch.tensor([width(y) ** -0.5]).to(y),
    "numpy": lambda m, y: y * torch.from_numpy(np.full((1, 1), width(y) ** -0.5)),
    "sum of ones": lambda m, y: y / torch.ones_like(y).sum(1, keepdim=True),
    "norm of ones": lambda m, y: y * torch.ones_like(y).norm(dim=1, keepdim=True),
    "softmax of zeros": lambda m, y: y * torch.zeros_like(y).softmax(1),
    "product of ones": lambda m, y: y * (torch.ones(1, width(y)).to(y) @ torch.ones(width(y), 1).to(y)).rsqrt(),
    "expanded": lambda m, y: m.b(y) * y.mean(1, keepdim=True).expand_as(y).sum(1, keepdim=True),
    "counted": lambda m, y: y * torch.ones_like(y).cumsum(1),
    "padded": lambda m, y: y * F.pad(torch.ones(1, width(y) - 2).to(y), (1, 1)),
    "triangle": lambda m, y: y * torch.ones(width(y), width(y)).to(y).tril()[1],
    "pooled ones": lambda m, y: y * F.avg_pool1d(torch.ones(1, 1, width(y)).to(y), 3, 1, 1)[0],
    "rows of a table": lambda m, y: y + m.table[width(y) : width(y) + len(y)],
    "word of a width": lambda m, y: y + m.words(torch.tensor([width(y)])),
    "stacked, sliced": lambda m, y: m.b(y) * torch.stack([y, y * m.b(y)], 1).flatten(1)[:, 8:].mean(1, keepdim=True),
    "index of units": lambda m, y: m.b(y) + m.words((y.abs() * 2).long().clamp(0, 3)).mean(1),
    "table by units": lambda m, y: m.b(y) + m.table[(y.abs() * 2).long().clamp(0, 3)].mean(1),
    "weight's values": lambda m, y: m.b(y) * m.head.weight[0],
    "seeded numbers": lambda m, y: y * torch.randn(width(y), generator=torch.Generator().manual_seed(0)).to(y),
    "first few": lambda m, y: m.b(y) * y[:, :4].amax(1, keepdim=True),
    "masked": lambda m, y: m.b(y) * y[y > 0].sum(),
    "gain or bias": lambda m, y: F.layer_norm(y, [width(y)], *(m.b.bias, None)[:: 1 if width(y) == 8 else -1]),
    "gain or bias of a batch": lambda m, y: F.batch_norm(
        y, None, None, *(m.b.bias, None)[:: 1 if width(y) == 8 else -1], training=True
    ),
    "mean or bias": lambda m, y: (
        lambda w, p: F.batch_norm(y, w if width(y) == 8 else p, w.exp().detach(), w, p if width(y) == 8 else w)
    )(m.b.bias, m.b.bias.roll(width(y) // 2)),
}

TOKENS: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "steps of a width": lambda m, y: y * torch.arange(0, 6 * width(y), width(y))[:, None],
    "token by width": lambda m, y: y[:, width(y) // 8],
    "number of tokens by width": lambda m, y: y[:, : width(y) // 4].mean(1),
    "shift by width": lambda m, y: y * 2 + y.roll(width(y) // 8, 1) * (torch.arange(6)[:, None] > 2),
    "token of flattened": lambda m, y: m.b(y[:, 0]) * y.flatten(1)[:, 8:16].mean(1, keepdim=True),
}

#: Rows of a parameter, of which a width tells which.
ROWS: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "one": lambda m, y: m.table[width(y)],
    "several": lambda m, y: m.table[width(y) :][:6],
    "steps": lambda m, y: m.table[:: width(y) // 2][:6],
    "a view": lambda m, y: m.table[: width(y)].view(2, -1, width(y))[1, :1],
    "windows": lambda m, y: m.table.unfold(0, 6, width(y))[1].t(),
    "strides": lambda m, y: m.table.as_strided((6, width(y)), (width(y), 1), width(y) ** 2),
    "a chunk": lambda m, y: m.table.chunk(4)[width(y) // 4 - 1][:6],
    "of a copy": lambda m, y: m.table.clone()[width(y)],
    "a copy of some": lambda m, y: m.table[width(y) :].clone()[0],
    "a copy of a copy": lambda m, y: m.table[width(y) :].clone()[:6].clone(),
    "in another dtype": lambda m, y: m.table.float()[width(y) :][:6].double(),
    "repeated": lambda m, y: m.table[width(y)].repeat(6, 1),
    "looked up": lambda m, y: F.embedding(torch.arange(6) + width(y), m.table),
    # Taken before anything is known of the first.
    "two": lambda m, y: (lambda p, q: p + y * 0 + q)(m.table[0], m.table[width(y)]),
    "two of an embedding": lambda m, y: (lambda p, q: p * y + q)(m.words.weight[0], m.words.weight[width(y)]),
    "two crops": lambda m, y: (lambda p, q: p * y + q)(m.table[:6], m.table[width(y) : width(y) + 6]),
    "gain and bias": lambda m, y: F.layer_norm(y, y.shape[-1:], m.table[0], m.table[width(y)]),
}


def check(model: nn.Module, x: Tensor) -> None:
    for factor in (1.5, 2):
        try:
            student = net2net.plan_widen(model, x, factor, seed=1).apply(model)
        except ValueError as refused:
            assert "nothing was widened" in str(refused)  # noqa: PT017 -- either is right
            continue
        for training in (False, True):
            assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT


@pytest.mark.parametrize("kind", VECTORS)
def test_vectors(kind: str) -> None:
    torch.manual_seed(0)
    check(Between(VECTORS[kind]).double().eval(), torch.randn(4, 5).double())


@pytest.mark.parametrize("kind", TOKENS)
def test_tokens(kind: str) -> None:
    torch.manual_seed(0)
    check(Between(TOKENS[kind]).double().eval(), torch.randn(2, 6, 5).double())


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("trains", [True, False])
def test_rows_of_a_parameter(kind: str, trains: bool) -> None:
    """That the same is seen again in train mode must not be needed to see it."""

    def added(m: Between, y: Tensor) -> Tensor:
        if m.training and not trains:
            raise RuntimeError("not for training")
        return m.b(y) + ROWS[kind](m, y)

    torch.manual_seed(0)
    model, x = Between(added).double().eval(), torch.randn(2, 6, 5).double()
    for factor in (1.5, 2):
        try:
            student = net2net.plan_widen(model, x, factor, seed=1).apply(model)
        except ValueError:
            continue
        assert net2net.verify(model, student, x).max_rel < EXACT


@pytest.mark.parametrize(
    "rows",
    [
        lambda m, y: m.table[:6],
        lambda m, y: m.table[2:32:5],
        lambda m, y: m.table.view(8, 8, -1)[1, :6],
        lambda m, y: m.table[3].expand(6, -1),
        lambda m, y: m.table[2:].clone()[:6],
    ],
)
def test_rows_that_no_width_tells(rows: Callable[[Between, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Between(lambda m, y: m.b(y) + rows(m, y)).double().eval()
    x = torch.randn(2, 6, 5).double()
    plan = net2net.plan_widen(model, x, 1.5)
    student = plan.apply(model)
    assert student.table.shape == (64, 12)
    assert net2net.verify(model, student, x).max_rel < EXACT


@pytest.mark.parametrize("steps", [8, 1])
def test_rolled_places(steps: int) -> None:
    torch.manual_seed(0)
    model = Between(lambda m, y: torch.stack([y, y * m.b(y)], 1).flatten(1).roll(steps, 1), 16)
    check(model.double().eval(), torch.randn(4, 5).double())


def test_a_number_that_is_returned() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            y = self.a(x)
            return self.head(y), y.shape[1]

    with pytest.raises(ValueError, match="nothing was widened"):
        net2net.plan_widen(Two(), torch.randn(2, 5), 2)


def test_an_index_that_is_data() -> None:
    """Which units are taken is not known from one example."""

    class Gather(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            y = self.a(x)
            return self.head(self.b(y) * y.gather(1, index).mean(1, keepdim=True))

    torch.manual_seed(0)
    model, x = Gather().double().eval(), torch.randn(4, 5).double()
    student = net2net.plan_widen(model, (x, torch.tensor([[0, 1]] * 4)), 2).apply(model)
    other = torch.tensor([[5, 2], [7, 3], [1, 6], [4, 4]])
    assert net2net.verify(model, student, (x, other)).max_rel < EXACT


def test_a_split_weight_that_is_used_as_a_value() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(5, 1), nn.Linear(1, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x)) * self.b.weight[:, 0])

    torch.manual_seed(0)
    check(One().double().eval(), torch.randn(4, 5).double())


def test_a_head_that_another_input_leaves_by() -> None:
    class EarlyExit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.early, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            early = self.early(y).log_softmax(1)
            return early if not self.training and x.abs().max() < 1 else self.head(self.b(y).relu())

    torch.manual_seed(0)
    model, x = EarlyExit().double().eval(), 4 * torch.randn(4, 5).double()
    plan = net2net.plan_widen(model, x, 1.5)
    assert [(s.layers, s.reason) for s in plan.skipped] == [(["early"], "nothing that was run reads what early makes")]
    student = plan.apply(model)
    for other in (x, x / x.abs().max() / 2):
        assert net2net.verify(model, student, other).max_rel < EXACT


def test_one_attribute_for_heads_and_tokens() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = 2
            self.a, self.qkv, self.head = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            b, n, _ = x.shape
            q, k, v = self.qkv(self.a(x)).view(b, n, 3, self.k, 4).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.head(y[:, : self.k].mean(1))

    torch.manual_seed(0)
    check(Both().double().eval(), torch.randn(2, 6, 5).double())


def test_rotary_embedding_by_complex_numbers() -> None:
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def turned(self, q: Tensor) -> Tensor:
            angle = torch.outer(torch.arange(q.shape[1]).double(), torch.tensor([1.0, 0.1]).double())
            pairs = torch.view_as_complex(q.reshape(*q.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            q, k, v = (f(y).view(*y.shape[:2], -1, 4) for f in (self.q, self.k, self.v))
            q, k, v = (t.transpose(1, 2) for t in (self.turned(q), self.turned(k), v))
            w = (q @ k.transpose(2, 3)).softmax(-1)
            return self.head(y + self.o((w @ v).transpose(1, 2).flatten(2)))

    torch.manual_seed(0)
    check(Rotary().double().eval(), torch.randn(2, 6, 5).double())


#: Two functions of the same units each: what a rule knows of one must not be what it knows of the other.
PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "clamp": (lambda y: y.clamp(min=0), lambda y: y.clamp(max=0)),
    "power": (lambda y: y.abs() ** 2.0, lambda y: 2.0 ** y.abs()),
    "remainder": (lambda y: torch.remainder(y, 1.5), lambda y: torch.remainder(1.5, y)),
    "dtype": (lambda y: y.long().to(y), lambda y: y.float().to(y)),
    "norms": (lambda y: y.norm(p=1, dim=(2, 3)), lambda y: y.norm(p=2, dim=(2, 3))),
    "sums": (lambda y: y.sum(2).amax(2), lambda y: y.sum(3).amax(2)),
    "softmax": (lambda y: y.softmax(2), lambda y: y.softmax(3)),
    "places": (lambda y: y[:, :, 0, 1], lambda y: y[:, :, 1, 0]),
    "rows": (lambda y: y.unbind(2)[0].amax(2), lambda y: y.unbind(2)[1].amax(2)),
    "slices": (lambda y: y[:, :, :2], lambda y: y[:, :, :, :2]),
    "products": (lambda y: y @ y.mT, lambda y: y.mT @ y),
    "images": (lambda y: y[:1].expand_as(y), lambda y: y[1:2].expand_as(y)),
}


class SideBySide(nn.Module):
    """Features of an image, four in a row: which of a unit's two functions comes first in a column depends on the
    width."""

    def __init__(self, *functions: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.functions = [*functions]
        self.a, self.head = nn.Conv2d(3, 6, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        parts = [f(y) for f in self.functions]
        y = torch.cat([p.amax((2, 3)) if p.dim() == 4 else p for p in parts], 1)
        return self.head(y.view(len(y), -1, 4).transpose(1, 2).flatten(1))


@pytest.mark.parametrize("pair", PAIRS)
def test_two_functions_side_by_side(pair: str) -> None:
    torch.manual_seed(0)
    check(SideBySide(*PAIRS[pair]).double().eval(), torch.randn(3, 3, 5, 5).double())


#: What cuts or moves the places of a flattened image by their number.
FLATTENED: dict[str, Callable[[Tensor], Tensor]] = {
    "split": lambda y: y.flatten(1).view(len(y), -1, 4).transpose(1, 2).flatten(1),
    "capsules": lambda y: F.normalize(y.view(len(y), -1, 8), dim=2).flatten(1),
    "roll": lambda y: y.flatten(1).roll(5, 1),
    "roll of all": lambda y: y.roll(5).flatten(1),
    "unbind": lambda y: torch.stack([*y.flatten(1).unbind(1)[5:], *y.flatten(1).unbind(1)[:5]], 1),
    "images as channels": lambda y: F.pixel_shuffle(y.view(1, -1, 3, 3), 2).expand(2, -1, -1, -1).flatten(1),
    "another shape": lambda y: y.view(len(y), 3, 3, -1).permute(0, 3, 1, 2).flatten(1),
    "another order": lambda y: y.permute(0, 2, 3, 1).reshape(len(y), -1, 3, 3).flatten(1),
    "space to depth": lambda y: F.pixel_unshuffle(F.pad(y, (0, 1, 0, 1)), 2).flatten(1),
}


@pytest.mark.parametrize("kind", FLATTENED)
def test_flattened_images(kind: str) -> None:
    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3)
            self.head = nn.Linear(FLATTENED[kind](torch.randn(2, 8, 3, 3)).shape[1], 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(FLATTENED[kind](self.a(x)))

    torch.manual_seed(0)
    check(Flattened().double().eval(), torch.randn(2, 3, 5, 5).double())


def test_depth_to_space_by_hand_is_followed() -> None:
    """Views that merge places, each with part of the units, cut none of them."""

    class Upsampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            b, _, h, w = y.shape
            return self.head(y.view(b, 2, 2, -1, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, -1, 2 * h, 2 * w))

    torch.manual_seed(0)
    model, x = Upsampling().double().eval(), torch.randn(2, 3, 5, 5).double()
    student = net2net.plan_widen(model, x, 2).apply(model)
    assert student.a.out_channels == 16
    check(model, x)


class Cropping(nn.Module):
    """A language model's attention: a crop to a length, which happens to be the width, and a stride as many as the
    heads."""

    def __init__(self) -> None:
        super().__init__()
        self.n_embd, self.n_head, self.block_size, self.stride = 16, 4, 16, 4
        self.embed, self.qkv, self.head = nn.Linear(5, 16), nn.Linear(16, 48), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, -self.block_size :]
        b, n, _ = x.shape
        q, k, v = self.qkv(self.embed(x)).view(b, n, 3, self.n_head, self.n_embd // self.n_head).permute(2, 0, 3, 1, 4)
        y = (q @ k.mT * 0.5).softmax(-1) @ v
        return self.head(y.transpose(1, 2).reshape(b, n, self.n_embd))


@pytest.mark.parametrize("length", [10, 16])
def test_numbers_that_only_look_like_a_width_stay(length: int) -> None:
    torch.manual_seed(0)
    model = Cropping().double().eval()
    plan = net2net.plan_widen(model, torch.randn(2, length, 5).double(), 2)
    assert sorted(c.name for c in plan.changes) == ["n_embd", "n_head"]
    student = plan.apply(model)
    for n in (7, 16, 40):
        assert net2net.verify(model, student, torch.randn(2, n, 5).double()).max_rel < EXACT


class Tied(nn.Module):
    """A table that is the matrix of the output layer too, and a function of what flows into that."""

    def __init__(self, function: Callable[["Tied", Tensor], Tensor | tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.function = [function]
        self.table, self.norm, self.hidden = nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 10)
        self.back, self.gain = nn.Linear(10, 6), nn.Parameter(torch.randn(6))
        for p in self.norm.parameters():
            nn.init.normal_(p)

    def head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.table.weight)

    def forward(self, index: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.table(index)
        return self.function[0](self, x + self.back(self.hidden(x).relu()))


#: What flows into the output layer, or its gain, is seen by something else too; or the gain is not what it depends on
#: linearly. So there is no place for the shares of the replicas.
ELSEWHERE: dict[str, Callable[[Tied, Tensor], Tensor | tuple[Tensor, Tensor]]] = {
    "no norm": lambda m, x: m.head(x),
    "twice": lambda m, x: m.head(m.norm(x)) + m.head(m.norm(x * 2)),
    "another layer": lambda m, x: m.head(y := m.norm(x)) + m.back(m.hidden(y).relu()).mean(-1, True),
    "in place": lambda m, x: m.head(m.norm(x).relu_()),
    "not linear": lambda m, x: m.head(F.gelu(m.norm(x))),
    "a bias alone": lambda m, x: m.head(F.layer_norm(x, (6,), None, m.norm.bias)),
    "a shifted gain": lambda m, x: m.head(F.layer_norm(x, (6,)) * (1 + m.gain)),
    "its gain is an output": lambda m, x: (m.head(m.norm(x)), m.norm.weight * 2),
    "a mean of it": lambda m, x: m.head(y := m.norm(x)) * y.mean(-1, keepdim=True),
    "residual": lambda m, x: m.head(m.norm(x) + x),
    "its size": lambda m, x: m.head(y := m.norm(x)) / y.norm(),
    "the sum of gains": lambda m, x: m.head(m.norm(x)) * m.norm.weight.sum(),
    "train mode": lambda m, x: m.head(m.norm(x)) + (m.hidden(m.norm(x)).mean() if m.training else 0),
    "through a view": lambda m, x: m.head((y := m.norm(x)).flatten(0, 1)) * y[0, 0, 0],
    "gains of several": lambda m, x: m.head(m.norm(x)) + m.hidden(m.gain * m.norm.bias).mean(),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_tied_table_whose_shares_have_no_place(case: str) -> None:
    torch.manual_seed(0)
    model, index = Tied(ELSEWHERE[case]).double().eval(), torch.randint(9, (2, 5))
    plan = net2net.plan_widen(model, index, 1.5, noise="none")
    student = plan.apply(model)
    assert student.table.embedding_dim == 6
    assert net2net.verify(model, student, index).max_rel < EXACT
    assert net2net.verify(model.train(), student.train(), index).max_rel < EXACT


def test_a_tied_table_whose_shares_are_the_norms() -> None:
    torch.manual_seed(0)
    model, index = Tied(lambda m, x: m.head(m.norm(x))).double(), torch.randint(9, (2, 5))
    student = net2net.widen(model, index, 1.5)
    assert student.table.embedding_dim == 12
    assert torch.equal(student.table.weight[:, :6], model.table.weight)  # as an embedding it is copied as it is
    named = net2net.widen(model, index, {"table": 18})  # by the width that the table has, not its number of words
    assert named.table.weight.shape == (9, 18)
    assert (student.norm.weight[:6] / model.norm.weight).allclose(torch.tensor(0.5).double())


class Sampling(nn.Module):
    """A variational autoencoder, which draws its latent variables, one for each unit of `mean` and `log_var`."""

    def __init__(self, draw: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = [draw]
        self.encoder, self.mean, self.log_var = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(8, 6)
        self.decoder, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x).relu()
        z = self.draw[0](self.mean(y), self.log_var(y).mul(0.5).exp())
        return self.head(self.decoder(z).relu())


@pytest.mark.parametrize(
    "draw",
    [
        lambda m, s: m + s * torch.randn_like(m),
        lambda m, s: m + s * torch.randn(m.shape, dtype=m.dtype),
        lambda m, s: m + s * torch.empty_like(m).normal_(),
        lambda m, s: m + s * -torch.log(torch.rand_like(m)),
        lambda m, s: torch.normal(m, s),
        lambda m, s: torch.distributions.Normal(m, s).rsample(),
        lambda m, s: torch.bernoulli((m * s).sigmoid()),
        lambda m, s: F.dropout(m * s, 0.5, training=True),
        lambda m, s: torch.native_dropout(m * s, 0.5, True)[0],
        lambda m, s: F.alpha_dropout(m * s, 0.5, training=True),
    ],
    ids=[
        "randn_like",
        "randn",
        "normal_",
        "rand_like",
        "normal",
        "rsample",
        "bernoulli",
        "dropout in eval mode",
        "native dropout",
        "alpha dropout",
    ],
)
def test_what_is_drawn_for_each_unit_is_drawn_as_often(draw: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Sampling(draw).double().eval(), torch.randn(4, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    assert sorted(layer for w in plan.widened for layer in w.layers) == ["decoder", "encoder"]
    student = plan.apply(model)
    for training in (False, True):
        assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT


def test_dropout_and_noise_that_units_share_pin_nothing() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.strength = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3), nn.Parameter(torch.randn(6, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = F.dropout2d(F.dropout(self.a(x), 0.1, self.training), 0.1, self.training)
            y = y * torch.bernoulli(torch.full_like(x[:, :1, :1, :1], 0.9))
            return self.b(y + self.strength * torch.randn(len(y), 1, *y.shape[2:], dtype=y.dtype))

    torch.manual_seed(0)
    model, x = Noisy().double().eval(), torch.randn(2, 3, 8, 8).double()
    plan = net2net.plan_widen(model, x, 2)
    assert [w.layers for w in plan.widened] == [["a"]]
    assert net2net.verify(model, plan.apply(model), x).max_rel < EXACT


class PerHead(nn.Module):
    """Values in heads, and something without units that is another one for each head."""

    def __init__(self, combine: Callable[..., Tensor]) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(5, 8), nn.Linear(8, 2)
        self.table = nn.Parameter(torch.rand(4, 6, 6))
        self.combine = combine

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        v = self.value(x).view(*x.shape[:2], 4, -1).transpose(1, 2)
        made = self.combine(v, given, self.table)
        return self.out(made.transpose(1, 2).flatten(2))


def by_index(v: Tensor, p: Tensor, _table: Tensor) -> Tensor:
    return v.gather(2, (p[..., :1] > 0).long().expand_as(v))


def by_grid(v: Tensor, p: Tensor, _table: Tensor) -> Tensor:
    images, grids = v.transpose(2, 3).flatten(0, 1).unflatten(2, (2, 3)), p[..., :2].reshape(-1, 2, 3, 2)
    return F.grid_sample(images, grids, align_corners=False).flatten(2).transpose(1, 2).view(v.shape)


def written(v: Tensor, p: Tensor, _table: Tensor) -> Tensor:
    v = v.clone()
    v[..., 0] = p[..., 0]
    return v.cumsum(-1)


PER_HEAD: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "weights": lambda v, p, _t: p @ v,
    "without a rule": lambda v, p, _t: torch.fft.fft(p).real @ v,
    "a table": lambda v, _p, t: t @ v,
    "batched": lambda v, p, _t: torch.bmm(p.flatten(0, 1), v.flatten(0, 1)).view(v.shape),
    "einsum": lambda v, p, _t: torch.einsum("bhts,bhse->bhte", p, v),
    "added to a product": lambda v, p, _t: torch.baddbmm(
        p.flatten(0, 1)[:, :, :1], torch.ones_like(p).flatten(0, 1), v.flatten(0, 1)
    ).view(v.shape),
    "factors": lambda v, p, _t: v * p[..., :1],
    "terms": lambda v, p, _t: v + p[..., :1],
    "a choice": lambda v, p, _t: torch.where(p[..., :1] > 0, v, 0.0),
    "a mask": lambda v, p, _t: v.masked_fill(p[..., :1] > 0, 0.0),
    "a mask in place": lambda v, p, _t: (v * 1).masked_fill_(p[..., :1] > 0, 0.0),
    "an index": by_index,
    "places": lambda v, p, _t: torch.take_along_dim(v, (p[..., :1] > 0).long(), 2),
    "attention": lambda v, p, _t: nn.functional.scaled_dot_product_attention(p[..., :3], p[..., 3:6], v),
    "an attention mask": lambda v, p, _t: nn.functional.scaled_dot_product_attention(
        torch.ones_like(v), torch.ones_like(v), v, attn_mask=p
    ),
    "a grid": by_grid,
    "written": written,
    "beside": lambda v, p, _t: torch.cat([v, p[..., :1]], -1).cumsum(-1)[..., 1:],
}


@pytest.mark.parametrize("name", PER_HEAD)
@pytest.mark.parametrize("width", [1.5, 2])
def test_what_differs_from_head_to_head_keeps_units_in_their_heads(name: str, width: float) -> None:
    torch.manual_seed(0)
    model = PerHead(PER_HEAD[name]).double()
    x = torch.randn(2, 6, 5).double(), torch.randn(2, 4, 6, 6).double()
    try:
        student = net2net.plan_widen(model, x, width).apply(model)
    except ValueError:
        return
    assert net2net.verify(model, student, x).max_rel < 1e-12
