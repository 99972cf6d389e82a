"""Remapping inference: what larger networks are made of is widened whole, exactly, or left alone with a reason."""

import copy
import math

import net2net
import numpy as np
import pytest
import torch
from net2net.groups import infer
from net2net.layout import ranks
from net2net.units import DisjointSets
from torch import Tensor, nn
from zoo import NETWORKS, Network

EXACT = 1e-10


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


@pytest.mark.parametrize("factor", [1.5, pytest.param(2, marks=pytest.mark.slow), 3])
def test_function_stays(network: Network, factor: float) -> None:
    model, x = network.build()
    plan = net2net.plan_widen(model, x, factor, seed=1)
    student = plan.apply(model)
    for training in (False, True):
        assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT
    assert [s.layers[0] for s in plan.skipped] == list(network.skipped)


def test_what_was_decided_stands(network: Network) -> None:
    """Students decide in the light of all that is joined; a teacher must have decided in the same way."""
    assert infer(*network.build()).settled()


def test_twice_in_a_row(network: Network) -> None:
    model, x = network.build()
    student = net2net.widen(net2net.widen(model, x, 2), x, 1.5, seed=5)
    assert net2net.verify(model, student, x).max_rel < EXACT


def test_state_dict_and_file(network: Network, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, x = network.build()
    plan = net2net.plan_widen(model, x, 2)
    plan.save(tmp_path / "plan.json")
    again = net2net.GrowthPlan.load(tmp_path / "plan.json")
    one, other = plan.apply(model), again.apply(model)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert torch.equal(one(x), other(x))
    grown = plan.grow_state_dict(model.state_dict())
    assert {k: v.shape for k, v in grown.items()} == {k: v.shape for k, v in one.state_dict().items()}
    other.load_state_dict(grown)


def test_gradients_follow_the_law(network: Network) -> None:
    """The student's gradient is the teacher's, gathered, times the share of the output's replica (DESIGN 2.2): what
    momentum becomes under the plan is what the student's own gradients are."""
    model, x = network.build()
    plan = net2net.plan_widen(model, x, 2, noise="none")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    model(x).square().mean().backward()
    optimizer.step()
    student = plan.apply(model)
    student.zero_grad()
    grown = plan.grow_optimizer(optimizer, student)
    student(x).square().mean().backward()
    for name, p in student.named_parameters():
        if p.grad is None:
            continue
        expected = grown.state[p]["momentum_buffer"]
        assert (p.grad - expected).abs().max() <= 1e-8 * expected.abs().max() + 1e-14, name


@pytest.mark.parametrize(
    ("noise", "split"),
    [
        ("none", "uniform"),
        ("cancelling", "dyadic"),
        pytest.param("none", "dyadic", marks=pytest.mark.slow),
        pytest.param("cancelling", "uniform", marks=pytest.mark.slow),  # the default: see test_function_stays
    ],
)
def test_splits_and_noise(network: Network, split: str, noise: str) -> None:
    model, x = network.build()
    student = net2net.plan_widen(model, x, 2.5, split=split, noise=noise, seed=3).apply(model)
    assert net2net.verify(model, student, x).max_rel < EXACT


def test_groups_of_a_convolution_and_of_a_norm_are_replicated_as_a_whole() -> None:
    model, x = NETWORKS["grouped"].build()
    student = net2net.widen(model, x, 2)
    assert (student.cardinal.groups, student.cardinal.in_channels, student.cardinal.out_channels) == (8, 24, 48)
    assert student.norm.num_groups == 6
    assert (student.up.in_channels, student.up.out_channels) == (32, 16)


def test_a_rule_of_ones_own() -> None:
    torch.library.define("net2net_tests::twice", "(Tensor x) -> Tensor")
    torch.library.impl("net2net_tests::twice", "cpu", lambda x: x + x)

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.ops.net2net_tests.twice(self.a(x)))

    model, x = Custom().double().eval(), torch.randn(3, 4).double()
    with pytest.raises(ValueError, match=r"no rule for net2net_tests\.twice"):
        net2net.plan_widen(model, x, 2)
    net2net.rules.register("net2net_tests::twice")(net2net.rules.elementwise.pointwise)
    student = net2net.widen(model, x, 2)
    assert student.a.out_features == 12


def test_students_can_be_copied_and_compiled_and_exported() -> None:
    model, x = NETWORKS["vision_transformer"].build()
    student = net2net.widen(model, x, 2)
    assert torch.equal(copy.deepcopy(student)(x), student(x))
    exported = torch.export.export(student, (x,)).module()
    assert torch.allclose(exported(x), student(x))


# -- the parts --------------------------------------------------------------------------------------------------------


def test_disjoint_sets() -> None:
    sets = DisjointSets(6)
    sets.join(np.array([0, 2, 3]), np.array([1, 3, 4]))
    assert sets.roots(np.arange(6)).tolist() == [0, 0, 2, 2, 2, 5]
    first = sets.add(2000)
    assert (first, len(sets)) == (6, 2006)
    sets.join(np.arange(6, 2005), np.arange(7, 2006))
    assert set(sets.roots(np.arange(6, 2006)).tolist()) == {6}


