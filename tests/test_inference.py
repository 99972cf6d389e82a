"""Remapping inference: what larger networks are made of is widened whole, exactly, or left alone with a reason."""

import copy
import math
import random
from pathlib import Path

import net2net
import numpy as np
import pytest
import torch
from net2net.groups import infer
from net2net.layout import ranks
from net2net.running import of_no_value
from net2net.units import DisjointSets
from torch import Tensor, nn
from zoo import NETWORKS, Attention, Network, VisionTransformer

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


def test_attributes_grow_along() -> None:
    model, x = NETWORKS["vision_transformer"].build()
    plan = net2net.plan_widen(model, x, 2)
    assert {str(c) for c in plan.changes} == {
        "embed_dim: 12 -> 24", "blocks.0.attn.num_heads: 3 -> 6", "blocks.1.attn.num_heads: 3 -> 6"
    }  # fmt: skip
    student = plan.apply(model)
    assert (student.embed_dim, student.blocks[1].attn.num_heads) == (24, 6)
    assert student.positions.shape == (1, 5, 24)
    assert student.blocks[0].attn.table.shape == (9, 6)
    assert student.norm.normalized_shape == (24,)
    assert model.embed_dim == 12
    assert "attribute embed_dim: 12 -> 24" in plan.summary()


def test_groups_of_a_convolution_and_of_a_norm_are_replicated_as_a_whole() -> None:
    model, x = NETWORKS["grouped"].build()
    student = net2net.widen(model, x, 2)
    assert (student.cardinal.groups, student.cardinal.in_channels, student.cardinal.out_channels) == (8, 24, 48)
    assert student.norm.num_groups == 6
    assert (student.up.in_channels, student.up.out_channels) == (32, 16)


def test_torch_attention_keeps_its_books() -> None:
    model, x = NETWORKS["language_model"].build()
    student = net2net.widen(model, x, 2)
    attention = student.attention
    assert (attention.embed_dim, attention.num_heads, attention.head_dim, attention.kdim) == (16, 4, 4, 16)
    assert student.tokens.embedding_dim == 16


def test_an_average_over_units_needs_whole_multiples() -> None:
    model, x = NETWORKS["merging"].build()
    widths = {w.layers[0]: (w.units, w.width) for w in net2net.plan_widen(model, x, 1.5).widened}
    assert widths == {"stem": (6, 12), "reduction": (8, 12)}
    assert [g.blocks for g in net2net.groups(model, x) if g.name == "stem"] == [1]


