"""Sizes that code makes of widths: how many places something has, where it is cut, what is written to. None may differ
between teacher and student without being noticed."""

import net2net
import pytest
import torch
import torch.nn.functional as F
from test_computed_weights import randomised, same_or_refused
from torch import nn


class Net(nn.Module):
    """`function(net, h, x)` between a layer of 8 units and the last one."""

    def __init__(self, function, features, **modules):
        super().__init__()
        self.functions = [function]
        self.a, self.o = nn.Linear(features, 8), nn.Linear(8, 3)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.o(self.functions[0](self, self.a(x), x))


def width(h):
    return h.shape[-1]


def chosen(h, where):
    made = h.new_zeros(width(h))
    made[where] = 1.0
    return made


def ones(h):
    return h.new_ones(width(h))


#: Something fixed that is cut by a width; constants as long as a width, of which something is made.
OF_FIXED = {
    "slopes": lambda n, h, x: h * torch.pow(0.5, torch.arange(64.0).double())[: width(h)].mean(),
    "inputs": lambda n, h, x: h * (2 * x)[:, : width(h)].mean(1, keepdim=True),
    "one input": lambda n, h, x: h * (2 * x)[:, width(h)].sin()[:, None],
    "split inputs": lambda n, h, x: h * (2 * x).split(width(h), 1)[0].amax(1, keepdim=True),
    "every few inputs": lambda n, h, x: h * (2 * x)[:, :: width(h)].mean(1, keepdim=True),
    "sorted inputs": lambda n, h, x: h * (2 * x).sort(-1)[0][..., width(h)][:, None],
    "one hot": lambda n, h, x: h * F.one_hot(torch.tensor(2), width(h)).double().mean(),
    "put": lambda n, h, x: h * chosen(h, [0, 3]).mean(),
    "scattered": lambda n, h, x: h * h.new_zeros(width(h)).scatter(0, torch.tensor([1]), 1.0).var(correction=0),
    "filled": lambda n, h, x: h * h.new_zeros(width(h)).index_fill(0, torch.tensor([1, 2]), 1.0).mean(),
    "counted": lambda n, h, x: h / torch.ones_like(h).count_nonzero(1)[:, None],
    "dot": lambda n, h, x: h * torch.dot(ones(h), ones(h)),
    "collected": lambda n, h, x: h * h.new_zeros(1).scatter_add(0, torch.zeros(width(h)).long(), ones(h)),
    "index_add": lambda n, h, x: h * h.new_zeros(2).index_add(0, torch.zeros(width(h)).long(), ones(h))[:1],
    "accumulated": lambda n, h, x: h * h.new_zeros(2).index_put(
        (torch.zeros(width(h)).long(),), ones(h), accumulate=True
    )[:1],
    "spectrum": lambda n, h, x: h * torch.fft.rfft(ones(h)).abs().amax(),
    "loss": lambda n, h, x: h * F.mse_loss(ones(h), 2 * ones(h), reduction="sum"),
    "convolved": lambda n, h, x: h * F.conv1d(ones(h)[None, None], h.new_ones(1, 1, 3)).shape[-1] ** 0.5
    + F.conv1d(ones(h)[None, None], h.new_ones(1, 1, width(h)))[0],
}  # fmt: skip


@pytest.mark.parametrize("name", OF_FIXED)
def test_of_what_is_fixed(name):
    model, x = randomised(Net(OF_FIXED[name], 40)), torch.randn(3, 40).double()
    for wider in (1.5, 2, 2.5):
        same_or_refused(model, x, width=wider)


