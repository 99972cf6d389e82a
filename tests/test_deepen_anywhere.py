"""Deepening where the paper's method cannot: paired identities, residual blocks, maxout, and new layers made wider."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import net2net
import pytest
import torch
import torch.nn.functional as F
from net2net.new_layers import Insertion, expansion
from torch import Tensor, nn

EXACT = 1e-12

CARRYING = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "leaky_relu": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(4),
    "softplus": nn.Softplus(beta=2.0),
}


def randomised(model: nn.Module) -> nn.Module:
    """Everything random: fresh normalisations hide mistakes."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                t.copy_(torch.rand(t.shape, generator=g) + 0.5)
            elif t.is_floating_point() and (t.dim() <= 1 or name.endswith("running_mean")):
                t.add_(torch.randn(t.shape, generator=g) * 0.3)
    return model.double().eval()


def same(model: nn.Module, student: nn.Module, x: Any, modes: tuple[bool, ...] = (False, True)) -> bool:
    """Whether both compute the same, in eval and in train mode."""
    return all(net2net.verify(model.train(m), student.train(m), x).max_rel < EXACT for m in modes)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", CARRYING)
def test_paired_layers_carry_numbers_through_an_activation(name: str, count: int) -> None:
    phi = copy.deepcopy(CARRYING[name])
    model = randomised(nn.Sequential(nn.Linear(3, 4), phi, nn.Linear(4, 2)))
    x = torch.randn(5, 3).double()
    plan = net2net.plan_deepen(model, x, method="paired", count=count)
    student = plan.apply(model)
    assert plan.inserted == [f"0.grown{i}" for i in range(count)]
    assert [type(m) for m in student.get_submodule("0.grown0")] == [nn.Linear, type(phi), nn.Linear]
    assert same(model, student, x)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "elu", "mish", "selu", "celu", "hardsigmoid"])
def test_other_activations_are_refused_with_the_reason(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(getattr(F, name)(self.a(x)))

    for method in ("auto", "paired"):
        with pytest.raises(ValueError, match=r"phi\(x\) - phi\(-x\)"):
            net2net.plan_deepen(Net(), torch.randn(2, 3), method=method)


@pytest.mark.parametrize("factor", ["orthogonal", "identity"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3),
        nn.Conv2d(4, 6, (1, 5), padding="same"),
        nn.Conv2d(4, 8, 3, groups=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv3d(4, 2, 3, stride=2),
        nn.ConvTranspose2d(4, 6, 2, stride=2),
    ],
    ids=["1d", "rectangular", "grouped", "depthwise", "3d", "transposed"],
)
def test_paired_layers_before_convolutions(layer: nn.Module, factor: str) -> None:
    dims = layer.weight.dim() - 2
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](layer.out_channels)
    model = randomised(nn.Sequential(copy.deepcopy(layer), norm, nn.GELU()))
    x = torch.randn(3, 4, *[7] * dims).double()
    plan = net2net.plan_deepen(model, x, data=[x], factor=factor, seed=3)
    (insertion,) = plan.insertions
    assert (insertion.method, insertion.module, insertion.groups) == ("paired", "0", layer.groups)
    assert same(model, plan.apply(model), x)
    weight = expansion(insertion, 0, x).weight.detach()
    q = weight.flatten(2)[:, :, weight[0, 0].numel() // 2].reshape(layer.groups, 2, -1, weight.shape[1])
    torch.testing.assert_close(q[:, 0], -q[:, 1])
    identity = torch.eye(weight.shape[1]).double().expand_as(q[:, 0])
    torch.testing.assert_close(q[:, 0] @ q[:, 0].mT, identity)
    assert torch.equal(q[:, 0], identity) == (factor == "identity")


def test_identity_layers_behind_depthwise_and_grouped_convolutions_are_of_their_kind() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(4, 4, 5, groups=4), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 2, 1)))
    x = torch.randn(2, 4, 9, 9).double()
    plan = net2net.plan_deepen(model, x, data=[x])
    student = plan.apply(model)
    conv = student.get_submodule(plan.inserted[0]).conv
    assert (conv.groups, conv.kernel_size) == (4, (5, 5))
    assert same(model, student, x)


def test_auto_takes_the_papers_way_where_it_can() -> None:
    model = randomised(
        nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3), nn.Tanh())
    )
    x = torch.randn(3, 4).double()
    plan = net2net.plan_deepen(model, x)
    assert [(i.module, i.method) for i in plan.insertions] == [("0", "paired"), ("3", "identity")]
    assert len(plan.skipped) == 1
    assert "tanh" in plan.skipped[0].reason
    assert same(model, plan.apply(model), x)
    with pytest.raises(ValueError, match=r"after \(='5'\)"):
        net2net.plan_deepen(model, x, after="5")


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_paired_layers_in_narrow_dtypes(dtype: torch.dtype, limit: float) -> None:
    """Only the rounding of the inverse and of the sums is left."""
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4)).to(dtype)
    x = torch.randn(8, 16).to(dtype)
    student = net2net.plan_deepen(model, x).apply(model)
    assert {p.dtype for p in student.parameters()} == {dtype}
    assert net2net.verify(model, student, x).max_rel < limit


