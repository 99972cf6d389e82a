"""Files of plans that someone made by hand, with a digest that fits: refused when read, or when applied, by name, and
before anything is touched."""

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import net2net
import pytest
import torch
from models import EXAMPLES
from net2net.activations import Activation, check
from net2net.plan import _digest
from torch import Tensor, nn

Change = Callable[[dict[str, Any]], Any]


def example(name: str = "plain_2d") -> tuple[nn.Module, Tensor]:
    return EXAMPLES[name].build()


@cache
def plan(kind: str) -> net2net.GrowthPlan:
    if kind == "repeat":
        return net2net.plan_deepen(*Residual.build(), method="residual")
    model, x = example()
    if kind == "widen":
        return net2net.plan_widen(model, x, 1.5, seed=5)
    if kind == "deepen":
        return net2net.plan_deepen(model, x, data=[x])
    return net2net.plan_kernels(model, x, {"0": 5})


def forged(original: net2net.GrowthPlan, change: Change) -> Any:
    """The document of a plan, changed, with the digest that then belongs to it."""
    document = copy.deepcopy(original.document())
    change(document)
    document["digest"] = _digest(document)
    return json.loads(json.dumps(document))


def load(original: net2net.GrowthPlan, change: Change) -> net2net.GrowthPlan:
    return net2net.GrowthPlan.from_document(forged(original, change), "the file")


