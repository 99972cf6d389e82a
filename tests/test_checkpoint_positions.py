"""Optimizers' states in checkpoints that know parameters by their positions, or by names of a wrapper."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import net2net
import pytest
import torch
from models import EXAMPLES
from net2net.checkpoints import grow_checkpoint
from net2net.checkpoints.positions import _ways
from net2net.cli import main
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.optim import AdamW, Optimizer

Groups = Callable[[nn.Module], list[dict[str, Any]]]


def by_decay(model: nn.Module) -> list[dict[str, Any]]:
    """As most training code has them."""
    own = list(model.parameters())
    return [
        {"params": [p for p in own if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in own if p.dim() < 2], "weight_decay": 0.0},
    ]


def head_first(model: nn.Module) -> list[dict[str, Any]]:
    """As fine-tuning has them."""
    own = list(model.parameters())
    return [{"params": own[-2:]}, {"params": own[:-2], "lr": 1e-4}]


def by_layer(model: nn.Module) -> list[dict[str, Any]]:
    """A learning rate for each layer: shapes do not tell layers of one shape apart."""
    layers = [list(m.parameters(recurse=False)) for m in model.modules()]
    return [{"params": own, "lr": 1e-3 * 0.9**i} for i, own in enumerate(reversed([own for own in layers if own]))]


def weights_and_biases(model: nn.Module) -> list[dict[str, Any]]:
    """Shapes do not tell a norm's two apart."""
    named = list(model.named_parameters())
    return [{"params": [p for n, p in named if n.endswith(end)]} for end in ("weight", "bias")]


def stepped(model: nn.Module, groups: list[dict[str, Any]]) -> Optimizer:
    optimizer = AdamW(groups, lr=torch.tensor(0.01))
    g = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype)
    optimizer.step()
    return optimizer


def assert_same_state(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got["param_groups"] == expected["param_groups"]
    assert got["state"].keys() == expected["state"].keys()
    for place, kept in expected["state"].items():
        for key, value in kept.items():
            assert torch.equal(got["state"][place][key], value), (place, key)


@pytest.mark.parametrize("grow", ["widen", "deepen"])
@pytest.mark.parametrize("groups", [by_decay, head_first])
def test_groups_by_position_are_told_apart_by_shapes(groups: Groups, grow: str, tmp_path: Path) -> None:
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(model, x, 1.5) if grow == "widen" else net2net.plan_deepen(model, x, data=[x])
    optimizer = stepped(model, groups(model))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW", model=model)
    got = torch.load(tmp_path / "b.pt", weights_only=True)
    student = plan.apply(model)
    expected = plan.grow_optimizer(optimizer, student)
    if grow == "widen":
        assert_same_state(got["optimizer"], expected.state_dict())
        return
    # A new layer's parameters are beside their neighbours' here, in the model's order, and at the end there.
    fresh = AdamW(groups(student), lr=torch.tensor(0.01))
    fresh.load_state_dict(got["optimizer"])
    places = {id(p): n for n, p in student.named_parameters()}
    mine, theirs = ({places[id(p)]: kept for p, kept in o.state.items()} for o in (fresh, expected))
    assert mine.keys() == theirs.keys()
    for name, kept in theirs.items():
        for key, value in kept.items():
            assert torch.equal(mine[name][key], value), (name, key)


@pytest.mark.parametrize("groups", [weights_and_biases, by_layer])
def test_what_shapes_do_not_tell_is_refused(groups: Groups, tmp_path: Path) -> None:
    model, x = EXAMPLES["residual"].build()
    optimizer = stepped(model, groups(model))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"in \d+ groups, and which these are cannot be told"):
        net2net.plan_widen(model, x, 1.5).grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW")
    assert not (tmp_path / "b.pt").exists()