class Block(nn.Module):
    """Pre-norm attention with a mask: a block that takes two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.randn(8))
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, mask)
        x = x + self.scale * self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.head(x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.drop(F.relu(self.bn1(self.conv1(x))))))
        y += x
        return F.relu(y)


def residual() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Residual(), Residual(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(3, 3, 8, 8)
    model(x)
    return randomised(model), x.double()


def transformer() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    mask = torch.tril(torch.ones(5, 5, dtype=torch.bool))
    return randomised(Transformer()), (torch.randn(2, 5, 3).double(), mask)


@pytest.mark.parametrize("count", [1, 2])
def test_residual_blocks_are_repeated(count: int) -> None:
    model, x = residual()
    plan = net2net.plan_deepen(model, x, method="residual", count=count)
    assert [(r.module, r.zeroed) for r in plan.repetitions] == [(n, ["bn2.bias", "bn2.weight"]) for n in "23"]
    student = plan.apply(model)
    for m in model.modules():  # its random numbers would be others in a deeper network
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    deep = net2net.plan_deepen(model, x, method="residual", count=count).apply(model)
    assert same(model, deep, x)
    assert net2net.verify(model.eval(), student, x).max_abs == 0
    first = student.get_submodule(plan.inserted[0])
    assert torch.equal(first.conv1.weight, model[2].conv1.weight)
    assert first.conv1.weight.data_ptr() != student.get_submodule("2.layer.conv1").weight.data_ptr()


def test_blocks_of_several_arguments_are_repeated() -> None:
    model, x = transformer()
    plan = net2net.plan_deepen(model, x, after="blocks.1", method="residual")
    (repetition,) = plan.repetitions
    assert repetition.several
    assert repetition.zeroed == ["mlp.3.bias", "mlp.3.weight", "scale"]
    student = plan.apply(model)
    assert same(model, student, x)
    out = student(*x)
    out.sum().backward()
    grown = student.get_submodule(plan.inserted[0])
    assert grown.scale.grad.abs().min() > 0  # what is zero learns at once


def test_what_cannot_be_repeated_says_why() -> None:
    post_norm = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = randomised(nn.Sequential(nn.Linear(3, 8), post_norm))
    with pytest.raises(ValueError, match=r"after \(='1'\).*normalises or scales the sum"):
        net2net.plan_deepen(model, torch.randn(2, 5, 3).double(), after="1", method="residual")
    twice = Residual()
    model, x = randomised(nn.Sequential(twice, twice)), torch.randn(2, 4, 6, 6).double()
    with pytest.raises(ValueError, match="more than once"):
        net2net.plan_deepen(model, x, method="residual")
    with pytest.raises(ValueError, match=r"after \(='head'\) fits no module that adds"):
        net2net.plan_deepen(*transformer(), after="head", method="residual")


def test_pre_norm_encoder_layers_are_repeated() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, dropout=0.0)
    model = randomised(nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)))
    x = torch.randn(2, 5, 3).double()
    plan = net2net.plan_deepen(model, x, method="residual")
    assert [r.module for r in plan.repetitions] == ["1"]
    assert same(model, plan.apply(model), x)


@pytest.mark.parametrize("pieces", [2, 3])
def test_maxout_layers(pieces: int) -> None:
    class Maxima(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 5, 3)
            self.c, self.d = nn.Linear(5, 6), nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).unflatten(1, (4, 2)).max(2).values
            x = F.relu(self.b(x)).mean((2, 3))
            return torch.maximum(self.c(x), self.d(x))

    model, x = randomised(Maxima()), torch.randn(2, 3, 8, 8).double()
    plan = net2net.plan_deepen(model, x, method="maxout", pieces=pieces, after=["b", "c"])
    student = plan.apply(model)
    assert same(model, student, x)
    assert net2net.verify(model.eval(), student.eval(), x).max_abs == 0
    student(x).square().sum().backward()
    grown = student.get_submodule("b.grown0").conv
    assert grown.weight.shape[:2] == (5 * pieces, 5)
    rows = grown.weight.grad.flatten(1).unflatten(0, (5, pieces))
    assert (rows[:, 0] != rows[:, 1]).any()  # equal pieces do not stay equal


def test_a_new_layer_can_be_made_wider_than_its_input() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    x = torch.randn(3, 3, 8, 8).double()
    plan = net2net.plan_deepen(model, x, after="2", data=[x])
    deeper = plan.apply(model)
    student = net2net.widen(deeper, x, 2.0, layers="*.grown*")
    assert student.get_submodule(plan.inserted[0]).conv.weight.shape[:2] == (8, 4)
    assert same(model, student, x)


PLANS = {
    "paired": lambda: (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 1)), None),
    "residual": residual,
}


@pytest.mark.parametrize("method", PLANS)
def test_plans_are_replayed_on_files_optimizers_and_consumed_models(method: str, tmp_path: Path) -> None:
    model, x = PLANS[method]()
    if x is None:
        model, x = randomised(model), torch.randn(2, 3, 8, 8).double()
    plan = net2net.plan_deepen(model, x, method=method, seed=5)
    plan.save(tmp_path / "plan.json")
    loaded = net2net.GrowthPlan.load(tmp_path / "plan.json")
    optimizer = torch.optim.AdamW([{"params": [p], "lr": 0.1 + i} for i, p in enumerate(model.parameters())])
    model.train()(x).sum().backward()
    optimizer.step()
    student = plan.apply(model)
    grown = loaded.grow_state_dict(model.state_dict())
    assert list(grown) == [*dict.fromkeys([*grown, *student.state_dict()])]
    assert all(torch.equal(grown[k], t) for k, t in student.state_dict().items())
    student.load_state_dict(grown)
    carried = plan.grow_optimizer(optimizer, student)
    held = {id(p) for group in carried.param_groups for p in group["params"]}
    assert held == {id(p) for p in student.parameters()}
    before = {n: p.clone() for n, p in student.named_parameters()}
    student.train()(x).square().sum().backward()
    carried.step()
    assert any(not torch.equal(before[n], p) for n, p in student.named_parameters() if ".grown" in n)
    used = loaded.apply(copy.deepcopy(model), consume=True)
    assert all(torch.equal(t, grown[k]) for k, t in used.state_dict().items())


def test_a_seed_gives_the_same_factors_and_another_one_others() -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU()), torch.randn(2, 6)
    one, two, other = (
        {i.module: expansion(i, 0, x).weight for i in net2net.plan_deepen(model, x, seed=s).insertions}
        for s in (1, 1, 2)
    )
    assert all(torch.equal(one[m], two[m]) and not torch.equal(one[m], other[m]) for m in one)
    assert not torch.equal(one["0"], one["2"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation", {"name": "Sequential", "arguments": {}, "idempotent": False, "kappa": 1.0}),
        ("activation", {"name": "GELU", "arguments": {}, "idempotent": False, "kappa": 2.0}),
        ("activation", {"name": "GELU", "arguments": {}, "idempotent": True, "kappa": None}),
        ("method", "magic"),
        ("method", "identity"),
        ("factor", "hadamard"),
        ("groups", 4),
        ("kernel_sizes", [[2, 2]]),
        ("mean", [[0.0]]),
    ],
)
def test_damaged_plans_are_refused(field: str, value: Any, tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 8, 8)
    path = tmp_path / "plan.json"
    net2net.plan_deepen(model, x).save(path)
    document = json.loads(path.read_text())
    document["insertions"][0][field] = value
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"0|plan may hold|idempotent|pairs"):
        net2net.GrowthPlan.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"factor": "hadamard"}, r"factor \(='hadamard'\)"), ({"pieces": 1}, r"pieces \(=1\)")]
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), torch.randn(2, 3)
    with pytest.raises(ValueError, match=message):
        net2net.plan_deepen(model, x, **arguments)


def test_insertions_say_what_they_are() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), torch.randn(2, 3)
    plan = net2net.plan_deepen(model, x)
    assert isinstance(plan.insertions[0], Insertion)
    assert "paired linear through GELU" in plan.summary()
    model, x = residual()
    assert "with zeros in bn2.bias, bn2.weight" in net2net.plan_deepen(model, x, method="residual").summary()


def test_softplus_with_a_low_threshold_carries_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Softplus(threshold=3.0), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="softplus"):
        net2net.plan_deepen(model, torch.randn(2, 3))


@pytest.mark.parametrize("twice", ["run", "registered"])
def test_layers_of_several_places_are_left_alone(twice: str) -> None:
    """Their normalisation would have the statistics of one place only; their new parameters would have two names."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.SiLU())
            self.b = nn.Conv2d(3, 3, 1)
            if twice == "registered":
                self.c = self.a

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.b(self.a(x)))
            return self.a(x) if twice == "run" else x

    model, x = randomised(Twice()), torch.randn(4, 3, 6, 6).double()
    plan = net2net.plan_deepen(model, x, data=[x])
    assert [i.module for i in plan.insertions] == ["b"]
    assert any(("more than once" if twice == "run" else "several names") in s.reason for s in plan.skipped)
    student = plan.apply(model)
    assert same(model, student, x)
    student.load_state_dict(plan.grow_state_dict(model.state_dict()))
