"""Modules that keep what they have computed in a dict, for the next run."""

from pathlib import Path

import net2net
import pytest
import torch
from net2net.caches import Place, find
from torch import Tensor, nn

EXACT = 1e-10


class Biased(nn.Module):
    """Attention as LeViT has it: heads before q, k and v, and biases looked up once for every device."""

    def __init__(self, dim: int, heads: int, key: int, value: int) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.val_dim, self.val_attn_dim = heads, key, value, heads * value
        self.qkv, self.proj = nn.Linear(dim, heads * (2 * key + value)), nn.Linear(heads * value, dim)
        self.biases = nn.Parameter(torch.randn(heads, 9))
        self.register_buffer("places", torch.randint(9, (9, 9)), persistent=False)
        self.tables: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "Biased":
        if mode:
            self.tables = {}
        return super().train(mode)

    def table(self, device: torch.device) -> Tensor:
        if self.training:
            return self.biases[:, self.places]
        if str(device) not in self.tables:
            self.tables[str(device)] = self.biases[:, self.places]
        return self.tables[str(device)]

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).view(b, n, self.num_heads, -1)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.val_dim], dim=3)
        scores = q.permute(0, 2, 1, 3) @ k.permute(0, 2, 3, 1) * self.key_dim**-0.5 + self.table(x.device)
        mixed = scores.softmax(-1) @ v.permute(0, 2, 1, 3)
        return x + self.proj(mixed.transpose(1, 2).reshape(b, n, self.val_attn_dim))


def network(ran_before: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    blocks = [Biased(12, 2, 4, 6), nn.Hardswish(), Biased(12, 4, 4, 6)]
    model = nn.Sequential(nn.Linear(5, 12), *blocks, nn.Linear(12, 3)).double().eval()
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    if ran_before:
        with torch.no_grad():
            model(x)
    return model, x


@pytest.mark.parametrize("ran_before", [False, True])
def test_a_student_fills_its_own(ran_before: bool, tmp_path: Path) -> None:
    model, x = network(ran_before)
    plan = net2net.plan_widen(model, x, 1.5)
    assert not plan.skipped
    assert [str(place) for place in plan.caches] == ["1.tables", "3.tables"]
    plan.save(tmp_path / "plan.json")
    for each in (plan, net2net.GrowthPlan.load(tmp_path / "plan.json")):
        student = each.apply(model)
        assert not student[1].tables
        assert bool(model[1].tables) == ran_before
        for training in (False, True):
            assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT
        assert student.eval()[1].table(x.device).shape[0] == 4
        model.eval()
        if ran_before:
            model(x)


def test_what_is_given_away_in_a_dict_is_an_output() -> None:
    class Giving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
            self.features: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            self.features["a"] = self.a(x)
            return self.b(self.features["a"].relu())

    model, x = Giving().double(), torch.randn(2, 5, dtype=torch.float64)
    assert find(model, x) == []
    with pytest.raises(ValueError, match="a module keeps them as an attribute"):
        net2net.widen(model, x, 2)


def test_what_a_forward_needs_is_not_taken_away() -> None:
    class Needing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
            self.constants = {"half": torch.tensor(0.5, dtype=torch.float64)}

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu() * self.constants["half"])

    model, x = Needing().double(), torch.randn(2, 5, dtype=torch.float64)
    assert find(model, x) == []
    student = net2net.widen(model, x, 2)
    assert student.constants["half"] == 0.5


def test_a_file_cannot_name_what_is_no_cache(tmp_path: Path) -> None:
    model, x = network(False)
    plan = net2net.plan_widen(model, x, 2)
    for name in ("_parameters", "biases", "nothing"):
        plan.caches = [Place("1", name)]
        plan.save(tmp_path / "plan.json")
        with pytest.raises(ValueError, match=rf"no dict 1\.{name}, which this plan empties"):
            net2net.GrowthPlan.load(tmp_path / "plan.json").apply(model)
    assert model[1].biases is not None
