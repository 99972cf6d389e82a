"""Numbers that modules keep by name, in dicts and in pairs, as layers of einops do."""

import copy
import json

import net2net
import pytest
import torch
from net2net.kept_numbers import kept, put
from torch import Tensor, nn


class Split(nn.Module):
    """[b, t, h d] -> [b, h, t, d], with the number of heads in two places; a copy is made from the first of them."""

    def __init__(self, **lengths: int) -> None:
        super().__init__()
        self.lengths = lengths
        self._pairs = tuple(lengths.items())

    def __getstate__(self) -> dict[str, int]:
        return self.lengths

    def __setstate__(self, lengths: dict[str, int]) -> None:
        self.__init__(**lengths)  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        heads = dict(self._pairs)["h"]
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.split = Split(h=heads, other=7)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        made = (q @ k.transpose(2, 3) * self.scale).softmax(3) @ v
        return self.out(made.transpose(1, 2).flatten(2))


def test_heads_that_a_child_keeps_by_name() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), Attention(12, 3), nn.Linear(12, 2)).double()
    x = torch.randn(2, 4, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    assert [str(c) for c in plan.changes] == ["1.split['h']: 3 -> 6"]
    assert not plan.skipped
    student = plan.apply(model)
    assert student[1].split.lengths == {"h": 6, "other": 7}
    assert model[1].split.lengths == {"h": 3, "other": 7}
    loaded = net2net.GrowthPlan.from_document(json.loads(json.dumps(plan.document())), "plan")
    for each in (student, copy.deepcopy(student), loaded.apply(model), net2net.widen(student, x, 1.5)):
        assert net2net.verify(model, each, x).max_rel < 1e-13


def test_what_is_kept() -> None:
    module = nn.Module()
    module.number, module.listed, module.flag, module.nothing = 3, [1, 2], True, 0
    module.lengths, module.pairs = {"h": 4, "d": "auto", 5: 6}, (("h", 4), ("w", 2))
    module.clash = {"w": 3}
    assert kept(module) == {"number": 3, "listed": [1, 2], "['h']": 4}
    put(module, "['h']", 8)
    assert module.lengths == {"h": 8, "d": "auto", 5: 6}
    assert module.pairs == (("h", 8), ("w", 2))
    put(module, "number", 5)
    assert module.number == 5


def test_a_plan_for_another_architecture_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), Attention(12, 3), nn.Linear(12, 2))
    plan = net2net.plan_widen(model, torch.randn(2, 4, 5), 2)
    other = nn.Sequential(nn.Linear(5, 12), Attention(12, 4), nn.Linear(12, 2))
    with pytest.raises(ValueError, match="another than the plan was made for"):
        plan.apply(other)