def shuffled(h):
    b, t, c = h.shape
    return h.reshape(b, c // 4, -1, c).transpose(1, 2).reshape(b, t, c)


def windows(h):
    b, _, c = h.shape
    return h.reshape(b, c // 4, -1, c)


#: Tokens, [b, 24, 8], that are cut, split and moved by a width.
OF_PLACES = {
    "cut": lambda n, h, x: h * h[:, : 2 * width(h)].mean(1, keepdim=True),
    "cut, the largest": lambda n, h, x: h * h.narrow(1, 0, min(24, 2 * width(h))).amax(1, keepdim=True),
    "cut, normalised": lambda n, h, x: h + F.layer_norm(
        h[:, : 2 * width(h)].mT, (min(24, 2 * width(h)),)
    ).amax(2)[:, None],
    "shuffled": lambda n, h, x: h + shuffled(h),
    "windows convolved": lambda n, h, x: n.k(windows(h).permute(0, 3, 1, 2)).flatten(2).mT,
    "windows": lambda n, h, x: h * windows(h).amax(2).mean(1)[:, None],
    "windows turned": lambda n, h, x: h + windows(h).flip(2).reshape(h.shape),
    "windows rolled": lambda n, h, x: h + windows(h).roll(1, 1).reshape(h.shape),
    "window means": lambda n, h, x: (windows(h) - windows(h).mean(2, keepdim=True)).reshape(h.shape),
    "attended to": lambda n, h, x: h + F.scaled_dot_product_attention(
        h[:, None], h[:, None, : 2 * width(h)], h[:, None, : 2 * width(h)]
    )[:, 0],
}  # fmt: skip


@pytest.mark.parametrize("name", OF_PLACES)
def test_of_places(name):
    model = randomised(Net(OF_PLACES[name], 5, k=nn.Conv2d(8, 8, 3, padding=1))).eval()
    x = torch.randn(2, 24, 5).double()
    for wider in (1.5, 2, 2.5):
        same_or_refused(model, x, width=wider)


def without_diagonal(n):
    return n.m.weight.clone().fill_diagonal_(0)


def centred(n):
    w = n.m.weight - n.m.weight.mean(1, keepdim=True)
    w[0] = 0
    return w


def scaled(n):
    w = n.m.weight * 0.7
    w[:, 0] = 0.3
    return w


def table(n):
    t = n.e.weight.clone()
    t[0] = 0
    return t


IDS = torch.tensor([1, 0, 3])

WRITTEN = {
    "no diagonal": lambda n, h, x: F.linear(h.relu(), without_diagonal(n)),
    "centred": lambda n, h, x: F.linear(h.relu(), centred(n)),
    "scaled": lambda n, h, x: F.linear(h.relu(), scaled(n)),
    "all": lambda n, h, x: F.linear(h.relu(), (-n.m.weight).fill_(0.3)),
    "a row of a table": lambda n, h, x: (h + n.e(IDS)) * table(n)[1].mean(),
    "a table": lambda n, h, x: F.embedding(IDS, table(n)) + h,
    "mean": lambda n, h, x: F.linear(h, n.m.weight - n.m.weight.mean(1, keepdim=True).fill_(0.1)),
}


@pytest.mark.parametrize("noise", ["none", "cancelling"])
@pytest.mark.parametrize("name", WRITTEN)
def test_copies_that_are_written_to(name, noise):
    model = randomised(Net(WRITTEN[name], 40, m=nn.Linear(8, 8), e=nn.Embedding(6, 8)))
    x = torch.randn(3, 40).double()
    for wider in (1.5, 2):
        for mapping in ("random", "balanced"):
            same_or_refused(model, x, width=wider, noise=noise, mapping=mapping)


class Codebook(nn.Module):
    """Rows of a table by their number, and all of them, weighted by another layer's units."""

    def __init__(self, soft):
        super().__init__()
        self.v, self.e, self.o = nn.Linear(40, 10), nn.Embedding(10, 6), nn.Linear(6, 3)
        self.soft = [soft]

    def forward(self, x):
        return self.o(self.soft[0](self.v(x).sigmoid(), self.e.weight) + self.e(IDS))


@pytest.mark.parametrize(
    "soft",
    [lambda p, e: p @ e, lambda p, e: F.linear(p, e.t()), lambda p, e: torch.einsum("bk,kd->bd", p, e)],
    ids=["product", "linear", "einsum"],
)
def test_rows_of_an_embedding_are_no_units(soft):
    model, x = randomised(Codebook(soft)), torch.randn(3, 40).double()
    plan = net2net.plan_widen(model, x, 1.5)
    assert [s.layers[0] for s in plan.skipped] == ["v"]
    assert net2net.verify(model, plan.apply(model), x).max_rel < 1e-13
