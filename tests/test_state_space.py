"""State space models: tables of [channels, states] that are kept as logarithms, and what each channel does with each of
a few states."""

from collections.abc import Callable

import net2net
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXACT = 1e-10


class Scan(nn.Module):
    """The selective scan of Mamba (Gu & Dao, 2023), step by step."""

    def __init__(self, decay: Callable[[Tensor], Tensor], channels: int = 16, states: int = 4) -> None:
        super().__init__()
        self.decay = [decay]
        self.into, self.out = nn.Linear(8, 2 * channels), nn.Linear(channels, 8)
        self.mix = nn.Conv1d(channels, channels, 3, padding=2, groups=channels)
        self.table, self.skip = nn.Parameter(torch.rand(channels, states)), nn.Parameter(torch.rand(channels))
        self.step, self.select = nn.Linear(channels, channels), nn.Linear(channels, 2 * states)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.into(x).chunk(2, -1)
        x = F.silu(self.mix(x.mT)[..., : x.shape[1]].mT)
        step, (write, read) = F.softplus(self.step(x)), self.select(x).chunk(2, -1)
        table = self.decay[0](self.table)
        state, made = x.new_zeros(len(x), *table.shape), []
        for t in range(x.shape[1]):
            kept = torch.exp(step[:, t, :, None] * table) * state
            state = kept + step[:, t, :, None] * write[:, t, None] * x[:, t, :, None]
            made.append((state * read[:, t, None]).sum(-1))
        return self.out((torch.stack(made, 1) + x * self.skip) * F.silu(gate))


def network(decay: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), Scan(decay), nn.Linear(8, 3)).double()
    model[1].weight.data.uniform_(0.5, 2)
    return model, torch.randn(2, 6, 5).double()


@pytest.mark.parametrize(
    "decay",
    [
        lambda a: -torch.exp(a),
        lambda a: -torch.exp(a.float()).to(a.dtype),
        lambda a: -(F.softplus(a) + 1),
        lambda a: -2 * a.sigmoid() ** 2,
    ],
)
def test_channels_grow_and_states_stay(decay: Callable[[Tensor], Tensor]) -> None:
    model, x = network(decay)
    plan = net2net.plan_widen(model, x, 1.5)
    assert [s.layers for s in plan.skipped] == [["2.select"]]
    student = plan.apply(model)
    assert student[2].table.shape == (24, 4)
    assert student[0].out_features == 16  # a layer norm weighs all units alike
    for training in (False, True):
        assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT


@pytest.mark.parametrize(
    "decay",
    [
        lambda a: -torch.exp(a) / len(a),
        lambda a: -torch.exp(a.log() * (len(a) / 16)),
        lambda a: -torch.exp(a) + a,
        lambda a: -torch.exp(a.flip(0)),
        lambda a: -torch.exp(a - a.mean()),
        lambda a: -torch.exp(a).softmax(0),
    ],
)
def test_other_functions_of_the_table(decay: Callable[[Tensor], Tensor]) -> None:
    model, x = network(decay)
    student = net2net.plan_widen(model, x, 1.5).apply(model)
    assert student[2].table.shape == (16, 4)
    assert net2net.verify(model.eval(), student.eval(), x).max_rel < EXACT


def test_functions_of_one_table_are_told_apart() -> None:
    """They stand side by side: nothing else tells which position of a layer meets which."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.after = nn.Parameter(torch.rand(4, 8)), nn.Linear(16, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = x[:, None]
            return self.after(torch.cat([x * self.table.exp(), x * self.table.sigmoid()], -1)).sum(1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), Both(), nn.Linear(6, 3)).double()
    x = torch.randn(4, 5).double()
    student = net2net.plan_widen(model, x, 1.5).apply(model)
    assert student[1].table.shape == (4, 12)
    assert net2net.verify(model.eval(), student.eval(), x).max_rel < EXACT
