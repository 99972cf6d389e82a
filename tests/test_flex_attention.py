"""FlexAttention, which is given code of the user's own."""

import net2net
import pytest
import torch
from test_computed_weights import randomised, same_or_refused
from torch import nn
from torch.nn.attention import flex_attention as flex

pytestmark = pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")


class Flexible(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.embed, self.qkv, self.out = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.inner, self.outer, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.slopes, self.gate, self.gated = nn.Parameter(torch.randn(2)), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.embed(x)
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, -1, 4).permute(2, 0, 3, 1, 4)
        gates = self.gate(x)
        scores = {
            "slopes": lambda score, b, h, i, j: score - (i - j).abs() * self.slopes[h],
            "by number": lambda score, b, h, i, j: score - (i - j).abs() * (h + 1),
            "gates": lambda score, b, h, i, j: score + gates[b, i, h] - gates[b, j, h + 4],
        }.get(self.kind)
        mask = None
        if self.kind == "causal":
            mask = flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, t, t, device="cpu")
        y = flex.flex_attention(q, k, v, score_mod=scores, block_mask=mask)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, -1))
        return self.head(x + self.outer(self.inner(x).relu())) + self.gated(gates.relu())


@pytest.mark.parametrize("width", [1.5, 2])
@pytest.mark.parametrize("kind", ["plain", "causal", "slopes", "by number", "gates"])
def test_heads_stay_and_the_rest_grows(kind, width):
    model, x = randomised(Flexible(kind)).eval(), torch.randn(2, 6, 5).double()
    plan = net2net.plan_widen(model, x, width, seed=3)
    student = plan.apply(model)
    assert student.embed.out_features == 8 * width
    assert student.inner.out_features == 12 * width
    assert student.qkv.out_features == 24
    assert (student.gate.out_features == 6) == (kind == "gates")
    assert any("FlexAttention" in s.reason for s in plan.skipped)
    assert net2net.verify(model, student, torch.randn(3, 6, 5).double()).max_rel < 1e-13


class Numbered(nn.Module):
    """What is given to attention depends on the width of another layer, which would change with it."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.q, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
        self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        n, t, _ = x.shape
        q = self.q(x).view(n, t, 4, 2).transpose(1, 2)
        inner = self.inner(x).tanh()
        width, weight, ones = inner.shape[-1], self.inner.weight, torch.ones(inner.shape[-1])
        scores = {
            "its number": lambda score, b, h, i, j: score * width**-0.5,
            "a weight's": lambda score, b, h, i, j: score * weight.shape[0] ** -0.5,
            "a module's": lambda score, b, h, i, j: score * self.inner.out_features**-0.5,
            "a tensor of so many": lambda score, b, h, i, j: score + ones.sum() * (i - j),
            "a branch": lambda score, b, h, i, j: score * 2 if width > 4 else score,
        }.get(self.kind)
        mask = None
        if self.kind == "a mask":
            near = lambda b, h, i, j: (i - j).abs() * 2 < width - 1  # noqa: E731
            mask = flex.create_block_mask(near, None, None, t, t, device="cpu")
        scale = width**-0.5 if self.kind == "the scale" else None
        y = flex.flex_attention(q, q, q, score_mod=scores, block_mask=mask, scale=scale)
        return self.outer(inner) + self.out(y.transpose(1, 2).reshape(n, t, -1))


@pytest.mark.parametrize(
    "kind", ["its number", "a weight's", "a module's", "a tensor of so many", "a branch", "a mask", "the scale"]
)
def test_widths_of_other_layers_that_its_code_looks_at(kind):
    model, x = randomised(Numbered(kind)).eval(), torch.randn(2, 6, 5).double()
    same_or_refused(model, x, 2)
