"""Widening whole networks: the function stays, the teacher stays, replicas learn apart."""

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import net2net
import numpy as np
import pytest
import torch
from models import EXAMPLES, Example, randomised
from net2net.verify import Report
from torch import Tensor, nn

EXACT = 1e-10


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> Example:
    return EXAMPLES[request.param]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def same_function(teacher: nn.Module, student: nn.Module, x: Tensor, training: bool) -> Report:
    return net2net.verify(teacher.train(training), student.train(training), x)


#: Of the largest example, which takes as long as all others, the ways that quick tests take.
QUICK = {("cancelling", "uniform", "random"), ("none", "dyadic", "balanced"), ("cancelling", "random", "balanced")}


def ways() -> list[Any]:
    """Every example with every noise, split and mapping."""
    cases = []
    for name in EXAMPLES:
        for way in itertools.product(["cancelling", "none"], ["uniform", "dyadic", "random"], ["random", "balanced"]):
            marks = [pytest.mark.slow] if name == "inception" and way not in QUICK else []
            cases.append(pytest.param(name, *way, marks=marks))
    return cases


@pytest.mark.parametrize(("name", "noise", "split", "mapping"), ways())
def test_function_stays_and_teacher_is_untouched(name: str, noise: str, split: str, mapping: str) -> None:
    model, x = EXAMPLES[name].build()
    before = snapshot(model)
    plan = net2net.plan_widen(model, x, 1.6, mapping=mapping, split=split, noise=noise, seed=3)
    student = plan.apply(model)
    assert_untouched(model, before)
    assert type(student) is type(model)
    assert sum(p.numel() for p in student.parameters()) > sum(p.numel() for p in model.parameters())
    for training in (False, True):
        assert same_function(model, student, x, training).max_rel < EXACT


def test_everything_but_the_outputs_is_widened(example: Example) -> None:
    model, x = example.build()
    plan = net2net.plan_widen(model, x, 2)
    # The one thing that cannot be: the spatial gate's single channel, which must stay one to broadcast.
    assert [s.layers for s in plan.skipped] == ([["spatial"]] if hasattr(model, "spatial") else [])
    for group in plan.widened:
        assert group.width == 2 * group.units


def test_several_growths_in_a_row(example: Example) -> None:
    model, x = example.build()
    student = model
    for seed in range(3):
        student = net2net.widen(student, x, 1.3, seed=seed)
    for training in (False, True):
        assert same_function(model, student, x, training).max_rel < EXACT


def test_other_input_sizes_and_batches() -> None:
    model, x = EXAMPLES["dense"].build()
    student = net2net.widen(model, x, 1.5)
    assert net2net.verify(model, student, torch.randn(2, 2, 12, 10, dtype=x.dtype)).max_rel < EXACT


def test_model_in_train_mode_stays_so() -> None:
    model, x = EXAMPLES["residual"].build()
    model.train()
    model.bn1.eval()
    student = net2net.widen(model, x, 1.5)
    assert student.training
    assert not student.bn1.training
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes(dtype: torch.dtype) -> None:
    model, x = EXAMPLES["plain_2d"].build(dtype)
    student = net2net.widen(model, x, 1.5)
    assert {p.dtype for p in student.parameters()} == {dtype}
    assert net2net.verify(model, student, x).ok


def test_dyadic_split_is_lossless_in_bfloat16() -> None:
    model, x = EXAMPLES["plain_2d"].build(torch.bfloat16)
    plan = net2net.plan_widen(model, x, 2.7, split="dyadic", noise="none")
    grown = plan.grow_state_dict(model.state_dict())
    for name, weight in model.state_dict().items():
        if (name, 1) not in plan.axes:
            continue
        rows, columns = plan.first_copies(name, 0), torch.from_numpy(plan.axes[name, 1].index)
        mine = grown[name] if rows is None else grown[name][rows]
        summed = torch.zeros(weight.shape, dtype=torch.float64).index_add_(1, columns, mine.double())
        assert torch.equal(summed, weight.double())


