"""Carrying optimizer state: compared with the state that the student's own gradients make."""

import copy

import net2net
import pytest
import torch
from models import EXAMPLES
from net2net.rmsprop import RMSpropTF
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

CASES = {
    "sgd": (SGD, {"momentum": 0.9}),
    "adam": (Adam, {"amsgrad": True}),
    "adamw": (AdamW, {}),
    "rmsprop": (RMSprop, {"momentum": 0.9, "centered": True, "eps": 1e-30}),
    "rmsprop-tf": (RMSpropTF, {"lr": 1e-30, "eps": 1e-30, "initial": 0.0}),
    "nadam": (NAdam, {}),
    "radam": (RAdam, {}),
    "adamax": (Adamax, {"eps": 1e-30}),
    "adagrad": (Adagrad, {}),
    "adadelta": (Adadelta, {"eps": 1e-30}),
}


def loss(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().square()


def make(kind: type[Optimizer], model: nn.Module, **options: object) -> Optimizer:
    """Two groups with options of their own. Nothing moves: the learning rate is zero, so state is all that steps
    change."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.0},
        {"params": [p for p in model.parameters() if p.dim() == 1]},
    ]
    return kind(groups, **{"lr": 0.0, **options})  # type: ignore[arg-type]


#: Where epsilon counts, momentum is exact if second moments were always what they are now: after one step.
EPSILONS = {
    "rmsprop-epsilon": (RMSprop, {"momentum": 0.9, "eps": 1.0}),
    "rmsprop-centered-epsilon": (RMSprop, {"momentum": 0.9, "centered": True, "eps": 0.5}),
    "rmsprop-tf-epsilon": (RMSpropTF, {"lr": 1e-30, "eps": 1.0, "initial": 0.0}),
}
CASES |= EPSILONS


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("split", ["uniform", "dyadic"])
@pytest.mark.parametrize("name", ["residual", "gated", "channels_last_features"])
def test_state_is_what_the_students_gradients_make(name: str, split: str, case: str) -> None:
    kind, options = CASES[case]
    teacher, x = EXAMPLES[name].build()
    plan = net2net.plan_widen(teacher, x, 1.7, noise="none", split=split)
    steps = 1 if case in EPSILONS else 2
    optimizer = make(kind, teacher, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(teacher, x).backward()
        optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    student = plan.apply(teacher)
    grown = plan.grow_optimizer(optimizer, student)
    assert type(grown) is kind
    assert_equal_state(before, optimizer.state_dict())

    fresh = make(kind, student, **options)
    for _ in range(steps):
        fresh.zero_grad()
        loss(student, x).backward()
        fresh.step()
    assert [list(map(id, g["params"])) for g in grown.param_groups] == [
        list(map(id, g["params"])) for g in fresh.param_groups
    ]
    compared = 0
    for p in student.parameters():
        assert grown.state[p].keys() == fresh.state[p].keys()
        for key, expected in fresh.state[p].items():
            actual = grown.state[p][key]
            if isinstance(expected, Tensor) and expected.dim():
                scale = expected.abs().max().clamp(min=1e-12)
                assert (actual - expected).abs().max() / scale < 1e-8, key
                compared += 1
            else:
                assert actual == expected
    assert compared


def assert_equal_state(a: dict[str, object], b: dict[str, object]) -> None:
    flat_a, flat_b = (torch.utils._pytree.tree_leaves(s) for s in (a, b))
    assert len(flat_a) == len(flat_b)
    for x, y in zip(flat_a, flat_b, strict=True):
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y


def test_options_steps_and_learning_rates_are_kept() -> None:
    teacher, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_widen(teacher, x, 1.5)
    optimizer = AdamW(
        [{"params": [teacher[0].weight], "lr": 0.5, "weight_decay": 0.25}, {"params": [teacher[4].weight]}], lr=0.1
    )
    loss(teacher, x).backward()
    for _ in range(3):
        optimizer.step()
    student = plan.apply(teacher)
    grown = plan.grow_optimizer(optimizer, student)
    assert [(g["lr"], g["weight_decay"]) for g in grown.param_groups] == [(0.5, 0.25), (0.1, 0.01)]
    assert grown.param_groups[0]["params"][0] is student[0].weight
    assert grown.state[student[0].weight]["step"] == 3
    assert len(grown.state) == 2
    student(x).sum().backward()
    grown.step()
    assert grown.state[student[0].weight]["step"] == 4
    assert optimizer.state[teacher[0].weight]["step"] == 3


def test_training_goes_on_after_both_kinds_of_growth() -> None:
    teacher, x = EXAMPLES["residual"].build(torch.float32)
    teacher.train()
    optimizer = RMSprop(teacher.parameters(), lr=1e-4, momentum=0.9)
    loss(teacher, x).backward()
    optimizer.step()
    wide = net2net.plan_widen(teacher, x, 1.5)
    student = wide.apply(teacher)
    optimizer = wide.grow_optimizer(optimizer, student)
    deep = net2net.plan_deepen(student, x, data=[x])
    deeper = deep.apply(student)
    optimizer = deep.grow_optimizer(optimizer, deeper)
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in deeper.parameters()}
    before = {k: p.clone() for k, p in deeper.named_parameters()}
    loss(deeper, x).backward()
    optimizer.step()
    assert all(not torch.equal(before[k], p) for k, p in deeper.named_parameters())


def test_new_layers_join_the_group_of_the_layer_that_they_follow() -> None:
    teacher, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_deepen(teacher, x, after="2")
    optimizer = SGD(
        [
            {"params": [teacher[0].weight], "lr": 1.0},
            {"params": [teacher[1].weight, teacher[1].bias], "lr": 2.0},
            {"params": [teacher[12].weight], "lr": 3.0},
        ]
    )
    student = plan.apply(teacher)
    grown = plan.grow_optimizer(optimizer, student)
    new = student.get_submodule(plan.inserted[0])
    rates = {id(p): g["lr"] for g in grown.param_groups for p in g["params"]}
    assert rates[id(new.conv.weight)] == 1.0
    assert rates[id(new.norm.weight)] == rates[id(new.norm.bias)] == 2.0
    assert not grown.state


def test_no_new_parameter_is_left_untrained() -> None:
    teacher, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_deepen(teacher, x, after="2")
    grown = plan.grow_optimizer(SGD([teacher[0].weight], lr=1.0), plan.apply(teacher))
    assert len(grown.param_groups[0]["params"]) == 4  # the convolution, its successor, and that one's norm


def test_frozen_neighbours_leave_new_layers_out() -> None:
    teacher, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_deepen(teacher, x, after="2")
    optimizer = SGD([teacher[12].weight], lr=1.0)
    grown = plan.grow_optimizer(optimizer, plan.apply(teacher))
    assert len(grown.param_groups[0]["params"]) == 1


def test_unknown_optimizers_and_parameters_are_refused() -> None:
    class Mine(SGD):
        pass

    teacher, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_widen(teacher, x, 1.5)
    student = plan.apply(teacher)
    with pytest.raises(TypeError, match="Mine"):
        plan.grow_optimizer(Mine(teacher.parameters(), lr=0.1), student)
    with pytest.raises(TypeError, match="LBFGS"):
        plan.grow_optimizer(torch.optim.LBFGS(teacher.parameters()), student)
    with pytest.raises(ValueError, match="not one of the model"):
        plan.grow_optimizer(SGD(student.parameters(), lr=0.1), student)
    with pytest.raises(ValueError, match="student was not made"):
        plan.grow_optimizer(SGD(teacher.parameters(), lr=0.1), teacher)
    strange = SGD(teacher.parameters(), lr=0.1)
    strange.state[teacher[0].weight]["mystery"] = torch.ones_like(teacher[0].weight)
    with pytest.raises(TypeError, match="'mystery'"):
        plan.grow_optimizer(strange, student)


def test_an_optimizer_made_anew_can_load_the_state_of_a_deepened_one() -> None:
    """State dicts know parameters by their positions."""
    teacher, x = EXAMPLES["residual"].build()
    groups = [
        {"params": [(n, p) for n, p in teacher.named_parameters() if p.dim() > 1]},
        {"params": [(n, p) for n, p in teacher.named_parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=1e-3)
    loss(teacher, x).backward()
    optimizer.step()
    plan = net2net.plan_deepen(teacher, x)
    student = plan.apply(teacher)
    grown = plan.grow_optimizer(optimizer, student)
    for group, many in zip(grown.param_groups, (True, False), strict=True):
        expected = [(n, p) for n, p in student.named_parameters() if (p.dim() > 1) == many]
        assert list(zip(group["param_names"], map(id, group["params"]), strict=True)) == [
            (n, id(p)) for n, p in expected
        ]
    backwards = plan.grow_optimizer(SGD(reversed(list(teacher.parameters())), lr=0.1), student)
    theirs, mine = list(reversed(list(teacher.parameters()))), backwards.param_groups[0]["params"]
    assert [p.shape for p in mine[: len(theirs)]] == [p.shape for p in theirs]  # an order of one's own is kept


class Lion(Optimizer):
    """The sign of an average of gradients (Chen et al., 2023)."""

    def __init__(self, params: object, lr: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.sub_(torch.sign(0.9 * mean + 0.1 * p.grad), alpha=group["lr"])
                mean.lerp_(p.grad, 0.01)


def test_laws_of_other_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(teacher, x, 1.7, noise="none")
    student = plan.apply(teacher)
    optimizer, fresh = make(Lion, teacher), make(Lion, student)
    with pytest.raises(TypeError, match=r"Lion.* not known.*register_optimizer"):
        plan.grow_optimizer(optimizer, student)
    for name in ("LAWS", "MOMENTA", "ELEMENTWISE"):
        monkeypatch.setattr(net2net.optimizer, name, copy.copy(getattr(net2net.optimizer, name)))
    net2net.register_optimizer(Lion, {"exp_avg": 1}, momenta=["exp_avg"])
    for each, model in ((optimizer, teacher), (fresh, student)):
        loss(model, x).backward()
        each.step()
    grown = plan.grow_optimizer(optimizer, student)
    for p in student.parameters():
        expected = fresh.state[p]["exp_avg"]
        assert (grown.state[p]["exp_avg"] - expected).abs().max() <= 1e-10 * expected.abs().max()
    reset = plan.grow_optimizer(optimizer, student, state="replicas_reset")
    assert any(not reset.state[p]["exp_avg"].all() for p in student.parameters())
    with pytest.raises(TypeError, match=r"Lion.* cannot keep the teacher's dynamics"):
        plan.grow_optimizer(optimizer, student, dynamics=True)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((nn.Linear, {}), {}, "kind"),
        ((SGD, {}), {}, r"kind \(=SGD\) has laws already"),
        ((Lion, {"exp_avg": 0.5}), {}, r"laws\['exp_avg'\] \(=0.5\)"),
        ((Lion, {"exp_avg": 1}), {"momenta": ["other"]}, r"momenta \(=\['other'\]\)"),
        ((Lion, {"exp_avg": 1}), {}, "'exp_avg' is a momentum of other optimizers"),
        ((Lion, {"exp_avg_sq": 2}), {"momenta": ["exp_avg_sq"]}, "'exp_avg_sq' is a scale of other optimizers"),
    ],
)
def test_wrong_laws(arguments: tuple[object, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        net2net.register_optimizer(*arguments, **options)  # type: ignore[arg-type]
    assert Lion not in net2net.optimizer.LAWS