def test_ranks_count_earlier_equals() -> None:
    assert ranks(np.array([3, 1, 3, 3, 1])).tolist() == [0, 0, 1, 2, 1]
    assert math.prod(ranks(np.zeros(0, dtype=np.int64)).shape) == 0


class Squashed(nn.Conv2d):
    """A convolution with bounded weights."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight.tanh(), self.bias, padding=1)


@pytest.mark.parametrize("mapping", ["random", "importance"])
def test_layers_with_computed_weights_are_reported(mapping: str) -> None:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.spectral_norm(nn.Conv2d(6, 7, 1))
    layers = (
        nn.Conv2d(3, 6, 1),
        nn.ReLU(),
        Squashed(6, 6, 3),
        nn.ReLU(),
        normed,
        nn.Conv2d(7, 8, 1),
        nn.Conv2d(8, 2, 1),
    )
    model, x = nn.Sequential(*layers).double(), torch.randn(2, 3, 6, 6).double()
    plan = net2net.plan_widen(model, x, {"5": 12}, mapping=mapping)
    assert {s.layers[0]: s.units for s in plan.skipped} == {"0": 6, "2": 6, "4": 7}
    assert all("is computed" in s.reason or "aten.mv" in s.reason for s in plan.skipped)
    assert net2net.verify(model, plan.apply(model), x).max_rel < EXACT
    with pytest.raises(ValueError, match=r"is computed|aten\.mv"):
        net2net.plan_widen(model, x, 2, strict=True)
    net2net.picture(net2net.groups(model, x))


class Positions(nn.Module):
    """A class token before the others, and a slice of a table of positions that is the whole table here."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.embed, self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        positions = self.positions[:, : y.shape[1]]
        if self.in_place:
            y += positions
        else:
            y = y + positions.detach()
        return self.head(y + self.hidden(y).relu())


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("length", [3, 4])
def test_a_slice_of_a_table_of_positions(in_place: bool, length: int) -> None:
    torch.manual_seed(0)
    model, x = Positions(in_place).double().eval(), torch.randn(2, length, 6).double()
    plan = net2net.plan_widen(model, x, 1.5)
    assert [sorted(w.layers) for w in plan.widened] == [["embed", "hidden"]]
    student = plan.apply(model)
    assert student.positions.shape == (1, 5, 12)
    assert net2net.verify(model, student, x).max_rel < EXACT


class Tasks(nn.Module):
    """A head for each task, of which an example runs one; and a table that only masked inputs need."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8))
        norm = nn.BatchNorm1d(8, affine=False)
        self.heads = nn.ModuleDict(
            {"a": nn.Linear(8, 3), "b": nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), "c": norm}
        )
        self.mask_token = nn.Parameter(torch.randn(8))

    def forward(self, x, task="a", mask=None):
        x = self.trunk(x)
        return self.heads[task](x if mask is None else torch.where(mask[:, None], self.mask_token, x))


def test_what_the_example_does_not_run_is_told():
    model, x = Tasks(), torch.randn(4, 5)
    plan = net2net.plan_widen(model, x, 2)
    (skipped,) = plan.skipped
    assert skipped.layers == ["mask_token", "heads.b.0", "heads.b.1", "heads.c"]
    assert skipped.units == 8 + 4 + 2 + 8
    assert "does not run" in skipped.reason
    assert "left alone: mask_token (+3 more): the example does not run it" in plan.summary()
    assert net2net.plan_widen(model, x, 2, strict=True).skipped == plan.skipped  # nothing that runs is
    everything = {"x": x, "task": "b", "mask": torch.tensor([True, False, True, False])}
    (skipped,) = net2net.plan_widen(model, everything, 2).skipped
    assert skipped.layers == ["heads.a", "heads.c"]


class SpatialAttention(nn.Module):
    """That of CBAM."""

    def __init__(self, largest):
        super().__init__()
        self.largest, self.conv = [largest], nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x):
        return x * self.conv(torch.cat([self.largest[0](x), x.mean(1, keepdim=True)], 1)).sigmoid()


def test_a_maximum_over_channels_must_divide_its_gradient():
    # `max` along a dimension gives all of it to one replica, and a student's gradients would not be the teacher's.
    x = torch.randn(2, 3, 6, 6)
    for largest, grows in [
        (lambda x: x.max(1, keepdim=True)[0], False),
        (lambda x: torch.amax(x, 1, keepdim=True), True),
        (lambda x: torch.max(x, dim=2, keepdim=True)[0].mean((1, 2), keepdim=True).expand(-1, 1, 6, 6), True),
    ]:
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), SpatialAttention(largest), nn.Conv2d(8, 2, 1))
        (group,) = (g for g in net2net.groups(model, x) if "0" in g.layers)
        assert (group.left_alone is None) == grows, group
