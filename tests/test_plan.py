"""Plans as data: files, state dicts, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import net2net
import pytest
import torch
from models import EXAMPLES
from net2net.changes import Change
from torch import nn


def plans(name: str) -> list[tuple[net2net.GrowthPlan, nn.Module, torch.Tensor]]:
    model, x = EXAMPLES[name].build()
    return [
        (net2net.plan_widen(model, x, 1.5, seed=5), model, x),
        (net2net.plan_deepen(model, x, data=[x]), model, x),
    ]


@pytest.mark.parametrize("name", ["plain_1d", "residual", "tied", "inception"])
def test_a_saved_plan_does_the_same(name: str, tmp_path: Path) -> None:
    for plan, model, _ in plans(name):
        plan.save(tmp_path / "plan.json")
        loaded = net2net.GrowthPlan.load(tmp_path / "plan.json")
        assert type(loaded) is type(plan)
        assert loaded.summary() == plan.summary()
        first, second = plan.apply(model).state_dict(), loaded.apply(model).state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) for k in first)
        loaded.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_text() == (tmp_path / "plan.json").read_text()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["again.json", "plan.json"]


@pytest.mark.parametrize("name", ["plain_1d", "residual", "tied", "inception"])
def test_a_state_dict_grows_like_the_model(name: str) -> None:
    for plan, model, _ in plans(name):
        state = model.state_dict()
        # As after loading from a file: shared tensors are no longer the same storage.
        state = {k: v.clone() for k, v in state.items()}
        grown = plan.grow_state_dict(state)
        expected = plan.apply(model).state_dict()
        assert grown.keys() == expected.keys()
        assert all(torch.equal(grown[k], expected[k]) for k in expected)


def test_misfits_are_named() -> None:
    plan, model, x = plans("plain_2d")[0]
    other, _ = EXAMPLES["plain_1d"].build()
    with pytest.raises(ValueError, match=r"model has no 10\.bias"):
        plan.apply(other)
    student = plan.apply(model)
    with pytest.raises(ValueError, match=r"0\.weight has shape"):
        plan.apply(student)
    state = model.state_dict()
    missing = {k: v for k, v in state.items() if k != "4.bias"}
    with pytest.raises(ValueError, match=r"state_dict has no 4\.bias"):
        plan.grow_state_dict(missing)
    with pytest.raises(ValueError, match="state_dict has extra, which"):
        plan.grow_state_dict({**state, "extra": torch.ones(2)})
    with pytest.raises(ValueError, match=r"state_dict's 4\.bias has shape \(3,\)"):
        plan.grow_state_dict({**state, "4.bias": torch.ones(3)})
    assert net2net.verify(model, student, x).ok


def edit(path: Path, change: Any) -> Path:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "not a growth plan"),
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d.update(kind="shrink"), "unknown kind"),
        (lambda d: d.pop("axes"), "damaged"),
        (lambda d: d["maps"][0]["index"].__setitem__(-1, [1000, d["maps"][0]["index"][-1][1]]), "outside"),
        (lambda d: d["maps"][0]["index"].__setitem__(0, [1, d["maps"][0]["index"][0][1]]), "outside|drops unit 0"),
        (lambda d: [m["share"].__setitem__(0, [0.3, m["share"][0][1]]) for m in d["maps"]], "not to 1"),
        (lambda d: d["maps"][0]["index"].append([0, 3]), "but"),
        (lambda d: d.update(noise="loud"), "noise"),
        (lambda d: d["axes"].pop(), "was changed"),
        (lambda d: d.update(seed=6), "was changed"),
    ],
)
def test_damaged_files_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    plan, _, _ = plans("plain_2d")[0]
    plan.save(tmp_path / "plan.json")
    with pytest.raises(ValueError, match=message):
        net2net.GrowthPlan.load(edit(tmp_path / "plan.json", change))


def test_a_file_whose_keys_were_sorted_is_the_same_plan() -> None:
    """The order of parameters tells which noise each has, and which an optimizer knows by its position."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, sizes in {"z": (6, 8), "y": (8, 9), "w": (9, 6)}.items():
        model.add_module(name, nn.Linear(*sizes, bias=False))
    plan = net2net.plan_widen(model, torch.randn(2, 6), 2.0)
    document = json.loads(json.dumps(plan.document(), sort_keys=True))
    again = net2net.GrowthPlan.from_document(document, "sorted")
    assert list(again.shapes) == list(plan.shapes)
    for a, b in zip(plan.apply(model).parameters(), again.apply(model).parameters(), strict=True):
        assert torch.equal(a, b)
    document["names"].reverse()
    with pytest.raises(ValueError, match="was changed after it was written"):
        net2net.GrowthPlan.from_document(document, "reversed")


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        net2net.GrowthPlan.load(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        net2net.GrowthPlan.load(tmp_path / "none.json")


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _, _ = plans("plain_2d")[0]
    path = tmp_path / "plan.json"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        plan.save(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_summaries_read_well() -> None:
    wide, deep = (p.summary() for p, _, _ in plans("plain_2d"))
    assert "6 -> 9" in wide
    assert "3 new layers" in deep
    assert "eval and train" in deep


class Cut(nn.Module):
    """Keeps a width, as code in the wild does."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.unlike = width, 3
        self.a, self.b = nn.Linear(5, 2 * width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.a(x).split([self.width, self.width], dim=1)
        out: torch.Tensor = self.b(left * right.sigmoid())
        return out


def test_attributes_are_changed_only_where_they_are_what_the_plan_says() -> None:
    torch.manual_seed(0)
    model, x = Cut(), torch.randn(2, 5)
    plan = net2net.plan_widen(model, x, 2)
    assert [str(change) for change in plan.changes] == ["width: 8 -> 16"]
    other = Cut()
    other.width = 7
    with pytest.raises(ValueError, match="another than the plan was made for: it has 7 where the plan says width: 8"):
        plan.apply(other)
    assert other.width == 7
    for name in ("unlike", "training", "forward", "__class__", "_modules", "nothing"):
        plan.changes = [type(plan.changes[0])("", name, 8, 16)]
        with pytest.raises(ValueError, match="another than the plan was made for"):
            plan.apply(model)


def test_a_users_class_within_one_of_fsdps_is_the_users() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = 4

    wrapped = Heads()
    wrapped.__class__ = type("FSDPHeads", (Heads,), {"__module__": "torch.distributed.fsdp._fully_shard"})
    Change("", "heads", 4, 6).check(wrapped)
    with pytest.raises(ValueError, match="is of torch's Conv2d"):
        Change("", "groups", 1, 2).check(nn.Conv2d(2, 2, 1))