def test_positions_that_are_not_the_models_are_refused(tmp_path: Path) -> None:
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    reversed_ = stepped(model, [{"params": list(model.parameters())[::-1]}])
    torch.save({"model": model.state_dict(), "optimizer": reversed_.state_dict()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"are not those of the model in that order"):
        plan.grow_checkpoint(tmp_path / "c.pt", tmp_path / "b.pt", optimizer="AdamW")
    some = stepped(model, [{"params": list(model.parameters())[:-1]}])
    torch.save({"model": model.state_dict(), "optimizer": some.state_dict()}, tmp_path / "d.pt")
    with pytest.raises(ValueError, match=r"knows \d+ parameters by their positions, and the model has"):
        plan.grow_checkpoint(tmp_path / "d.pt", tmp_path / "b.pt", optimizer="AdamW")
    assert not (tmp_path / "b.pt").exists()


class Stack(nn.Module):
    """So many layers of one shape that sorted names have another order: 0, 1, 10, 11, 2."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 6)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)) for _ in range(12))
        self.outside = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.outside(x)


def sorted_by_decay(model: nn.Module) -> list[dict[str, Any]]:
    """As minGPT has them."""
    own = dict(model.named_parameters())
    decay = sorted(name for name, p in own.items() if p.dim() > 1)
    return [{"params": [own[name] for name in decay]}, {"params": [own[n] for n in sorted(own.keys() - set(decay))]}]


def latter_first(model: nn.Module) -> list[dict[str, Any]]:
    own = list(model.parameters())
    return [{"params": [*own[26:], *own[:26]]}]


def stack(tmp_path: Path, groups: Groups) -> tuple[nn.Module, Optimizer, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Stack().double(), torch.randn(5, 4, dtype=torch.float64)
    optimizer = stepped(model, groups(model))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    return model, optimizer, x


@pytest.mark.parametrize("groups", [by_decay, sorted_by_decay])
def test_the_order_within_groups_is_asked_for(groups: Groups, tmp_path: Path) -> None:
    model, optimizer, x = stack(tmp_path, groups)
    plan = net2net.plan_widen(model, x, 1.5)
    with pytest.raises(ValueError, match=r"cannot be told from the shapes of their states: give order="):
        plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW")
    assert not (tmp_path / "b.pt").exists()
    right = "model" if groups is by_decay else "names"
    report = plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW", order=right)
    assert not report.by_position
    assert "position" not in str(report)
    got = torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"]
    assert_same_state(got, plan.grow_optimizer(optimizer, plan.apply(model)).state_dict())


@pytest.mark.parametrize("steps", [1, 2])
def test_an_order_of_ones_own(steps: int, tmp_path: Path) -> None:
    model, optimizer, x = stack(tmp_path, latter_first)
    name_of = {id(p): name for name, p in model.named_parameters()}
    order = [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]
    plans = [net2net.plan_widen(model, x, 1.5)]
    student = plans[0].apply(model)
    grown = plans[0].grow_optimizer(optimizer, student)
    if steps == 2:
        plans.append(net2net.plan_widen(student, x, 1.5, seed=3))
        student, grown = (after := plans[1].apply(student)), plans[1].grow_optimizer(grown, after)
    grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", plans, optimizer="AdamW", order=order)
    got = torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"]
    assert_same_state(got, grown.state_dict())
    # By the shapes alone it is not the model's.
    with pytest.raises(ValueError, match=r"are not those of the model in that order"):
        grow_checkpoint(tmp_path / "a.pt", tmp_path / "c.pt", plans, optimizer="AdamW")


def test_an_order_in_a_file(tmp_path: Path) -> None:
    model, optimizer, x = stack(tmp_path, latter_first)
    name_of = {id(p): name for name, p in model.named_parameters()}
    order = [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]
    (tmp_path / "order.txt").write_text("\n".join(order))
    plan = net2net.plan_widen(model, x, 1.5)
    plan.save(tmp_path / "plan.json")
    paths = [str(tmp_path / name) for name in ("a.pt", "b.pt")]
    options = ["--plan", str(tmp_path / "plan.json"), "--optimizer", "AdamW"]
    assert main(["grow", *paths, *options, "--order", str(tmp_path / "order.txt")]) == 0
    got = torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"]
    assert_same_state(got, plan.grow_optimizer(optimizer, plan.apply(model)).state_dict())


def test_new_layers_of_groups_sorted_by_name(tmp_path: Path) -> None:
    model, x = EXAMPLES["residual"].build()
    optimizer = stepped(model, sorted_by_decay(model))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    plan = net2net.plan_deepen(model, x, data=[x])
    plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW", order="names")
    student = plan.apply(model)
    fresh = AdamW(sorted_by_decay(student), lr=torch.tensor(0.01))
    fresh.load_state_dict(torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"])
    expected = plan.grow_optimizer(optimizer, student)
    assert len(expected.state) < len(list(student.parameters()))
    for p, kept in expected.state.items():
        for key, value in kept.items():
            assert torch.equal(fresh.state[p][key], value)


def test_an_order_that_only_the_students_positions_tell(tmp_path: Path) -> None:
    """The teacher's parameters are sorted by name in any case; the new layers' are not."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.a(x).relu()).relu())

    torch.manual_seed(0)
    model, x = Three(), torch.randn(3, 6)
    optimizer = stepped(model, sorted_by_decay(model))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    plan = net2net.plan_deepen(model, x)
    with pytest.raises(ValueError, match=r"cannot be told .* give order="):
        plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW", model=model)
    plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW", model=model, order="names")
    student = plan.apply(model)
    fresh = AdamW(sorted_by_decay(student), lr=torch.tensor(0.01))
    fresh.load_state_dict(torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"])
    for p, kept in plan.grow_optimizer(optimizer, student).state.items():
        assert torch.equal(fresh.state[p]["exp_avg"], kept["exp_avg"])


class Twin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) - self.b(x)


def test_several_optimizers_by_position(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Twin().double(), torch.randn(3, 6, dtype=torch.float64)
    plan, names = net2net.plan_widen(model, x, 1.5), [name for name, _ in model.a.named_parameters()]
    optimizers = {part: stepped(getattr(model, part), [{"params": getattr(model, part).parameters()}]) for part in "ab"}
    saved = {part: optimizer.state_dict() for part, optimizer in optimizers.items()}
    torch.save({"model": model.state_dict(), **saved}, tmp_path / "a.pt")
    orders: dict[str, Any] = {part: [f"{part}.{name}" for name in names] for part in "ab"}
    with pytest.raises(ValueError, match=r"has several optimizers .* \(a, b\), and nothing says which"):
        plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW", order=orders["a"])
    with pytest.raises(ValueError, match=r"order is of 'c', but .* has no optimizer of that name"):
        plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW", order={"c": "model"} | orders)
    plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW", order=orders)
    got, student = torch.load(tmp_path / "b.pt", weights_only=True), plan.apply(model)
    for part, optimizer in optimizers.items():
        assert_same_state(got[part], plan.grow_optimizer(optimizer, student).state_dict())
    # What the dict does not have is another network's, and stays.
    report = plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "c.pt", optimizer="AdamW", order={"b": orders["b"]})
    assert (report.optimizers, report.left) == (["b"], ["a"])
    got = torch.load(tmp_path / "c.pt", weights_only=True)
    assert_same_state(got["a"], optimizers["a"].state_dict())
    assert_same_state(got["b"], plan.grow_optimizer(optimizers["b"], student).state_dict())


def test_state_without_dimensions_is_of_a_number(tmp_path: Path) -> None:
    """An optimizer of all but the first layer, and of a number that is not the model's."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(4)))
    own = [*list(model.parameters())[1:], nn.Parameter(torch.ones(()))]
    for p in own:
        p.grad = torch.randn_like(p)
    (optimizer := AdamW(own)).step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="are not those of the model in that order"):
        net2net.plan_widen(model, torch.randn(2, 6), 1.5).grow_checkpoint(
            tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW"
        )


def test_a_tied_weight_has_one_place(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(4)))
    model[3].weight = model[0].weight
    optimizer = stepped(model, [{"params": model.parameters()}])
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    plan = net2net.plan_widen(model, torch.randn(3, 8), 2, layers=["1"])
    with pytest.raises(ValueError, match=r"optimizer has 0\.weight twice"):
        plan.grow_checkpoint(
            tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW", order=["0.weight", "3.weight", "1.weight"]
        )


def test_what_else_an_optimizers_dict_holds(tmp_path: Path) -> None:
    model, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    optimizer = stepped(model, [{"params": model.parameters()}])
    more = {"scale": torch.ones(2), "nested": {"model": model.state_dict()}}
    torch.save({**optimizer.state_dict(), **more}, tmp_path / "a.pt")
    plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW")
    got = torch.load(tmp_path / "b.pt", weights_only=True)
    assert torch.equal(got["scale"], more["scale"])
    expected = plan.grow_state_dict(model.state_dict())
    assert all(torch.equal(got["nested"]["model"][name], t) for name, t in expected.items())
    state = {**optimizer.state_dict()}
    state["param_groups"] = [{**state["param_groups"][0], "param_names": ["0.weight"]}]
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"params and 1 param_names"):
        plan.grow_checkpoint(tmp_path / "c.pt", tmp_path / "d.pt", optimizer="AdamW")


def test_a_flattened_state_dict_is_refused(tmp_path: Path) -> None:
    model, x = EXAMPLES["plain_2d"].build()
    optimizer = stepped(model, [{"params": model.parameters()}])
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    weights, state = get_state_dict(model, optimizer, options=options)
    torch.save({"model": weights, "optim": state}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"\(optim\) has a flattened state dict of an optimizer"):
        net2net.plan_widen(model, x, 1.5).grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW")


def test_what_nobody_claims_is_reported(tmp_path: Path) -> None:
    model, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    name, weight = next((n, p) for n, p in model.named_parameters() if p.dim() > 1)
    bias = next(n for n, p in model.named_parameters() if p.dim() == 1)
    others = {"best": [weight.data.clone()], "norms": {f"x.{bias}.y": dict(model.named_parameters())[bias].data}}
    torch.save({"model": model.state_dict(), "epoch": torch.ones(3), **others}, tmp_path / "a.pt")
    report = plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")
    assert report.left == ["best.0", f"norms.x.{bias}.y"], name
    assert "left as they were" in str(report)
    with pytest.raises(ValueError, match=r"optimizer \(='AdamW'\) is given, but .* has no optimizer's state dict"):
        plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "c.pt", optimizer="AdamW")


def test_several_copies_of_the_network_in_one_state_dict(tmp_path: Path) -> None:
    """As modules have them that train one and average it into another; a third is another network."""
    model, x = EXAMPLES["plain_2d"].build()
    names, state = list(model.state_dict()), model.state_dict()
    other = {name: torch.zeros(*t.shape, 2) for name, t in state.items()}
    plan = net2net.plan_widen(model, x, 1.5)
    every = {
        "net": state,
        "ema": {name: t * 2 if t.is_floating_point() else t for name, t in state.items()},
        "d": other,
    }
    flat = {f"{part}.{name}": t for part, its in every.items() for name, t in its.items()}
    torch.save({"state_dict": flat}, tmp_path / "a.pt")
    report = plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")
    assert report.models == ["state_dict.net", "state_dict.ema"]
    got = torch.load(tmp_path / "b.pt", weights_only=True)["state_dict"]
    for part in ("net", "ema"):
        expected = plan.grow_state_dict(every[part])
        assert all(torch.equal(got[f"{part}.{name}"], expected[name]) for name in names)
    assert all(torch.equal(got[f"d.{name}"], other[name]) for name in names)


def test_an_assumed_order_is_reported(tmp_path: Path) -> None:
    model, _, x = stack(tmp_path, lambda model: [{"params": list(model.parameters())}])
    plan = net2net.plan_widen(model, x, 1.5)
    report = plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW")
    assert report.by_position == ["optimizer"]
    assert "taken to be in the order of model.parameters()" in str(report)


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        ("sorted", ValueError, r"order \(='sorted'\) must be 'model' or 'names'"),
        (3, TypeError, "a list of names, not 3"),
        (["inside.weight"] * 2, ValueError, "order has 'inside.weight' twice"),
        (["inside.weight"], ValueError, "knows 52 parameters by their positions, and order has 1"),
        ("swapped", ValueError, r"has state of shape \(6, 4\) where order has inside.bias, of shape \(6,\)"),
        ("unknown", ValueError, "optimizer has nowhere.weight, which this plan does not know"),
    ],
)
def test_wrong_orders(order: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    model, _, x = stack(tmp_path, by_decay)
    names = [name for dim in (2, 1) for name, p in model.named_parameters() if p.dim() == dim]
    if order == "swapped":
        order = ["inside.bias", *(name for name in names if name != "inside.bias")]
    elif order == "unknown":
        order = ["nowhere.weight", *names[1:]]
    with pytest.raises(error, match=message):
        net2net.plan_widen(model, x, 1.5).grow_checkpoint(
            tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW", order=order
        )
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("named", ["keys", "param_names"])
def test_names_of_a_wrapper(named: str, tmp_path: Path) -> None:
    """As data parallelism and torch.compile save them."""
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    optimizer = AdamW(model.named_parameters(), lr=0.01)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    state = optimizer.state_dict()
    names = [f"module.{name}" for name in state["param_groups"][0]["param_names"]]
    if named == "keys":
        group = {**state["param_groups"][0], "params": names}
        del group["param_names"]
        state = {"state": {names[i]: kept for i, kept in state["state"].items()}, "param_groups": [group]}
    else:
        state["param_groups"][0]["param_names"] = names
    weights = {f"module.{name}": t for name, t in model.state_dict().items()}
    torch.save({"model": weights, "optimizer": state}, tmp_path / "a.pt")
    plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="AdamW")
    got = torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"]
    (group,) = got["param_groups"]
    assert group["params" if named == "keys" else "param_names"] == names
    expected = plan.grow_optimizer(optimizer, plan.apply(model)).state_dict()["state"]
    for i, name in enumerate(names):
        for key, value in expected[i].items():
            assert torch.equal(got["state"][name if named == "keys" else i][key], value)


def test_an_optimizer_alone(tmp_path: Path) -> None:
    """As some trainers keep it, in a file of its own."""
    model, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    optimizer = stepped(model, [{"params": list(model.parameters())}])
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    report = plan.grow_checkpoint(tmp_path / "optimizer.pt", tmp_path / "grown.pt", optimizer="AdamW")
    assert (report.models, report.optimizers) == ([], [""])
    got = torch.load(tmp_path / "grown.pt", weights_only=True)
    assert_same_state(got, plan.grow_optimizer(optimizer, plan.apply(model)).state_dict())


def test_ordered_dicts_keep_their_versions(tmp_path: Path) -> None:
    model, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    before = model.state_dict()
    for content in (before, {"model": before, "epoch": 3}):
        torch.save(content, tmp_path / "a.pt")
        (tmp_path / "b.pt").unlink(missing_ok=True)
        plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")
        got = torch.load(tmp_path / "b.pt", weights_only=True)
        after = got["model"] if "epoch" in content else got
        assert type(after) is type(before)
        assert {name: after._metadata[name] for name in before._metadata} == dict(before._metadata)  # type: ignore[attr-defined]


def test_conjugates_are_refused(tmp_path: Path) -> None:
    model, x = EXAMPLES["plain_2d"].build()
    state = {**model.state_dict(), "other": torch.randn(3, dtype=torch.complex64).conj()}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="conjugated"):
        net2net.plan_widen(model, x, 1.5).grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")


def test_ways() -> None:
    """Every way there is, by trying all of them."""
    a, b = (2, 3), (4,)
    assert _ways([3], [{a}, {b}, {a}], [a, b, a]) == [[0, 1, 2]]
    assert _ways([2, 1], [{a}, {a}, {b}], [a, b, a]) == [[0, 2, 1]]
    assert _ways([2, 1], [{a}, {b}, {a}], [a, b, a]) in ([[0, 1, 2], [2, 1, 0]], [[0, 1, 2]])
    assert len(_ways([1, 1], [{a}, {a}], [a, a])) == 2
    assert _ways([1, 1], [{a}, {b}], [a, a]) == []
    assert len(_ways([1, 1], [set(), {a}], [a, a])) == 2
    assert _ways([1, 1], [set(), {a}], [b, a]) == [[0, 1]]
    assert len(_ways([1] * 40, [{a}] * 40, [a] * 40)) == 2  # far too many to look at
