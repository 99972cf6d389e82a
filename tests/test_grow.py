"""grow: model, optimizer, schedule and moving average in one step."""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import net2net
import pytest
import torch
from models import EXAMPLES
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def loss(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return (out - torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).square().mean()


class Training:
    """A model in the middle of its training, with all that goes along."""

    def __init__(self, name: str = "residual", steps: int = 3) -> None:
        self.model, self.x = EXAMPLES[name].build()
        self.model.train()
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        self.optimizer: Optimizer = AdamW(
            [{"params": matrices}, {"params": vectors, "weight_decay": 0.0, "lr": 2e-3}], lr=1e-3
        )
        self.scheduler = lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        for _ in range(steps):
            step(self.model, self.optimizer, self.x, self.scheduler, self.ema)

    def state(self) -> Any:
        values = [o.state_dict() for o in (self.model, self.optimizer, self.scheduler, self.ema)]
        return copy.deepcopy(values)

    def grow(self, **options: Any) -> net2net.Grown:
        given = {"optimizer": self.optimizer, "scheduler": self.scheduler, "ema": self.ema, **options}
        return net2net.grow(self.model, self.x, **given)


def step(model: nn.Module, optimizer: Any, x: Tensor, scheduler: Any = None, ema: Any = None) -> None:
    optimizer.zero_grad()
    loss(model, x).backward()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    if ema is not None:
        ema.update_parameters(model)


def assert_equal(a: Any, b: Any) -> None:
    left, right = (torch.utils._pytree.tree_leaves(s) for s in (a, b))
    assert len(left) == len(right)
    for x, y in zip(left, right, strict=True):
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y


def difference(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    return net2net.verify(copy.deepcopy(a).eval(), copy.deepcopy(b).eval(), x).max_rel


GROWTHS: dict[str, dict[str, Any]] = {
    "wider": {"widen": 1.5},
    "deeper": {"deepen": True},
    "both": {"widen": {"width": 1.5, "split": "dyadic", "seed": 3}, "deepen": {"count": 2}},
}


@pytest.mark.parametrize("state", ["exact", "replicas_reset", "reset"])
@pytest.mark.parametrize("how", GROWTHS)
def test_all_grow_together(how: str, state: str) -> None:
    old = Training()
    before = old.state()
    grown = old.grow(**GROWTHS[how], state=state)
    assert_equal(before, old.state())
    assert len(grown.plans) == len(GROWTHS[how])
    assert isinstance(grown.ema, AveragedModel)
    assert difference(old.model, grown.model, old.x) < 1e-9
    assert difference(old.ema.module, grown.ema.module, old.x) < 1e-9
    assert difference(old.model, old.ema.module, old.x) > 1e-5
    assert grown.ema.n_averaged == old.ema.n_averaged == 3
    assert grown.report.verified is not None
    assert grown.report.verified.ok
    assert grown.model.training

    # Every parameter is in the group of its kind, whether old or new.
    assert isinstance(grown.optimizer, Optimizer)
    sizes = [{p.dim() for p in group["params"]} for group in grown.optimizer.param_groups]
    assert sizes[0] == {2, 4}
    assert 1 in sizes[1]
    held = [id(p) for group in grown.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, grown.model.parameters()))

    # All of it works, by itself: the old ones go on as if nothing had been.
    assert isinstance(grown.scheduler, lr_scheduler.LRScheduler)
    assert grown.scheduler.optimizer is grown.optimizer
    for _ in range(4):
        step(grown.model, grown.optimizer, old.x, grown.scheduler, grown.ema)
    assert_equal(before, old.state())
    for _ in range(4):
        step(old.model, old.optimizer, old.x, old.scheduler, old.ema)
    assert [g["lr"] for g in grown.optimizer.param_groups] == [g["lr"] for g in old.optimizer.param_groups]
    assert grown.ema.n_averaged == old.ema.n_averaged == 7
    assert_equal(old.state(), Training(steps=7).state())


def test_new_layers_keep_their_neighbours_rates() -> None:
    old = Training("plain_2d")
    convolution = old.model[0].weight
    old.optimizer = SGD(
        [{"params": [convolution], "lr": 1.0}, {"params": [p for p in old.model.parameters() if p is not convolution]}],
        lr=0.1,
    )
    old.scheduler = lr_scheduler.StepLR(old.optimizer, 2, 0.5)
    grown = old.grow(deepen={"after": "2"})
    (new,) = grown.plans[0].inserted
    first = {id(p) for p in grown.optimizer.param_groups[0]["params"]}
    assert first == {id(grown.model.get_submodule(n).weight) for n in ("0", f"{new}.conv")}


def test_the_rest_is_none() -> None:
    model, x = EXAMPLES["mlp"].build()
    grown = net2net.grow(model, x, widen=2)
    assert grown[1:4] == (None, None, None)
    assert not grown.model.training
    assert grown.report.optimizer_bytes == (0, 0)
    before, after = grown.report.model_bytes
    assert before == sum(p.numel() * 8 for p in model.parameters())
    assert after == sum(p.numel() * 8 for p in grown.model.parameters())
    assert "same function" in str(grown.report)
    assert grown.report.max_abs < 1e-12
    assert "not compared" in str(net2net.grow(model, x, widen=2, verify=False).report)


# -- moving averages -----------------------------------------------------------------------------------------------


def test_averages_of_all_kinds() -> None:
    old = Training()
    module = old.ema.module
    kinds: dict[str, Any] = {
        "averaged": old.ema,
        "module": module,
        "state dict": module.state_dict(),
        "averaged state dict": old.ema.state_dict(),
    }
    averages = {name: old.grow(**GROWTHS["both"], ema=ema).ema for name, ema in kinds.items()}
    expected = averages["averaged"].module.state_dict()
    assert type(averages["module"]) is type(module)
    assert_equal(averages["module"].state_dict(), expected)
    for name, theirs in (("state dict", expected), ("averaged state dict", averages["averaged"].state_dict())):
        assert sorted(averages[name]) == sorted(theirs)
        assert all(torch.equal(averages[name][key], t) for key, t in theirs.items())
    assert averages["averaged"].multi_avg_fn is old.ema.multi_avg_fn


def test_an_average_of_something_else() -> None:
    old = Training()
    other, _ = EXAMPLES["mlp"].build()
    with pytest.raises(ValueError, match="ema is not of the model's kind: model has"):
        old.grow(widen=1.5, ema=AveragedModel(other))
    with pytest.raises(ValueError, match="ema is not of the model's kind: state_dict has"):
        old.grow(widen=1.5, ema=other.state_dict())
    with pytest.raises(TypeError, match=r"ema \(=int\)"):
        old.grow(widen=1.5, ema=3)


# -- learning rates ------------------------------------------------------------------------------------------------


def rates(scheduler: Any, steps: int = 8) -> list[list[float]]:
    found = [scheduler.get_last_lr()]
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr())
    return found