def test_the_most_important_units_are_replicated_first() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    with torch.no_grad():
        model[0].weight[3] *= 100
        model[0].weight[1] *= 10
    plan = net2net.plan_widen(model, x, {"0": 9}, mapping="importance")
    # Shared among two replicas, the first of them still does more than any other.
    assert plan.axes["0.weight", 0].index.tolist() == [0, 1, 2, 3, 4, 5, 3, 3, 3]
    assert net2net.verify(model, plan.apply(model), x).max_rel < EXACT


def test_replicas_are_told_apart() -> None:
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(model, x, 2, mapping="balanced")
    student = plan.apply(model)
    for name, weight in student.named_parameters():
        if (name, 1) in plan.axes:
            columns = weight.detach().transpose(0, 1).flatten(1)
            distances = torch.cdist(columns, columns) + torch.eye(len(columns))
            assert distances.min() > 0, name


def test_the_papers_noise_changes_replicas_alone() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_widen(model, x, 1.5, noise="paper", noise_scale=0.1)
    noisy = plan.apply(model).state_dict()
    exact = net2net.plan_widen(model, x, 1.5, noise="none").apply(model).state_dict()
    changed = [name for name in exact if not torch.equal(noisy[name], exact[name])]
    assert changed == [name for name in exact if (name, 0) in plan.axes and exact[name].dim() > 1]
    for name in changed:
        rows = plan.first_copies(name, 0)
        assert torch.equal(noisy[name][rows], exact[name][rows])


def test_attributes_follow_the_parameters() -> None:
    model, x = EXAMPLES["gated"].build()
    student = net2net.widen(model, x, 1.5)
    assert student.depthwise.groups == student.depthwise.in_channels == student.depthwise.out_channels == 9
    assert (student.b.in_channels, student.b.out_channels) == (12, 18)
    assert (student.head.in_features, student.head.out_features) == (9, 4)
    normed = net2net.widen(*EXAMPLES["plain_2d"].build(), 1.5)
    assert normed[1].num_features == 9
    assert model.depthwise.groups == 6


def test_exact_widths_by_name() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    student = net2net.widen(model, x, {"0": 7, "4": 25, "10": 1.25})
    assert (student[0].out_channels, student[4].out_channels, student[10].out_features) == (7, 25, 15)
    assert net2net.verify(model, student, x).max_rel < EXACT


def test_layers_and_multiple_of() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_widen(model, x, 1.1, layers=["4"], multiple_of=8)
    assert [(w.layers, w.units, w.width) for w in plan.widened] == [(["4"], 10, 16)]
    assert plan.apply(model)[0].out_channels == 6


def test_memory_format_and_gradients_flags_are_kept() -> None:
    model, x = EXAMPLES["residual"].build()
    model.to(memory_format=torch.channels_last)
    model.stem.weight.requires_grad_(False)
    student = net2net.widen(model, x, 1.5)
    assert student.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not student.conv1.weight.is_contiguous()
    assert not student.stem.weight.requires_grad
    assert student.conv1.weight.requires_grad


def test_tied_parameters_stay_tied() -> None:
    model, x = EXAMPLES["tied"].build()
    student = net2net.widen(model, x, 1.5)
    assert student.b.weight is student.c.weight


def test_same_seed_same_student() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    random = torch.get_rng_state()
    first, second, other = (net2net.widen(model, x, 1.5, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)
    assert torch.equal(random, torch.get_rng_state())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"sum": self.c(self.a(x).relu() + self.b(y))}


def test_several_inputs_and_structured_outputs() -> None:
    model = TwoInputs().double()
    x, y = torch.randn(5, 4).double(), torch.randn(5, 3).double()
    for inputs in ((x, y), {"y": y, "x": x}):
        student = net2net.widen(model, inputs, 1.5)
        assert student.a.out_features == student.b.out_features == 9
        assert net2net.verify(model, student, inputs).max_rel < EXACT


# -- what cannot be widened -------------------------------------------------------------------------------------------


class HardCodedView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(128, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.conv(x).relu().view(-1, 128)).relu())


class HardCodedSlice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(3, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.conv(x)[:, :3].mean((2, 3))).relu())


class DividedByWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.out(self.fc(x.mean((2, 3)) / x.shape[1]).relu())


class MeanOverUnits(DividedByWidth):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.out(self.fc((x - x.mean(1, keepdim=True)).mean((2, 3))).relu())


