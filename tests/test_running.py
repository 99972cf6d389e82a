"""How a forward is run while it is looked at: without most values, and with the same random numbers each time."""

import random
from pathlib import Path

import net2net
import numpy as np
import pytest
import torch
from net2net.running import of_no_value
from torch import Tensor, nn
from zoo import NETWORKS

EXACT = 1e-10


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_does_not_depend_on_which_values_are_computed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of large tensors only the shapes are worked out."""
    model, x = NETWORKS[name].build()
    net2net.plan_widen(model, x, 1.5).save(tmp_path / "computed")
    monkeypatch.setattr("net2net.running._LARGE", 1)
    net2net.plan_widen(model, x, 1.5).save(tmp_path / "shapes")
    assert (tmp_path / "shapes").read_bytes() == (tmp_path / "computed").read_bytes()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_tensor_that_is_large_in_the_student_alone(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.Flatten()
    model, x = nn.Sequential(*layers, nn.LazyLinear(3)).double(), torch.randn(2, 3, 6, 6).double()
    model(x)
    monkeypatch.setattr("net2net.running._LARGE", 2 * 8 * 16 + 1)
    assert not net2net.plan_widen(model.train(mode == "train"), x, 1.5).skipped


@pytest.mark.parametrize("large", [1, 2**20])
def test_what_a_normalisation_returns_beside_its_output(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics of one channel are those of that channel, wherever it stands."""

    class Averages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x, mean, _ = torch.native_batch_norm(self.stem(x), None, None, None, None, True, 0.1, 1e-5)
            return self.head((x + mean[-1]).amax((2, 3)))

    monkeypatch.setattr("net2net.running._LARGE", large)
    torch.manual_seed(0)
    model, x = Averages().double().eval(), torch.randn(2, 3, 4, 4).double()
    student = net2net.plan_widen(model, x, 2).apply(model)
    assert student.stem.out_channels > 8
    assert net2net.verify(model, student, x).max_rel < EXACT


def test_shapes_alone_are_asked_for_once_but_for_each_kind_of_number() -> None:
    whole, add = torch.ones(2, 3, dtype=torch.int64), torch.ops.aten.add.Tensor
    assert of_no_value(add, (whole, 1), {}).dtype == torch.int64
    zeros = of_no_value(add, (whole, 1.0), {})
    assert (zeros.dtype, zeros.shape) == (torch.float32, (2, 3))
    cat, two = torch.ops.aten.cat.default, [torch.ones(2, 3), torch.ones(2, 5)]
    assert of_no_value(cat, (two, 1), {}).shape == (2, 8)
    written = torch.ones(2, 3)
    assert of_no_value(torch.ops.aten.add_.Tensor, (written, 1), {}) is written
    with pytest.raises(RuntimeError):
        of_no_value(torch.ops.aten.add_.Tensor, (written, torch.ones(5)), {})


def test_an_operation_that_answers_yes_or_no() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.head(y * 2 if torch.equal(torch.arange(2), torch.tensor([0, 1])) else y)

    torch.manual_seed(0)
    model, x = Asking().double().eval(), torch.randn(4, 5).double()
    assert net2net.widen(model, x, 1.5).a.out_features == 9


def test_views_of_nothing() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.head(self.a(x))
            kept = y[torch.zeros(len(y), dtype=torch.bool)]
            return y, (kept[:, :2].t() * 2).reshape(2, -1).sum(1)

    torch.manual_seed(0)
    model, x = Empty().double().eval(), torch.randn(4, 5).double()
    assert net2net.widen(model, x, 1.5).a.out_features == 9


def test_what_a_first_run_leaves_behind_is_no_obstacle() -> None:
    class Anchors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
            self.anchors = [torch.ones(1)]

        def forward(self, x: Tensor) -> Tensor:
            self.anchors = [anchor.to(x.dtype) for anchor in self.anchors]
            return self.head(self.a(x)) * self.anchors[0]

    torch.manual_seed(0)
    model, x = Anchors().double().eval(), torch.randn(4, 5).double()
    student = net2net.widen(model, x, 1.5)
    assert student.a.out_features == 12


class Chancy(nn.Module):
    """In training it leaves out layers and masks features, by numbers drawn in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
        self.first, self.head, self.mask = nn.Linear(5, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.training:
            y = y.clone()
            y[torch.from_numpy(np.random.rand(*x.shape[:-1]) < 0.5)] = self.mask  # noqa: NPY002
        for layer in self.layers:
            y = nn.functional.dropout(y, 0.1, self.training)
            if self.training and (torch.rand(()) < 0.5 or random.random() < 0.2):
                continue
            y = y + layer(y).relu()
        return self.head(y)


def test_what_code_draws_is_the_same_for_teacher_and_student(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Chancy().double(), torch.randn(4, 6, 5).double()
    for _ in range(5):
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        with monkeypatch.context() as patched:
            # It seeds every device, also those whose state is not put back.
            patched.setattr(torch, "manual_seed", lambda seed: pytest.fail("torch.manual_seed was called"))
            plan = net2net.plan_widen(model, x, 2)
        assert not plan.skipped
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
        random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
    assert net2net.verify(model.eval(), plan.apply(model), x).max_rel < EXACT