@pytest.mark.parametrize("lr", ["tenth", 0.25])
def test_other_rates(lr: str | float) -> None:
    old = Training(steps=6)
    grown = old.grow(widen=1.5, lr=lr)
    mine, theirs = rates(grown.scheduler), rates(old.scheduler)
    initial, now = (1e-3, 2e-3), theirs[0]
    assert now[0] < initial[0]
    factors = [0.25, 0.25] if lr == 0.25 else [0.1 * a / b for a, b in zip(initial, now, strict=True)]
    if lr == "tenth":
        assert mine[0] == pytest.approx([1e-4, 2e-4])
    for a, b in zip(mine, theirs, strict=True):
        assert a == pytest.approx([x * f for x, f in zip(b, factors, strict=True)], abs=1e-15)


def test_rates_without_a_schedule() -> None:
    model, x = EXAMPLES["mlp"].build()
    optimizer = SGD(model.parameters(), lr=0.5)
    assert net2net.grow(model, x, widen=2, optimizer=optimizer, lr="tenth").optimizer.param_groups[0]["lr"] == 0.05
    assert net2net.grow(model, x, widen=2, optimizer=optimizer, lr=0.5).optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_the_teachers_dynamics() -> None:
    old = Training("gated")
    grown = old.grow(widen={"width": 1.7, "noise": "none"}, lr="dynamics")
    for _ in range(6):
        step(grown.model, grown.optimizer, old.x, grown.scheduler, grown.ema)
        step(old.model, old.optimizer, old.x, old.scheduler, old.ema)
    assert difference(old.model, grown.model, old.x) < 1e-9