class Sorted(DividedByWidth):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.conv(x).sort(1).values.mean((2, 3))).relu())


class Normed(DividedByWidth):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.norm(self.conv(x)).mean((2, 3))).relu())


class FixedScale(DividedByWidth):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.conv(x).mean((2, 3)) * self.scale[:, 0]).relu())


@pytest.mark.parametrize("kind", [HardCodedView, HardCodedSlice, DividedByWidth, Sorted])
def test_what_cannot_be_widened_is_left_alone_with_a_reason(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = randomised(kind()).double().eval(), torch.randn(2, 3, 4, 4).double()
    plan = net2net.plan_widen(model, x, 1.5)
    assert [s.layers for s in plan.skipped] == [["conv"]]
    assert plan.skipped[0].reason
    student = plan.apply(model)
    assert student.conv.out_channels == 8
    assert student.fc.out_features == 15
    assert net2net.verify(model, student, x).max_rel < EXACT
    assert "conv" in plan.summary()
    with pytest.raises(ValueError, match="strict"):
        net2net.plan_widen(model, x, 1.5, strict=True)
    with pytest.raises(ValueError, match="conv cannot be widened"):
        net2net.plan_widen(model, x, 1.5, layers="conv")


@pytest.mark.parametrize(("kind", "channels"), [(MeanOverUnits, 16), (Normed, 12), (FixedScale, 12)])
def test_averages_over_units_and_gains_of_unusual_shapes(kind: type[nn.Module], channels: int) -> None:
    torch.manual_seed(0)
    model, x = randomised(kind()).double().eval(), torch.randn(2, 3, 4, 4).double()
    plan = net2net.plan_widen(model, x, 1.5, strict=True)
    student = plan.apply(model)
    assert (student.conv.out_channels, student.fc.out_features) == (channels, 15)
    assert net2net.verify(model, student, x).max_rel < EXACT


def test_groups_tell_what_the_plan_will_do() -> None:
    model, x = HardCodedView().double(), torch.randn(2, 3, 4, 4).double()
    found = {g.name: g for g in net2net.groups(model, x)}
    assert found["fc"].reason is None
    assert found["conv"].reason
    assert found["out"].output
    assert "10 units, can be widened" in str(found["fc"])


def test_strict_does_not_mind_the_outputs() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    assert net2net.plan_widen(model, x, 1.5, strict=True).skipped == []


def test_nothing_to_widen() -> None:
    with pytest.raises(ValueError, match="nothing was widened"):
        net2net.plan_widen(nn.Linear(3, 2), torch.randn(1, 3), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0.5}, r"width \(=0.5\)"),
        ({"width": float("nan")}, r"width \(=nan\)"),
        ({"width": "wide"}, r"width \(='wide'\)"),
        ({"width": {"0": 3}}, r"width\['0'\] \(=3\)"),
        ({"width": {}}, "names no layers"),
        ({"width": {"0": 8}, "layers": "0"}, "layers must be None"),
        ({"layers": "nowhere"}, "'nowhere'"),
        ({"layers": "1.running_mean"}, "matches '1.running_mean'; of the .* layers .* most like it are '"),
        ({"layers": "12"}, "12 cannot be widened: its units are the network's outputs"),
        ({"mapping": "best"}, r"mapping \(='best'\)"),
        ({"split": "half"}, r"split \(='half'\)"),
        ({"noise": "loud"}, r"noise \(='loud'\)"),
        ({"noise_scale": -1.0}, r"noise_scale \(=-1.0\)"),
        ({"noise": "none", "noise_scale": 0.5}, "has no meaning"),
        ({"width": 1.0}, r"width \(=1.0\) adds no unit"),
        ({"layers": []}, "names no layers"),
        ({"multiple_of": 0}, r"multiple_of \(=0\)"),
        ({"seed": -1}, r"seed \(=-1\)"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    model, x = EXAMPLES["plain_2d"].build()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        net2net.plan_widen(model, x, **{"width": 1.5, **arguments})
    assert_untouched(model, before)


def test_bad_models() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(TypeError, match="model"):
        net2net.plan_widen(lambda x: x, x, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not initialised"):
        net2net.plan_widen(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1)), x, 2)
    with pytest.raises(ValueError, match=r"model\.module"):
        net2net.plan_widen(nn.DataParallel(nn.Linear(3, 1)), x, 2)
    with pytest.raises(ValueError, match="does not run on example_inputs"):
        net2net.plan_widen(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)), x, 2)


