"""FlexAttention, which is given code of the user's own."""

import net2net
import pytest
import torch
from test_computed_weights import randomised
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