# -- state ---------------------------------------------------------------------------------------------------------


def test_momentum_of_replicas_is_reset() -> None:
    old = Training()
    exact = old.grow(widen=1.3)
    part = old.grow(widen=1.3, state="replicas_reset")
    plan = exact.plans[0]
    assert isinstance(exact.optimizer, Optimizer)
    assert isinstance(part.optimizer, Optimizer)
    kept = 0
    for name, p in exact.model.named_parameters():
        with_replicas = torch.zeros(p.shape, dtype=torch.bool)
        for axis in plan._grown_axes(name):
            copies = (axis.index.bincount() > 1)[axis.index]
            with_replicas |= copies.view([-1 if d == axis.dim else 1 for d in range(p.dim())])
        mine, theirs = (g.optimizer.state[g.model.get_parameter(name)] for g in (part, exact))
        assert torch.equal(mine["exp_avg_sq"], theirs["exp_avg_sq"])
        assert mine["step"] == theirs["step"]
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"].masked_fill(with_replicas, 0))
        kept += int((mine["exp_avg"] != 0).sum())
    assert kept
    assert not old.grow(widen=1.3, state="reset").optimizer.state
    consumed = net2net.plan_widen(old.model, old.x, 1.3)
    student = consumed.apply(old.model, consume=True)
    again = consumed.grow_optimizer(old.optimizer, student, consume=True, state="replicas_reset")
    assert_equal(again.state_dict(), part.optimizer.state_dict())


# -- bad input -----------------------------------------------------------------------------------------------------