def test_random_pad_keeps_the_old_block_and_not_the_function() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    before = snapshot(model)
    plan = net2net.plan_widen(model, x, 1.5)
    student = net2net.random_pad(model, plan, seed=1)
    assert_untouched(model, before)
    assert {k: v.shape for k, v in student.state_dict().items()} == {
        k: v.shape for k, v in plan.apply(model).state_dict().items()
    }
    assert torch.equal(student[4].weight[:10, :6], model[4].weight)
    assert torch.equal(student[5].running_mean[:10], model[5].running_mean)
    assert torch.equal(student[5].running_var[10:], torch.ones(5, dtype=torch.float64))
    assert torch.equal(student[12].bias, model[12].bias)
    again = net2net.random_pad(model, plan, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))
    assert not net2net.verify(model, student, x).ok


def test_hooks_and_extra_attributes_come_along() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    model.note = {"epochs": 3}
    student = net2net.widen(model, x, 1.5)
    assert student.note == {"epochs": 3}
    assert student.note is not model.note


def test_student_is_independent_of_the_teacher() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    student = net2net.widen(model, x, 1.5)
    expected = copy.deepcopy(student)(x)
    with torch.no_grad():
        for t in [*model.parameters(), *model.buffers()]:
            t.zero_()
    assert torch.equal(student(x), expected)


# -- what is easily overlooked ----------------------------------------------------------------------------------------


@dataclass
class Output:
    features: Tensor
    logits: Tensor


class Dataclass(DividedByWidth):
    def forward(self, x: Tensor) -> Output:
        features = self.conv(x).relu()
        return Output(features, self.out(self.fc(features.mean((2, 3))).relu()))


class SideOutput(DividedByWidth):
    def forward(self, x: Tensor) -> Tensor:
        self.features = self.conv(x).relu().detach()
        return self.out(self.fc(self.features.mean((2, 3))).relu())


class ReadsItsWeight(DividedByWidth):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.conv(x).mean((2, 3))).relu()) / self.conv.weight.norm()


class BranchesInTraining(DividedByWidth):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        if self.training:
            x = x / (1 + x.sum(1, keepdim=True))
        return self.out(self.fc(x.mean((2, 3))).relu())


@pytest.mark.parametrize("kind", [Dataclass, SideOutput, ReadsItsWeight, BranchesInTraining])
def test_units_that_something_else_reads_stay(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind().double().eval(), torch.randn(2, 3, 4, 4).double()
    student = net2net.widen(model, x, 1.5)
    assert student.conv.out_channels == 8
    for training in (False, True):
        assert same_function(model, student, x, training).max_rel < EXACT


def test_parts_that_run_in_training_alone_are_widened_too() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.aux = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
            self.drop, self.head = nn.Dropout(0.0), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.drop(self.conv(x).relu())
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    model, x = Auxiliary().double().eval(), torch.randn(2, 3, 6, 6).double()
    student = net2net.widen(model, x, 1.5)
    assert student.aux.in_channels == 12
    for training in (False, True):
        assert same_function(model, student, x, training).max_rel < EXACT


@pytest.mark.parametrize("drop", [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5)])
def test_dropout_is_no_obstacle(drop: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), drop, nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    assert net2net.widen(model, torch.randn(2, 3, 6, 6), 2)[0].out_channels == 8


def test_an_output_of_unknown_type_is_refused() -> None:
    class Opaque(DividedByWidth):
        def forward(self, x: Tensor) -> Any:
            return self.conv(x).detach().cpu().numpy()

    with pytest.raises(TypeError, match="ndarray"):
        net2net.plan_widen(Opaque(), torch.randn(2, 3, 4, 4), 2)


def test_a_teachers_python_state_is_untouched() -> None:
    class Counting(DividedByWidth):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.out(self.fc(self.conv(x).mean((2, 3))).relu())

    model = Counting()
    net2net.widen(model, torch.randn(2, 3, 4, 4), 1.5)
    assert model.calls == 0


