"""Numbers that code keeps beside its weights: they grow along, or what they hold back is left alone with a reason."""

import net2net
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import NETWORKS, Attention, VisionTransformer

EXACT = 1e-10


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


def test_a_teacher_keeps_its_attributes() -> None:
    torch.manual_seed(0)
    model, x = VisionTransformer().double().eval(), torch.randn(2, 3, 8, 8).double()
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    net2net.widen(model, x, 2)
    assert all(vars(m).keys() == before[name].keys() for name, m in model.named_modules())
    assert model.blocks[0].attn.num_heads == 3


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