def test_bad_input_is_named() -> None:
    old = Training("mlp")
    before = old.state()
    with pytest.raises(ValueError, match="nothing to do"):
        old.grow(deepen=False)
    with pytest.raises(ValueError, match="widen has 'factor', which is no argument of plan_widen: width, layers"):
        old.grow(widen={"factor": 2})
    with pytest.raises(ValueError, match=r"width \(=0.5\)"):
        old.grow(widen=0.5)
    with pytest.raises(ValueError, match=r"state \(='new'\)"):
        old.grow(widen=2, state="new")
    with pytest.raises(ValueError, match=r"lr \(='half'\)"):
        old.grow(widen=2, lr="half")
    for lr in (0, -1.0, True, float("nan")):
        with pytest.raises(ValueError, match=r"lr \(="):
            old.grow(widen=2, lr=lr)
    with pytest.raises(TypeError, match=r"optimizer \(=str\)"):
        old.grow(widen=2, optimizer="sgd")
    for options in ({}, {"scheduler": None, "state": "reset"}, {"scheduler": None, "lr": 0.5}):
        with pytest.raises(ValueError, match="is given without an optimizer"):
            old.grow(widen=2, optimizer=None, **options)
    with pytest.raises(ValueError, match="another optimizer"):
        old.grow(widen=2, optimizer=SGD(old.model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="Mine"):
        old.grow(widen=2, scheduler=type("Mine", (lr_scheduler.StepLR,), {})(old.optimizer, 3))
    old.optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(ValueError, match=r"param_groups\[0\] is 0 now"):
        old.grow(widen=2, lr="tenth")
    old.optimizer.param_groups[0]["lr"] = before[1]["param_groups"][0]["lr"]
    assert_equal(before, old.state())


def test_a_student_that_differs_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Training("mlp")
    before = old.state()
    apply = net2net.GrowthPlan.apply

    def wrong(self: net2net.GrowthPlan, model: nn.Module, **options: Any) -> nn.Module:
        student = apply(self, model, **options)
        with torch.no_grad():
            student[0].bias += 1
        return student

    monkeypatch.setattr(net2net.GrowthPlan, "apply", wrong)
    with pytest.raises(RuntimeError, match=r"the grown model is not its teacher's equal.*Nothing was changed"):
        old.grow(widen=2)
    assert_equal(before, old.state())
    assert old.grow(widen=2, verify=False).report.verified is None


def test_the_papers_noise_may_differ() -> None:
    old = Training("mlp")
    grown = old.grow(widen={"width": 2, "noise": "paper"})
    assert not grown.report.verified.ok
    assert "NOT the same function" in str(grown.report)


def test_what_is_left_to_do_is_noted() -> None:
    old = Training("mlp")
    assert old.grow(widen=2).report.notes == []
    first = old.grow(widen=1.5, lr="dynamics")
    again = net2net.grow(first.model, old.x, widen=2, optimizer=first.optimizer)
    assert again.report.notes == []
    old.optimizer.register_step_pre_hook(lambda *_: None)
    (note,) = old.grow(widen=2).report.notes
    assert "hooks" in note


# -- wrapped models --------------------------------------------------------------------------------------------------


def test_compiled_models() -> None:
    old = Training("mlp")
    compiled = torch.compile(old.model, backend="eager")
    grown = net2net.grow(compiled, old.x, widen=2, optimizer=old.optimizer, ema=AveragedModel(compiled))
    assert type(grown.model) is type(old.model)
    assert [n.split()[0] for n in grown.report.notes] == ["model", "ema"]
    assert "torch.compiler.reset()" in str(grown.report)
    grown.ema.update_parameters(grown.model)
    old.model.compile(backend="eager")
    in_place = net2net.grow(old.model, old.x, widen=2, optimizer=old.optimizer)
    assert "compiled" in in_place.report.notes[0]
    assert in_place.model._compiled_call_impl is None
    step(in_place.model, in_place.optimizer, old.x)
    torch.compiler.reset()


@pytest.fixture
def process_group() -> Iterator[None]:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    with tempfile.TemporaryDirectory() as folder:
        store = torch.distributed.FileStore(str(Path(folder) / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_live_parallel_models_are_refused() -> None:
    old = Training("mlp")
    parallel = nn.parallel.DistributedDataParallel(old.model)
    with pytest.raises(ValueError, match=r"grow model.module, then wrap the student again"):
        net2net.grow(parallel, old.x, widen=2)
    with pytest.raises(ValueError, match=r"inner in model \(=DistributedDataParallel\)"):
        net2net.grow(nn.Sequential().append(nn.Identity()).append(nn.ModuleDict({"inner": parallel})), old.x, widen=2)
    grown = net2net.grow(parallel.module, old.x, widen=2, optimizer=old.optimizer)
    step(nn.parallel.DistributedDataParallel(grown.model), grown.optimizer, old.x)

    from torch.distributed.fsdp import fully_shard

    sharded = fully_shard(EXAMPLES["mlp"].build()[0], mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    with pytest.raises(ValueError, match=r"sharded by FSDP: grow a live one by net2net\.grow_sharded"):
        net2net.grow(sharded, old.x, widen=2)


def test_scaled_gradients() -> None:
    """A GradScaler needs nothing: it holds no parameters between its steps."""
    old = Training("mlp", steps=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for model, optimizer in [(old.model, old.optimizer), (old.grow(widen=2)[:2])]:
        assert isinstance(optimizer, Optimizer)
        before = copy.deepcopy(model)
        optimizer.zero_grad()
        scaler.scale(loss(model, old.x)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert difference(before, model, old.x) > 1e-6


def test_a_model_without_memory() -> None:
    model, x = EXAMPLES["mlp"].build()
    model.to("meta")
    grown = net2net.grow(model, x, widen=2, optimizer=Adam(model.parameters()))
    assert grown.report.verified is None
    assert grown.model[0].weight.shape == (16, 5)
