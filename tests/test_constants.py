"""Constants agree with any unit, as long as they are the same everywhere: what is made of zeros and ones may well
differ from head to head."""

import net2net
import pytest
import torch
import torch.nn.functional as F
from test_computed_weights import randomised, same_or_refused
from torch import nn


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


def ones(*shape):
    return torch.ones(*shape, dtype=torch.float64)


def filled():
    made = zeros(4)
    for i in range(4):
        made[i].fill_(i)
    return made


def with_diagonal():
    return zeros(4, 4).fill_diagonal_(1.0)[0]


def written():
    made = zeros(4)
    made[1:] = ones(3)
    return made


def added():
    made = zeros(4)
    made[::2] += 1
    return made


CONSTANTS = {
    "joined": lambda: torch.cat([ones(1), zeros(3)]),
    "flags": lambda: torch.cat([ones(2).bool(), zeros(2).bool()]).double(),
    "stacked": lambda: torch.stack([torch.full((), float(i), dtype=torch.float64) for i in range(4)]),
    "padded": lambda: F.pad(ones(3), (1, 0)),
    "counted": lambda: ones(4).cumsum(0),
    "compared": lambda: (ones(4).cumsum(0) > 2).double(),
    "filled": filled,
    "a diagonal": with_diagonal,
    "written": written,
    "added": added,
    "a triangle": lambda: ones(4, 4).tril()[2],
    "repeated": lambda: torch.cat([ones(1), zeros(1)]).repeat(2),
    "rolled": lambda: torch.cat([ones(1), zeros(3)]).roll(1, 0),
    "a product": lambda: torch.kron(ones(2), torch.stack([ones(), zeros()])),
    "averaged": lambda: F.avg_pool1d(ones(1, 1, 4), 3, 1, 1)[0, 0],
    "convolved": lambda: F.conv1d(ones(1, 1, 4), ones(1, 1, 3), padding=1)[0, 0],
    "resized": lambda: F.interpolate(torch.cat([ones(1, 1, 1), zeros(1, 1, 1)], 2), scale_factor=2)[0, 0],
    "softmax": lambda: ones(4).cumsum(0).softmax(0),
}

#: Of values [b, t, heads, features], and a number for each head.
OPERATIONS = {
    "product": lambda v, c: v * c[:, None],
    "choice": lambda v, c: torch.where(c[:, None] > 0.5, v, 0.5),
    "transposed": lambda v, c: (v.transpose(2, 3) * c).transpose(2, 3),
    "maximum": lambda v, c: torch.maximum(v, c[:, None]),
    "einsum": lambda v, c: torch.einsum("bthd,h->bthd", v, c),
    "filled": lambda v, c: v.masked_fill(c[:, None] > 0.5, 0.3),
    "beside": lambda v, c: torch.cat([v, c[:, None].expand(*v.shape[:3], 1)], -1).cumsum(-1)[..., 1:],
    "flat": lambda v, c: (
        (v.transpose(1, 2).flatten(0, 1) * c.repeat(len(v))[:, None, None]).unflatten(0, (-1, 4)).transpose(1, 2)
    ),
}


class Heads(nn.Module):
    def __init__(self, constant, operation):
        super().__init__()
        self.values, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
        self.functions = [constant, operation]

    def forward(self, x):
        constant, operation = self.functions
        v = self.values(x).view(*x.shape[:2], 4, -1)
        return self.head(operation(v, constant()).flatten(2))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("constant", CONSTANTS)
def test_constants_that_differ_from_head_to_head(constant, operation):
    model, x = randomised(Heads(CONSTANTS[constant], OPERATIONS[operation])), torch.randn(2, 6, 5).double()
    same_or_refused(model, x)
    same_or_refused(model, x, width=2)