class Residual(nn.Module):
    """With a block that can be repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.b(self.a(x).relu())
        return out

    @staticmethod
    def build() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), Residual(), nn.Linear(6, 3)).double(), torch.randn(2, 5).double()


def insertion(**values: Any) -> Change:
    return lambda d: d["insertions"][0].update(values)


def repetition(**values: Any) -> Change:
    return lambda d: d["repetitions"][0].update(values)


def axis(**values: Any) -> Change:
    return lambda d: d["axes"][0].update(values)


def share(first: float, second: float) -> Change:
    """Two replicas of every unit, of shares that need not fit, in all maps."""

    def change(d: dict[str, Any]) -> None:
        for m in d["maps"]:
            n = len({at for start, length in m["index"] for at in range(start, start + length)})
            m.update(index=[[0, n], [0, n]], share=[[first, n], [second, n]])

    return change


def test_what_is_forged_without_a_change_is_read() -> None:
    for kind in ("widen", "deepen", "repeat", "kernel"):
        expected = plan(kind).document()
        assert load(plan(kind), lambda d: None).document() == expected
        # As it is in the growth log of a checkpoint, where tuples stay such.
        assert net2net.GrowthPlan.from_document(expected, "the log").document() == expected
    assert isinstance(load(plan("widen"), share(0.25, 0.75)), net2net.GrowthPlan)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("widen", lambda d: d.update(version=True), "version True"),
        ("widen", lambda d: d.update(version=1.0), r"version 1\.0"),
        ("widen", lambda d: d.update(parameters=-5), r"parameters \(=-5\) must be a whole number"),
        ("widen", lambda d: d.update(parameters=10**6), r"parameters \(=1000000\)"),
        ("widen", lambda d: d["shapes"].update({"0.bias": [6.0]}), r"shapes\['0.bias'\] \(=6.0\)"),
        ("widen", lambda d: d.update(aliases={"x": "nothing"}), r"aliases\['x'\] \(='nothing'\)"),
        ("widen", lambda d: d.update(saved="abc"), r"saved \(='abc'\) must be a list"),
        ("widen", lambda d: d.update(skipped=[{"layers": [], "units": 3, "reason": ""}]), "layers of skipped"),
        ("widen", lambda d: d["widened"][0].update(layers=[]), "layers of widened"),
        ("widen", lambda d: d.update(noise_scale=1e308), r"noise_scale \(=1e\+308\)"),
        ("widen", lambda d: d.update(noise_scale=float("nan")), r"noise_scale \(=nan\)"),
        ("widen", lambda d: d.update(noise_scale="0.5"), r"noise_scale \(='0.5'\)"),
        ("widen", lambda d: d.update(noise_scale=None), r"noise_scale \(=None\)"),
        ("widen", lambda d: d.update(noise=[]), r"noise \(=\[\]\)"),
        ("widen", lambda d: d.update(seed=1.5), r"seed \(=1.5\)"),
        ("widen", lambda d: d.update(seed=-1), r"seed \(=-1\)"),
        ("widen", axis(tensor="nothing"), "about nothing, which is not among its shapes"),
        ("widen", axis(dim=-4), r"dim of .* \(=-4\)"),
        ("widen", axis(dim=9), r"dim of .* \(=9\)"),
        ("widen", axis(dim=True), r"dim of .* \(=True\)"),
        ("widen", axis(split=1), r"split of .* must be true or false"),
        ("widen", axis(map=-1), r"map of .* \(=-1\)"),
        ("widen", lambda d: d["axes"].append(d["axes"][0]), "grows twice"),
        ("widen", share(0.0, 1.0), "one positive number per student unit"),
        ("widen", share(-1.0, 2.0), "one positive number per student unit"),
        ("widen", share(0.5, 0.25), "sums to 0.75"),
        ("widen", share(float("nan"), 0.5), r"a share in a map \(=nan\)"),
        ("widen", lambda d: d["maps"][0]["index"].append([0, -3]), r"length of a run of a map \(=-3\)"),
        ("widen", lambda d: d["maps"][0]["index"].append([0, 0]), r"length of a run of a map \(=0\)"),
        ("widen", lambda d: d["maps"][0]["index"].append([0, 2.0]), r"length of a run of a map \(=2.0\)"),
        ("widen", lambda d: d["maps"][0].update(index=[[-2, 9]], share=[[0.5, 9]]), r"first position .* \(=-2\)"),
        ("widen", lambda d: d.update(changes=[change_of(name="")]), "name of changes"),
        ("widen", lambda d: d.update(changes=[change_of(after=0)]), r"the change of 0.stride \(=0\)"),
        ("widen", lambda d: d.update(changes=[change_of(before=[1, 1], after=[2])]), "from 2 numbers to 1"),
        ("deepen", insertion(eps=float("nan")), r"eps of .* \(=nan\)"),
        ("deepen", insertion(eps=-1.0), r"eps of .* \(=-1.0\)"),
        ("deepen", insertion(eps=10**30), r"eps of .* \(=10+\)"),
        ("deepen", lambda d: d["insertions"][2].update(groups=2), r"groups \(=2\) of .*: linear layers have none"),
        ("deepen", insertion(eps="0.1"), r"eps of .* \(='0.1'\)"),
        ("deepen", insertion(momentum="0.1"), r"momentum of .* \(='0.1'\)"),
        ("deepen", insertion(momentum=1e308), "momentum of"),
        ("deepen", lambda d: d["insertions"][0]["mean"][0].__setitem__(0, float("nan")), r"mean of .* \(=nan\)"),
        ("deepen", lambda d: d["insertions"][0]["var"][0].__setitem__(0, -1.0), r"var of .* \(=-1.0\)"),
        ("deepen", insertion(layer="nothing"), r"layer \(='nothing'\) of .* has no tensors"),
        ("deepen", insertion(module=""), "module of insertions"),
        ("deepen", insertion(channels="6"), "channels of"),
        ("deepen", insertion(channels=10**9, mean=None, var=None), "more than any growth step is for"),
        ("deepen", insertion(kernel_sizes=[[10**6 + 1, 10**6 + 1]]), "more than any growth step is for"),
        ("deepen", insertion(kernel_sizes=[[3, 3, 3, 3]]), "more than 3 dimensions"),
        ("deepen", insertion(kernel_sizes=[]), "names no layers"),
        ("deepen", lambda d: d["insertions"].append(d["insertions"][0]), "is a place 2 times"),
        ("deepen", lambda d: d["insertions"][0]["activation"].update(arguments={"inplace": True}), "inplace"),
        ("repeat", repetition(count=10**9), r"count of 1 \(=1000000000\)"),
        ("repeat", repetition(count=True), r"count of 1 \(=True\)"),
        ("repeat", repetition(zeroed=[]), "zeroed of 1"),
        ("repeat", repetition(zeroed=["nothing"]), "no parameter nothing"),
        ("repeat", repetition(several=None), "several of 1"),
        ("repeat", lambda d: d["repetitions"].append({**d["repetitions"][0], "module": "1.b", "zeroed": ["bias"]}),
         "1.b is a place within 1, which is repeated"),
        ("kernel", lambda d: d.update(sizes={"nothing": [5, 5]}), "about nothing.weight"),
        ("kernel", lambda d: d.update(sizes={"10": []}), "not a convolution's own"),
        ("kernel", lambda d: d.update(sizes={"0": [5.0, 5]}), r"the size of 0 \(=5.0\)"),
        ("kernel", lambda d: d.update(sizes={"0": [10**6 + 1, 10**6 + 1]}), "more than any growth step is for"),
    ],
)  # fmt: skip
def test_what_a_plan_cannot_say_is_refused_by_name(kind: str, change: Change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(plan(kind), change)


def change_of(**values: Any) -> dict[str, Any]:
    return {"module": "0", "name": "stride", "before": 1, "after": 2, **values}


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([{"index": [[0, 2 * 10**9]], "share": [[1.0, 2 * 10**9]]}], "number of positions of a map"),
        ([{"index": [[0, 2**24]], "share": [[1.0, 2**24]]}] * 5, "number of positions of all maps"),
        ([{"index": [[10**18, 5]], "share": [[1.0, 5]]}], "first position of a run of a map"),
    ],
)
def test_a_short_file_cannot_fill_the_memory(maps: list[Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("net2net.map_runs.np.arange", lambda *_, **__: pytest.fail("a run is written out"))
    with pytest.raises(ValueError, match=message):
        load(plan("widen"), lambda d: d.update(maps=maps))


def test_shapes_of_any_size_cost_nothing() -> None:
    def change(d: dict[str, Any]) -> None:
        name = d["axes"][0]["tensor"]
        d["shapes"][name] = [10**17] * len(d["shapes"][name])

    with pytest.raises(ValueError, match="drops unit"):
        load(plan("widen"), change)


class Holding(nn.Module):
    """A class with a table, and modules with a configuration."""

    TABLE = {"a": torch.ones(3)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.conf: dict[str, Any] = {"drop": 0.1}
        self.known = dict.fromkeys("ab")
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).relu()) + self.TABLE["a"]
        return out


@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("name", ["TABLE", "__annotations__", "__dict__", "conf", "known", "_modules", "a"])
def test_only_caches_are_emptied(name: str, consume: bool) -> None:
    torch.manual_seed(0)
    model, x = Holding(), torch.randn(2, 5)
    state = copy.deepcopy(model.state_dict())
    annotations = dict(nn.Module.__annotations__)
    bad = load(net2net.plan_widen(model, x, 2), lambda d: d.update(caches=[["", name]]))
    with pytest.raises(ValueError, match=f"model has no dict {name}, which this plan empties"):
        bad.apply(model, consume=consume)
    assert list(Holding.TABLE) == ["a"]
    assert nn.Module.__annotations__ == annotations
    assert model.conf == {"drop": 0.1}
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    model(x)  # not spent either


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("widen", lambda d: d.update(changes=[change_of(before=[1, 1], after=[2, 2])]), "of torch's Conv2d"),
        ("widen", lambda d: d.update(changes=[change_of(module="99")]), "model has no module '99'"),
        ("widen", lambda d: d.update(caches=[["99", "x"]]), r"no dict 99\.x"),
        ("deepen", insertion(module="99"), "model has no module '99'"),
        ("deepen", insertion(module="0.weight"), r"model has no module '0\.weight'"),
        ("deepen", insertion(module="0.forward"), r"model has no module '0\.forward'"),
    ],
)
@pytest.mark.parametrize("consume", [False, True])
def test_what_does_not_fit_the_model_is_refused_before_it_is_touched(
    kind: str, change: Change, message: str, consume: bool
) -> None:
    model, x = example()
    state = copy.deepcopy(model.state_dict())
    bad = load(plan(kind), change)
    with pytest.raises(ValueError, match=message):
        bad.apply(model, consume=consume)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    model.eval()(x)  # not spent either


def test_a_kernel_plan_is_for_convolutions() -> None:
    """Other modules may have weights of such shapes."""

    class Kernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4, 3, 3))

    conv, other = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False)), nn.Sequential(Kernel())
    bad = net2net.plan_kernels(conv, torch.randn(1, 4, 5, 5), {"0": 5})
    with pytest.raises(ValueError, match="0 is a Kernel in model, but this plan is for a convolution"):
        bad.apply(other)


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (Activation("ReLU", {"inplace": True}, idempotent=True), "has arguments that no plan gives"),
        (Activation("PReLU", {"num_parameters": 10**9}, kappa=1.25), "has arguments that no plan gives"),
        (Activation("Hardtanh", {"min_val": -100.0, "max_val": 100.0}, kappa=2.0), "does not carry numbers in pairs"),
        (Activation("Softplus", {"threshold": 10.0}, kappa=1.0), "does not carry numbers in pairs"),
    ],
)
def test_activations_are_what_planning_gives(activation: Activation, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(activation)
    check(Activation("Softplus", {"beta": 2.0, "threshold": 20.0}, kappa=1.0))
    check(Activation("GELU", {"approximate": "tanh"}, kappa=1.0))
