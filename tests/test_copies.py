"""Tables (of positions, registers) that are cropped, copied, indexed or repeated before anything meets them."""

import net2net
import pytest
import torch
import torch.nn.functional as F
from test_computed_weights import randomised, same_or_refused
from torch import nn


class Patches(nn.Module):
    """A small vision transformer without attention: tokens of an image, a table of positions, two layers."""

    def __init__(self, add, tables=((1, 64, 8),), buffers=False):
        super().__init__()
        self.embed, self.mix, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 12), nn.Linear(12, 3)
        self.norm = nn.LayerNorm(8)
        for i, shape in enumerate(tables):
            table = torch.randn(shape)
            setattr(self, f"table{i}", nn.Buffer(table) if buffers else nn.Parameter(table))
        self.add = add

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)  # [b, 16, 8]
        x = self.norm(self.add(self, x))
        return self.head(self.mix(x).relu()).mean(1)


def crop(t, h=4, w=4, top=2, left=1):
    """As the diffusion transformers of Stable Diffusion 3 have it."""
    return t.reshape(1, 8, 8, -1)[:, top : top + h, left : left + w].reshape(1, h * w, -1)


def registers(net, x):
    return torch.cat([x, net.table0[:, :5].repeat(x.shape[0], 1, 1)], 1)


GROWS = {
    "cropped": lambda net, x: x + crop(net.table0),
    "cropped to the image": lambda net, x: x + crop(net.table0, top=0, left=0).to(x.dtype),
    "in another dtype": lambda net, x: x + net.table0[:, :16].float().to(x),
    "copied": lambda net, x: x + net.table0[:, :16].clone(),
    "indexed": lambda net, x: x + net.table0[:, torch.arange(16) * 3],
    "repeated": registers,
    "repeated by einops": lambda net, x: torch.cat([x, net.table0[0, :3].expand(len(x), -1, -1).contiguous()], 1),
    "two crops": lambda net, x: (x + crop(net.table0)) * torch.tanh(x + crop(net.table0, top=0)),
    "permuted": lambda net, x: x + crop(net.table0.transpose(1, 2).contiguous().transpose(1, 2)),
    "resized": lambda net, x: x + F.interpolate(
        net.table0.reshape(1, 8, 8, -1).permute(0, 3, 1, 2).contiguous(), (4, 4), mode="bilinear"
    ).flatten(2).transpose(1, 2),
}  # fmt: skip


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("name", GROWS)
def test_tables_grow(name, buffers):
    model, x = randomised(Patches(GROWS[name], buffers=buffers)).eval(), torch.randn(2, 3, 16, 16).double()
    for width in (1.5, 2.6):
        plan = net2net.plan_widen(model, x, width)
        assert not plan.skipped
        student = plan.apply(model)
        assert student.table0.shape[2] == student.embed.out_channels > 8
        tolerance = 1e-6 if "dtype" in name else 1e-13
        for images in (x, torch.randn_like(x)):
            assert net2net.verify(model, student, images).max_rel < tolerance


def cut(net, x):
    t = net.table0[:, :16].clone()
    return x + torch.cat([t[..., 4:], t[..., :4]], -1)


def sides(net, x):
    """Two crops as features side by side, exchanged."""
    a, b = crop(net.table0), crop(net.table0, top=0)
    y = torch.cat([x + a, x + b], -1)
    return y[..., [*range(8, 16), *range(8)]][..., :8] + x


def as_weight(net, x):
    return F.linear(x + net.table0[:, :16].clone(), net.table0[0, :8])


def rows_as_units(net, x):
    return x + F.linear(x, net.table1) * net.table1.clone().sum(0)


def products_of_rows(net, x):
    """The rows of a table as a layer's units, and as what is attended to."""
    units = F.linear(x, net.table1)
    keys = x[:, :, None] * net.table1
    mixed = F.scaled_dot_product_attention(keys, keys, keys)
    return x + mixed.mean(2) + units.mean(-1, keepdim=True)


OTHERS = {
    "cut": (cut, ((1, 64, 8),)),
    "side by side": (sides, ((1, 64, 8),)),
    "as a weight": (as_weight, ((1, 64, 8),)),
    "rows as units": (rows_as_units, ((1, 64, 8), (8, 8))),
    "rows attended to": (products_of_rows, ((1, 64, 8), (6, 8))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_silent_errors(name):
    add, tables = OTHERS[name]
    model, x = randomised(Patches(add, tables)).eval(), torch.randn(2, 3, 16, 16).double()
    for seed in range(3):
        torch.manual_seed(seed)
        same_or_refused(model, x)


class Modulated(nn.Module):
    """A table beside a layer that makes six vectors, block after block, as in diffusion transformers."""

    def __init__(self):
        super().__init__()
        self.embed, self.time = nn.Linear(5, 8), nn.Linear(4, 48)
        self.tables = nn.ParameterList([nn.Parameter(torch.randn(1, 6, 8)) for _ in range(2)])
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.head = nn.Linear(8, 3)

    def forward(self, x, t):
        x, six = self.embed(x), self.time(t).unflatten(1, (6, -1))
        for layer, table in zip(self.layers, self.tables, strict=True):
            a, b, c, d, e, f = (table + six).chunk(6, dim=1)
            x = x + c * layer(F.layer_norm(x, x.shape[-1:]) * (1 + b) + a).relu()
            x = x + f * (x * (1 + e) + d).relu()
        return self.head(x)


def test_the_first_table_of_modulations_grows_like_the_others():
    model, x = randomised(Modulated()), (torch.randn(2, 7, 5).double(), torch.randn(2, 4).double())
    plan = net2net.plan_widen(model, x, 1.5)
    student = plan.apply(model)
    assert not plan.skipped
    assert [t.shape for t in student.tables] == [(1, 6, 16)] * 2
    assert net2net.verify(model, student, x).max_rel < 1e-13