@pytest.mark.parametrize("operation", ["product", "choice", "transposed", "filled"])
def test_what_is_the_same_everywhere_agrees_with_any_unit(operation):
    model, x = randomised(Heads(lambda: 2 * ones(4) - zeros(4), OPERATIONS[operation])), torch.randn(2, 6, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    assert not plan.skipped
    assert net2net.verify(model, plan.apply(model), x).max_rel < 1e-13


def written_rows(heads, t):
    made = torch.ones(1, heads, t, t, dtype=torch.float64)
    made[:, :, 0] = 0
    made[:, :, :, 0].fill_(1)
    return made


#: Masks of so many heads and tokens, all the same for each head, though each head has its own place in memory.
MASKS = {
    "repeated": lambda heads, t: torch.tril(ones(t, t)).repeat(1, heads, 1, 1),
    "compared": lambda heads, t: torch.tril(ones(t, t)).expand(1, heads, t, t) > 0,
    "stacked": lambda heads, t: torch.stack([torch.tril(ones(t, t))] * heads),
    "counted": lambda heads, t: ones(1, heads, t, t).cumsum(2) > ones(1, heads, t, t).cumsum(3) - 1,
    "averaged": lambda heads, t: F.avg_pool2d(ones(1, heads, t, t), 3, 1, 1) > 0.5,
    "written": written_rows,
    "a window": lambda heads, t: (torch.arange(t)[:, None] - torch.arange(t)).abs().expand(1, heads, t, t) < 3,
    "numbers": lambda heads, t: torch.tensor([[float(i >= j) for j in range(t)] for i in range(t)]).repeat(heads, 1, 1),
    "interleaved": lambda heads, t: torch.tril(ones(1, t, t)).repeat_interleave(heads, 0),
}

USES = {
    "filled": lambda q, k, v, m: (q @ k.mT).masked_fill(m == 0, -1e9).softmax(-1) @ v,
    "where": lambda q, k, v, m: torch.where(m > 0, q @ k.mT, -1e9).softmax(-1) @ v,
    "product": lambda q, k, v, m: (q @ k.mT * m) @ v,
    "sum": lambda q, k, v, m: (q @ k.mT + (m + 0.5).log()).softmax(-1) @ v,
    "attention": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m > 0),
    "biases": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m.double()),
    "matrix": lambda q, k, v, m: m.double() / m.double().sum(-1, keepdim=True) @ (q + k + v),
}


class Masked(nn.Module):
    """Attention by heads of 4 features, with a mask that is made of what else is given, and of the number of heads."""

    def __init__(self, mask, use):
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(5, 8) for _ in range(3))
        self.head = nn.Linear(8, 3)
        self.functions = [mask, use]

    def forward(self, x, *given):
        mask, use = self.functions
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in self.qkv)
        made = mask(*given, q.shape[1]) if given else mask(q.shape[1], q.shape[2])
        return self.head(use(q, k, v, made).transpose(1, 2).flatten(2))


def heads_grow(model, x, other):
    """Twice the heads, and the same function also of another input."""
    plan = net2net.plan_widen(model, x, 2)
    student = plan.apply(model)
    assert not plan.skipped
    assert all(layer.out_features == 16 for layer in student.qkv)
    assert net2net.verify(model, student, x).max_rel < 1e-13
    model.train(), student.train()
    assert net2net.verify(model, student, other).max_rel < 1e-13


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("mask", MASKS)
def test_masks_that_are_the_same_for_each_head(mask, use):
    heads_grow(randomised(Masked(MASKS[mask], USES[use])), *torch.randn(2, 2, 6, 5).double())


#: Masks that differ from head to head in some of their places, or in another number of heads.
UNEQUAL = {
    "the last": lambda heads, t: torch.cat([ones(heads - 1, t, t).tril(), ones(1, t, t)]),
    "one place": lambda heads, t: ones(heads, t, t).put(torch.tensor([2]), zeros(1)),
    "from two heads on": lambda heads, t: (ones(heads, t, t).cumsum(0) < 2.5).double(),
    "by their number": lambda heads, t: ones(t, t).tril(heads - 2).repeat(heads, 1, 1),
    "scattered": lambda heads, t: zeros(heads, t, t).scatter(2, torch.zeros(heads, t, 1, dtype=torch.long), 1.0),
    "every second": lambda heads, t: ones(heads, t, t).tril() * (torch.arange(heads) % 2)[:, None, None] + 0.1,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("mask", UNEQUAL)
def test_masks_that_differ_from_head_to_head(mask, use):
    model, x = randomised(Masked(UNEQUAL[mask], USES[use])), torch.randn(2, 6, 5).double()
    same_or_refused(model, x)
    same_or_refused(model, x, width=2)


@pytest.mark.parametrize("handed", ["from_numpy", "tolist"])
def test_what_an_input_told_is_no_constant(handed):
    """A mask for each head that an example happens to give alike: another one will not."""

    class ByHeads(Masked):
        def forward(self, x, given):
            told = torch.from_numpy(given.numpy()) if handed == "from_numpy" else torch.tensor(given.tolist())
            self.functions[0] = lambda heads, t: told.double() * 1
            return super().forward(x)

    model = randomised(ByHeads(None, USES["product"]))
    x, same = torch.randn(2, 6, 5).double(), torch.ones(2, 2, 6, 6)
    try:
        plan = net2net.plan_widen(model, (x, same), 2)
    except ValueError:
        return
    student = plan.apply(model)
    other = (x, torch.rand(2, 2, 6, 6))
    assert net2net.verify(model, student, other).max_rel < 1e-13
