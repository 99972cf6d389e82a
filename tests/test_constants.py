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
