"""Recurrent cells written by hand: their state begins as zeros, of a width that some attribute tells."""

import net2net
import pytest
import torch
from test_computed_weights import randomised
from torch import nn


class LSTMCell(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.width = width
        self.given, self.kept = nn.Linear(inputs, 4 * width), nn.Linear(width, 4 * width, bias=False)

    def forward(self, x, state):
        hidden, cell = state
        i, f, g, o = (self.given(x) + self.kept(hidden)).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell


class LSTM(nn.Module):
    """The network begins the state, by what its cell knows."""

    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(5, 7), LSTMCell(7, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = cell = x.new_zeros(x.shape[0], self.cell.width)
        for t in range(x.shape[1]):
            hidden, cell = self.cell(self.embed(x[:, t]), (hidden, cell))
        return self.head(hidden)


class GRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_size = 8
        self.given, self.kept, self.head = nn.Linear(5, 24), nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        hidden = torch.zeros(x.shape[0], self.hidden_size, dtype=x.dtype)
        for t in range(x.shape[1]):
            (ar, az, an), (br, bz, bn) = self.given(x[:, t]).chunk(3, -1), self.kept(hidden).chunk(3, -1)
            update = (az + bz).sigmoid()
            hidden = (1 - update) * (an + (ar + br).sigmoid() * bn).tanh() + update * hidden
        return self.head(hidden)


class Elman(nn.Module):
    """One layer for input and state, side by side."""

    def __init__(self):
        super().__init__()
        self.hidden_size = 8
        self.to_hidden, self.to_output = nn.Linear(13, 8), nn.Linear(13, 3)

    def forward(self, x):
        hidden = torch.zeros(x.shape[0], self.hidden_size, dtype=x.dtype)
        for t in range(x.shape[1]):
            both = torch.cat((x[:, t], hidden), 1)
            hidden, y = self.to_hidden(both).tanh(), self.to_output(both)
        return y


class ConvCell(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.hidden_dim = width
        self.conv = nn.Conv2d(inputs + width, 4 * width, 3, padding=1)

    def begin(self, x):
        zeros = torch.zeros(x.shape[0], self.hidden_dim, *x.shape[-2:], dtype=x.dtype)
        return zeros, zeros.clone()

    def forward(self, x, state):
        hidden, cell = state
        i, f, o, g = self.conv(torch.cat([x, hidden], 1)).split(self.hidden_dim, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell


class ConvLSTM(nn.Module):
    """Cells in a list, each of which begins its own state."""

    def __init__(self, widths):
        super().__init__()
        self.cells = nn.ModuleList(ConvCell(i, o) for i, o in zip((3, *widths), widths, strict=False))
        self.head = nn.Conv2d(widths[-1], 2, 1)

    def forward(self, x):
        images = x.view(*x.shape[:2], 3, 4, 4).unbind(1)
        for cell in self.cells:
            state, made = cell.begin(images[0]), []
            for image in images:
                state = cell(image, state)
                made.append(state[0])
            images = made
        return self.head(images[-1])


NETS = {
    "LSTM": (LSTM, 5),
    "GRU": (GRU, 5),
    "Elman": (Elman, 5),
    "ConvLSTM": (lambda: ConvLSTM([4]), 48),
    "ConvLSTM of equal layers": (lambda: ConvLSTM([4, 4]), 48),
    "ConvLSTM of three": (lambda: ConvLSTM([4, 6, 4]), 48),
}


@pytest.mark.parametrize("width", [1.5, 2])
@pytest.mark.parametrize("name", NETS)
def test_they_grow(name, width):
    make, features = NETS[name]
    model, x = randomised(make()), torch.randn(2, 3, features).double()
    plan = net2net.plan_widen(model, x, width)
    student = plan.apply(model)
    assert not plan.skipped
    for mode in (False, True):
        model.train(mode), student.train(mode)
        for steps in (1, 3, 7):
            assert net2net.verify(model, student, torch.randn(4, steps, features).double()).max_rel < 1e-12


@pytest.mark.parametrize("name", NETS)
def test_gradients(name):
    """A weight's replicas have its gradient together (DESIGN.md 2.2, without shares that differ)."""
    make, features = NETS[name]
    model, x = randomised(make()), torch.randn(2, 4, features).double()
    plan = net2net.plan_widen(model, x, 2, noise="none")
    student = plan.apply(model)
    model(x).square().sum().backward()
    student(x).square().sum().backward()
    for (key, p), (_, q) in zip(model.named_parameters(), student.named_parameters(), strict=True):
        index = [torch.as_tensor(plan.axes[key, d].index) if (key, d) in plan.axes else None for d in range(p.dim())]
        total = q.grad
        for d, i in enumerate(index):
            if i is not None and not plan.axes[key, d].split:
                total = torch.zeros(*total.shape[:d], p.shape[d], *total.shape[d + 1 :]).double().index_add(d, i, total)
            elif i is not None:  # each replica of what is summed over meets the same values
                first = torch.tensor([(i == n).nonzero()[0, 0] for n in range(p.shape[d])])
                total = total.index_select(d, first)
        torch.testing.assert_close(total, p.grad, rtol=1e-9, atol=1e-11)


def test_a_width_that_code_has_written_down_stays():
    class Written(GRU):
        def forward(self, x):
            hidden = torch.zeros(x.shape[0], 8, dtype=x.dtype)
            for t in range(x.shape[1]):
                hidden = (self.given(x[:, t])[:, :8] + self.kept(hidden)[:, :8]).tanh()
            return self.head(hidden)

    with pytest.raises(ValueError, match="nothing was widened"):
        net2net.plan_widen(randomised(Written()), torch.randn(2, 3, 5).double(), 2)
