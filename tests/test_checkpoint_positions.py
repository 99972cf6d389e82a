"""Optimizers' states in checkpoints that know parameters by their positions, or by names of a wrapper."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import net2net
import pytest
import torch
from models import EXAMPLES
from net2net.checkpoints.positions import _ways
from torch import nn
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
    with pytest.raises(ValueError, match=r"in 1 groups, and which these are are not the model's"):
        plan.grow_checkpoint(tmp_path / "c.pt", tmp_path / "b.pt", optimizer="AdamW")
    some = stepped(model, [{"params": list(model.parameters())[:-1]}])
    torch.save({"model": model.state_dict(), "optimizer": some.state_dict()}, tmp_path / "d.pt")
    with pytest.raises(ValueError, match=r"knows \d+ parameters by their positions, and the model has"):
        plan.grow_checkpoint(tmp_path / "d.pt", tmp_path / "b.pt", optimizer="AdamW")
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