def test_a_head_is_never_torn() -> None:
    model, x = NETWORKS["vision_transformer"].build()
    plan = net2net.plan_widen(model, x, 2)
    index = plan.axes["blocks.0.attn.qkv.weight", 0].index
    assert (index.reshape(-1, 4) // 4 * 4 == index.reshape(-1, 4)[:, :1]).all()
    assert (np.diff(index.reshape(-1, 4), axis=1) == 1).all()


class Hidden(nn.Module):
    """A number that no attribute holds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attn, self.head = nn.Linear(5, 8), Attention(8, 2, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(y.view(len(x), 4, 8) + self.attn(y))


def test_a_width_written_into_the_code_is_left_alone() -> None:
    torch.manual_seed(0)
    model, x = Hidden().double().eval(), torch.randn(2, 4, 5).double()
    with pytest.raises(ValueError, match="nothing was widened"):
        net2net.plan_widen(model, x, 2)


class Sliced(nn.Module):
    """Half of the features, whatever that is: right for replicas only if heads stay where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(5, 8), nn.LayerNorm(8)
        self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x))
        return self.head(self.b(x[..., : x.shape[-1] // 2]).relu())


def test_half_of_a_block_is_another_half_in_a_student() -> None:
    torch.manual_seed(0)
    model, x = Sliced().double().eval(), torch.randn(3, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    assert [s.layers for s in plan.skipped] == [["a"]]
    assert net2net.verify(model, plan.apply(model), x).max_rel < EXACT


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


def test_a_width_that_is_taken_from_what_stands_beside_heads() -> None:
    """Heads are replicated as a whole. So is what the code takes their width from, for that reason alone."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.parts = 2, [8, 8]
            self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
            self.q, self.k, self.v, self.out = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            b, n, c = x.shape
            q, gate = self.q(x).split(self.parts, -1)
            q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in (q, self.k(x), self.v(x)))
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
            return self.head(x + self.out(y * gate.sigmoid()))

    torch.manual_seed(0)
    model, x = Beside().double().eval(), torch.randn(2, 4, 5).double()
    student = net2net.widen(model, x, 1.5)
    assert (student.heads, student.parts, student.stem.out_features) == (4, [16, 16], 16)


@pytest.mark.parametrize("masked", [False, True])
def test_torch_attention_without_a_norm_before_it(masked: bool) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            mask = torch.full((4, 4), float("-inf")).to(x).triu(1) if masked else None
            return self.head(self.attention(x, x, x, attn_mask=mask)[0])

    torch.manual_seed(0)
    model, x = Bare().double().eval(), torch.randn(2, 4, 5).double()
    student = net2net.widen(model, x, 1.5)
    assert (student.stem.out_features, student.attention.embed_dim, student.attention.num_heads) == (16, 16, 4)


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


def test_a_unit_that_stays_behind_those_that_grow() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.stem(x).relu()
            return self.head(x.mean((2, 3))), x[:, -1:]

    torch.manual_seed(0)
    model, x = Last().double(), torch.randn(2, 3, 8, 8).double()
    student = net2net.plan_widen(model, x, 2).apply(model)
    assert student.stem.out_channels == 31
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


def test_a_teacher_keeps_its_attributes() -> None:
    torch.manual_seed(0)
    model, x = VisionTransformer().double().eval(), torch.randn(2, 3, 8, 8).double()
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    net2net.widen(model, x, 2)
    assert all(vars(m).keys() == before[name].keys() for name, m in model.named_modules())
    assert model.blocks[0].attn.num_heads == 3


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


def test_lists_stay_lists_in_a_loaded_plan(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, x = NETWORKS["dual_paths"].build()
    plan = net2net.plan_widen(model, x, 2)
    plan.save(tmp_path / "plan.json")
    student = net2net.GrowthPlan.load(tmp_path / "plan.json").apply(model)
    assert student.sizes == plan.apply(model).sizes == [6, 6, 1]


class Layer(nn.Module):
    """A convolution that checks what it is given, by an attribute that no operation is given."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, channels, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.conv(x).relu()


def test_attributes_that_inputs_are_checked_against_grow_along() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Layer(8, 1), nn.Conv2d(8, 6, 1), Layer(6, 2), nn.Conv2d(6, 2, 1)).double()
    x = torch.randn(2, 3, 6, 6).double()
    plan = net2net.plan_widen(model, x, {"0": 12, "2": 9, "[13].conv": 1.5})
    assert {str(c) for c in plan.changes} == {"1.channels: 8 -> 12", "3.channels: 6 -> 9"}
    assert net2net.verify(model, plan.apply(model), x).max_rel < EXACT


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


class Wrapped(nn.Module):
    def __init__(self, into: int, outof: int, groups: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(into, outof, 1, groups=groups), nn.BatchNorm2d(outof)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ImageAttention(nn.Module):
    """Attention over an image, whose output is given the width of the input; its projections are wrapped (YOLO11)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj, self.place = 2, Wrapped(16, 32), Wrapped(16, 16), Wrapped(16, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).view(b, self.heads, 16, h * w).split([4, 4, 8], dim=2)
        y = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        return self.proj(y.view(b, c, h, w) + self.place(v.reshape(b, c, h, w)))


def test_what_stands_beside_wrapped_projections_is_replicated_as_a_whole() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.attention, self.head = nn.Conv2d(3, 16, 1), ImageAttention(), nn.Conv2d(16, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.head(y + self.attention(y))

    torch.manual_seed(0)
    model, x = Block().double().eval(), torch.randn(2, 3, 4, 4).double()
    plan = net2net.plan_widen(model, x, 1.5)
    assert not plan.skipped
    assert [str(c) for c in plan.changes] == ["attention.heads: 2 -> 4"]
    student = plan.apply(model)
    for training in (False, True):
        assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT


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
