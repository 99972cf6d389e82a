"""Masks that come with an input, and of which a forward makes copies for each head."""

import net2net
import pytest
import torch
from test_computed_weights import randomised, same_or_refused
from test_constants import Masked, heads_grow
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attention


def expanded(m, heads):
    """[batch, t] -> [batch, heads, t, t]"""
    return m[:, None, None].expand(-1, heads, m.shape[1], -1)


def eye(m):
    return torch.eye(m.shape[1]).bool()


#: Of a mask [batch, t] of the tokens that count, one for each head: [batch, heads, t, t] or [batch * heads, t, t].
COPIES = {
    "expanded": expanded,
    "compared": lambda m, heads: expanded(m, heads) == 1,
    "inverted twice": lambda m, heads: ~(~expanded(m, heads).contiguous()),
    "repeated": lambda m, heads: m[:, None, None].repeat(1, heads, m.shape[1], 1),
    "interleaved": lambda m, heads: m.repeat_interleave(heads, 0)[:, None].expand(-1, m.shape[1], -1),
    "flattened": lambda m, heads: expanded(m, heads).flatten(0, 1),
    "flattened, and compared": lambda m, heads: expanded(m, heads).reshape(-1, m.shape[1], m.shape[1]).double() > 0.5,
    "of pairs": lambda m, heads: (m[:, :, None] & m[:, None, :])[:, None].repeat(1, heads, 1, 1) | eye(m),
    "and causal": lambda m, heads: expanded(m, heads) & eye(m).cumsum(1).bool().T,
    "causal, flat": lambda m, heads: expanded(m, heads).flatten(0, 1) & eye(m).cumsum(1).bool().T,
    "stacked": lambda m, heads: torch.stack([m[:, None].expand(-1, m.shape[1], -1)] * heads, 1),
    "cumulated": lambda m, heads: expanded(m.cumsum(1) > 1, heads).clone(),
}  # fmt: skip


def of_pairs(q, k, m, fill):
    scores = q @ k.mT
    return fill(scores if m.dim() == 4 else scores.flatten(0, 1), m).view_as(scores).softmax(-1)


USES = {
    "filled": lambda q, k, v, m: of_pairs(q, k, m, lambda s, m: s.masked_fill(~m, -1e9)) @ v,
    "where": lambda q, k, v, m: of_pairs(q, k, m, lambda s, m: torch.where(m, s, -1e9)) @ v,
    "sum": lambda q, k, v, m: of_pairs(q, k, m, lambda s, m: s + (m.double() + 1e-9).log()) @ v,
    "product": lambda q, k, v, m: of_pairs(q, k, m, lambda s, m: s * m) @ v,
    "attention": lambda q, k, v, m: attention(q, k, v, attn_mask=m.view(*q.shape[:2], *m.shape[-2:])),
}


def batch(size=3):
    tokens = torch.rand(size, 6) > 0.4
    tokens[:, :2] = True
    return torch.randn(size, 6, 5).double(), tokens


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("mask", COPIES)
def test_one_mask_for_all_heads(mask, use):
    heads_grow(randomised(Masked(COPIES[mask], USES[use])), batch(), batch(2))


def but_one(m, heads):
    made = expanded(m, heads).clone()
    made[:, 0] |= True
    return made


def every_second(m, heads):
    made = expanded(m, heads).contiguous()
    made[:, ::2].logical_or_(torch.ones(m.shape[1], m.shape[1]).bool())
    return made


def by_rank(m, heads):
    return expanded(m, heads).clone() | (torch.arange(heads) >= 1)[:, None, None]


def mixed(m, heads):
    alike = m[:, None].expand(-1, m.shape[1], -1)
    return torch.stack([alike] * (heads - 1) + [alike | True], 1)


def swapped(m, heads):
    """Head by head another sample's mask."""
    return m.repeat(heads, 1)[:, None].expand(-1, m.shape[1], -1).clone()