def test_attributes_with_a_history_are_no_obstacle() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    model.last = model(x)
    assert net2net.verify(model, net2net.widen(model, x, 1.5), x).ok


def test_given_maps_are_followed() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    units = model[0].out_channels
    index = [*range(units), 2, 2, 0]
    for given in (index, np.array(index), torch.tensor(index)):
        plan = net2net.plan_widen(model, x, 1.5, mapping={"0": given}, noise="none")
        student = plan.apply(model)
        assert torch.equal(student[0].weight, model[0].weight[index])
        assert net2net.verify(model, student, x).max_rel < EXACT
    assert plan.axes["0.weight", 0].index.tolist() == index


@pytest.mark.parametrize(
    ("mapping", "error", "message"),
    [
        ({"0": [1, 0, 0]}, ValueError, r"mapping\['0'\] must begin with all 2 units in order"),
        ({"0": [0, 1, 3]}, ValueError, r"mapping\['0'\] drops unit 2"),
        ({"0": [0, 1, 0]}, ValueError, r"mapping\['0'\] is of 2 units, but 0 has \d+ units"),
        ({"0": [0.0, 1.0]}, TypeError, r"mapping\['0'\] must be a list of units"),
        ({"nowhere": [0, 1, 1]}, ValueError, r"mapping\['nowhere'\]: there is no such layer"),
        ({"head": [0, 1, 1]}, ValueError, r"mapping\['head'\]"),
        (["0"], TypeError, r"mapping \(=list\)"),
        ("gradient", ValueError, "call backward"),
    ],
)
def test_bad_maps(mapping: Any, error: type[Exception], message: str) -> None:
    model, x = EXAMPLES["plain_2d"].build()
    with pytest.raises(error, match=message):
        net2net.plan_widen(model, x, 1.5, mapping=mapping)


def test_heads_take_maps_of_heads() -> None:
    from zoo import NETWORKS

    model, x = NETWORKS["rotary"].build()
    plan = net2net.plan_widen(model, x, 2, mapping={"1.q": [0, 1, 0, 1]}, noise="none")
    assert plan.apply(model).get_submodule("1").heads == 8
    with pytest.raises(ValueError, match="heads or other blocks"):
        net2net.plan_widen(model, x, 2, mapping={"1.q": [*range(16), *range(16)]})


@pytest.mark.parametrize("transposed", [False, True])
def test_units_with_large_gradients_are_replicated_first(transposed: bool) -> None:
    first: nn.Module = nn.ConvTranspose2d(3, 4, 3) if transposed else nn.Conv2d(3, 4, 3)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    x = torch.randn(2, 3, 6, 6).double()
    model(x)[:, 0].sum().backward()
    first.weight.grad[:, 2] *= 100 if transposed else 1
    first.weight.grad[2] *= 1 if transposed else 100
    plan = net2net.plan_widen(model, x, 1.25, mapping="gradient")
    assert plan.axes["0.weight", 1 if transposed else 0].index.tolist() == [0, 1, 2, 3, 2]
    assert net2net.verify(model, plan.apply(model), x).max_rel < EXACT


def test_a_train_method_that_returns_nothing() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)
            self[1].training = False

    torch.manual_seed(0)
    model, x = (
        Frozen(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double(),
        torch.randn(4, 5).double(),
    )
    model.train(False)
    for student in (net2net.widen(model, x, 1.5), net2net.deepen(model, x)):
        student.train(False)
        assert net2net.verify(model, student, x).max_rel < 1e-10


def test_an_expert_that_is_given_nothing() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.gate, self.head = nn.Linear(5, 8), nn.Linear(5, 3), nn.Linear(8, 2)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            weight, which = self.gate(x).topk(1)
            out = torch.zeros_like(y)
            for i, expert in enumerate(self.experts):
                chosen = torch.where(which[:, 0] == i)[0]
                out[chosen] += weight[chosen] * expert(y[chosen])
            return self.head(out)

    torch.manual_seed(0)
    model = Experts().double().eval()
    plan = net2net.plan_widen(model, torch.randn(4, 5).double(), 1.5)
    assert net2net.verify(model, plan.apply(model), torch.randn(30, 5).double()).max_rel < 1e-10