def of_half(m, heads):
    return torch.cat([expanded(m, heads // 2) == 1, expanded(~m, heads - heads // 2) == 1], 1)


UNEQUAL = [but_one, every_second, by_rank, mixed, swapped, of_half]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("mask", UNEQUAL)
def test_masks_that_differ_from_head_to_head(mask, use):
    model, x = randomised(Masked(mask, USES[use])), batch()
    x[1][:, 0] = True
    same_or_refused(model, x)
    same_or_refused(model, x, width=2)


@pytest.mark.parametrize("several", ["repeat", "cat"])
def test_heads_first(several):
    """[heads * batch, t, t], as in many a transformer of old."""

    class Old(Masked):
        def forward(self, x, tokens):
            n, t, _ = x.shape
            flat = [layer(x).view(n, t, -1, 4).permute(2, 0, 1, 3) for layer in self.qkv]
            heads = len(flat[0])
            q, k, v = (f.reshape(-1, t, 4) for f in flat)
            mask = tokens[:, None].expand(-1, t, -1)
            mask = mask.repeat(heads, 1, 1) if several == "repeat" else torch.cat([mask] * heads)
            y = (q @ k.mT / 2).masked_fill(~mask, -1e9).softmax(-1) @ v
            return self.head(y.view(heads, n, t, 4).permute(1, 2, 0, 3).flatten(2))

    model = randomised(Old(None, None))
    plan = net2net.plan_widen(model, batch(), 2)
    assert not plan.skipped
    assert net2net.verify(model, plan.apply(model), batch(2)).max_rel < 1e-13


@pytest.mark.parametrize("given", ["same", "other"])
def test_a_mask_that_is_given_for_each_head(given):
    model = randomised(Masked(lambda m, heads: m & (m == 1), USES["filled"]))
    x = torch.randn(3, 6, 5).double()
    mask = torch.ones(3, 2, 6, 6).bool() if given == "same" else torch.rand(3, 2, 6, 6) > 0.3
    same_or_refused(model, (x, mask), width=2)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_torch_encoder_with_a_padding_mask(norm_first, causal):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True, norm_first=norm_first)
            self.embed, self.head = nn.Linear(5, 16), nn.Linear(16, 3)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x, tokens):
            mask = torch.ones(x.shape[1], x.shape[1]).triu(1).bool() if causal else None
            return self.head(self.layers(self.embed(x), mask=mask, src_key_padding_mask=~tokens))

    model, x = randomised(Encoder()), batch()
    plan = net2net.plan_widen(model, x, 2)
    student = plan.apply(model)
    assert not plan.skipped
    assert student.embed.out_features == 32
    for mode in (False, True):
        model.train(mode), student.train(mode)
        assert net2net.verify(model, student, batch()).max_rel < 1e-13


class Weighed(nn.Module):
    """Channels times what is made of the inputs for each of them."""

    def __init__(self, make):
        super().__init__()
        self.layer, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        self.pair = nn.Parameter(torch.randn(2))
        self.make = [make]

    def forward(self, x, *given):
        y = self.layer(x)
        return self.head(y * self.make[0](self, y, *given))


def written_by_weights(net, y, g):
    m = g[:, :, None].repeat(1, 1, y.shape[-1])
    m.mul_(net.pair.cumsum(0).repeat(y.shape[-1] // 2))
    return m


def through_a_view(net, y, g):
    m = g[:, :, None].repeat(1, 1, y.shape[-1])
    m.view(-1).mul_(net.pair.cumsum(0).repeat(m.numel() // 2))
    return m


def through_numpy(net, y, g):
    m = g[:, :, None].repeat(1, 1, y.shape[-1])
    m.numpy()[..., y.shape[-1] - 1] = 3.0
    return m


def ones_through_numpy(net, y, g):
    m = torch.ones(y.shape[-1]).double()
    m.numpy()[y.shape[-1] - 1] = 3.0
    return m


def windows(net, y, g):
    return g[:, :, None].expand(-1, -1, y.shape[-1]).unfold(1, 1, 1)[..., 0]


@pytest.mark.parametrize("make", [written_by_weights, through_a_view, through_numpy, ones_through_numpy, windows])
def test_writes_are_noticed(make):
    model, x = randomised(Weighed(make)), (torch.randn(2, 6, 5).double(), torch.rand(2, 6).double())
    same_or_refused(model, x, width=2)


def chained(y, p, g):
    m = g.repeat(1, y.shape[1], y.shape[2] // 2)
    for _ in range(13):
        m = m & p[:, :, None].expand(-1, -1, y.shape[2])
    return m


def test_labels_of_many_operations():
    """They are numbered anew, and never out of bounds."""
    model = randomised(Weighed(lambda net, y, p, g: chained(y, p, g)))
    x = torch.randn(4, 8, 5).double(), torch.rand(4, 8) > 0.1, torch.rand(4, 1, 2) > 0.5
    same_or_refused(model, x, width=2)


def by_item(net, y, g):
    return torch.tensor([g[i].item() for i in range(y.shape[-1])]).double()


def by_length(net, y, g):
    m = torch.zeros(y.shape[-1], 6).double()
    for i in range(len(m)):
        m[i, : int(g[i % 2])] = 1
    return m.T


def by_branch(net, y, g):
    m = torch.ones(y.shape[-1]).double()
    for i in range(len(m)):
        if g[i] > 0.9:
            m[i] = 0
    return m


def by_places(net, y, g):
    return (torch.arange(y.shape[2]) < y.shape[1]).double()


def by_a_clipped_slice(net, y, g):
    m = torch.zeros(y.shape[1], y.shape[2]).double()
    m[:, : y.shape[1]] = 1
    return m


@pytest.mark.parametrize("make", [by_item, by_length, by_branch, by_places, by_a_clipped_slice])
def test_what_is_alike_for_one_example_alone(make):
    """Another input of the same kind would tell channels apart."""
    model = randomised(Weighed(make))
    first = torch.randn(2, 9 if make is by_places else 6, 5).double(), torch.full((8,), 4.0).double()
    others = [
        (torch.randn_like(first[0]), torch.rand(8).double() * 6),
        *([] if make is by_length else [(torch.randn(2, 3, 5).double(), torch.rand(8).double())]),
    ]
    try:
        plan = net2net.plan_widen(model, first, 2)
    except ValueError:
        return
    student = plan.apply(model)
    for x in (first, *others):
        assert net2net.verify(model, student, x).max_rel < 1e-13


def every_third(w):
    w.view(-1)[::3] = 0.25


def of_each_four(w):
    w.view(-1, 4)[:, 0] = 0


def rows_flat(w):
    w.view(w.shape[0], -1)[:, : w.shape[2]] = 0.2


FLAT = {
    "every third": every_third,
    "of each four": of_each_four,
    "flat rows": rows_flat,
    "flipped": lambda w: w.view(-1, 4).flip(1).view(w.shape),
    "cumulated": lambda w: w.view(-1, 4).cumsum(1).view(w.shape),
    "repeated": lambda w: w * torch.arange(4.0).repeat(w.numel() // 4).view(w.shape),
}


@pytest.mark.parametrize("change", FLAT.values(), ids=FLAT)
def test_flat_views_whose_period_is_the_length_for_one_example_alone(change):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 2, 1)

        def forward(self, x, m):
            y = self.inner(x)
            w = m[:, None].repeat(1, y.shape[1], 1)
            w = w if (made := change(w)) is None else made
            return self.outer(y * w)

    model = randomised(Net())
    try:
        plan = net2net.plan_widen(model, (torch.randn(2, 3, 4).double(), torch.rand(2, 4).double()), 2)
    except ValueError:
        return
    student = plan.apply(model)
    for n, t in ((2, 4), (2, 6), (4, 3), (4, 5)):
        x = torch.randn(n, 3, t).double(), torch.rand(n, t).double()
        assert net2net.verify(model, student, x).max_rel < 1e-13
