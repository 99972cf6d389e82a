"""Growth from checkpoint to checkpoint: the bits of growth in memory, in every format, and networks made of the log."""

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import net2net
import pytest
import torch
from models import EXAMPLES
from net2net.checkpoints import formats, streams, tally
from net2net.cli import main
from net2net.rmsprop import RMSpropTF
from net2net.training import State, checkpoint, moving_average
from torch import nn

safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
NETWORKS = ["plain_1d", "plain_3d", "gated", "tied", "crosswise", "inception"]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-3, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, eps=1.0, momentum=0.9, centered=True),
    "RMSpropTF": lambda p: RMSpropTF(p, 0.01),
}


@pytest.fixture(autouse=True)
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small tensors are cut too."""
    large = "inception" in request.node.name
    for module in (streams, tally):
        monkeypatch.setattr(module, "PIECE_BYTES", 20_000 if large else 200)


def base(name: str) -> nn.Module:
    return EXAMPLES[name].build(seed=7)[0]


def plans_of(name: str, **options: Any) -> tuple[list[net2net.GrowthPlan], nn.Module, torch.Tensor]:
    model, x = EXAMPLES[name].build()
    return [net2net.plan_widen(model, x, 1.5, seed=5, **options), net2net.plan_deepen(model, x, data=[x])], model, x


def clones(state: dict[str, Any]) -> dict[str, Any]:
    return {name: t.clone() for name, t in state.items()}


def assert_same(got: Any, expected: Any, where: str = "") -> None:
    """Bit by bit, whatever it is."""
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype, where
        assert got.shape == expected.shape, where
        as_bytes = [t.detach().contiguous().view(-1).view(torch.uint8) for t in (got, expected)]
        assert torch.equal(*as_bytes), where
    elif isinstance(expected, dict):
        assert set(got) == set(expected), where
        for key in expected:
            assert_same(got[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected), where
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_same(a, b, f"{where}.{i}")
    else:
        assert got == expected, where


def stepped(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    """An optimizer after two steps with random gradients."""
    optimizer = OPTIMIZERS[kind](model.parameters())
    g = torch.Generator().manual_seed(3)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)
        optimizer.step()
    return optimizer


def nothing_hidden(folder: Path) -> None:
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_grows_like_a_state_dict(name: str, tmp_path: Path) -> None:
    for i, plan in enumerate((plans := plans_of(name))[0]):
        _, model, x = plans
        state = clones(model.state_dict())
        safetensors_torch.save_file(state, tmp_path / "a.safetensors", {"format": "pt", "mine": "kept"})
        target = tmp_path / f"{i}.safetensors"
        report = plan.grow_checkpoint(tmp_path / "a.safetensors", target)
        expected = plan.grow_state_dict(state)
        assert_same(safetensors_torch.load_file(target), expected)
        assert report.bytes_written == sum(t.nbytes for t in expected.values())
        assert report.tensors == len(expected)
        assert not report.not_finite
        with safetensors_torch.safe_open(target, "pt") as file:
            assert file.metadata()["mine"] == "kept"
        student = net2net.load(target, partial(base, name))
        assert net2net.verify(model, student.eval(), x).ok
        assert_same(student.state_dict(), expected)
    nothing_hidden(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("noise", ["cancelling", "paper", "none"])
def test_every_dtype_and_noise(dtype: torch.dtype, noise: str, tmp_path: Path) -> None:
    plans, model, _ = plans_of("plain_2d", noise=noise)
    state = clones(model.to(dtype).state_dict())
    safetensors_torch.save_file(state, tmp_path / "a.safetensors")
    plans[0].grow_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert_same(safetensors_torch.load_file(tmp_path / "b.safetensors"), plans[0].grow_state_dict(state))


def test_kernels_grow_too(tmp_path: Path) -> None:
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_kernels(model, x, {"conv*": 5})
    state = clones(model.state_dict())
    safetensors_torch.save_file(state, tmp_path / "a.safetensors")
    plan.grow_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert_same(safetensors_torch.load_file(tmp_path / "b.safetensors"), plan.grow_state_dict(state))
    assert net2net.verify(model, net2net.load(tmp_path / "b.safetensors", partial(base, "residual")).eval(), x).ok


def test_several_growths_one_after_the_other(tmp_path: Path) -> None:
    """In one run, and in two; the log has all of them."""
    model, x = EXAMPLES["residual"].build()
    safetensors_torch.save_file(model.state_dict(), tmp_path / "a.safetensors")
    student, plans = model, []
    for make in (
        lambda m: net2net.plan_widen(m, x, 1.5),
        lambda m: net2net.plan_kernels(m, x, {"conv1": 5}),
        lambda m: net2net.plan_deepen(m, x, data=[x]),
        lambda m: net2net.plan_widen(m, x, 1.25, seed=9),
    ):
        plans.append(make(student))
        student = plans[-1].apply(student)
    net2net.grow_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors", plans[:3])
    plans[3].grow_checkpoint(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert_same(safetensors_torch.load_file(tmp_path / "c.safetensors"), student.state_dict())
    log = net2net.growth_log(tmp_path / "c.safetensors")
    assert [entry["plan"]["kind"] for entry in log] == ["widen", "kernel", "deepen", "widen"]
    assert [entry["source"] for entry in log] == ["a.safetensors"] * 3 + ["b.safetensors"]
    loaded = net2net.load(tmp_path / "c.safetensors", partial(base, "residual")).eval()
    assert net2net.verify(model, loaded, x).ok
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in student.named_parameters()]
    nothing_hidden(tmp_path)


@pytest.mark.parametrize("left_out", ["b.weight", "c.weight", None])
def test_tied_weights_have_the_names_that_they_had(left_out: str | None, tmp_path: Path) -> None:
    """Files have both names, or one of them; residual copies have them too."""
    plans, model, x = plans_of("tied")
    state = clones(model.state_dict())
    state.pop(left_out, None)
    safetensors_torch.save_file(state, tmp_path / "a.safetensors")
    for i, plan in enumerate(plans):
        target = tmp_path / f"{i}.safetensors"
        plan.grow_checkpoint(tmp_path / "a.safetensors", target)
        assert_same(safetensors_torch.load_file(target), plan.grow_state_dict(state))
        student = net2net.load(target, partial(base, "tied"))
        assert net2net.verify(model, student, x).ok
        assert len({id(p) for p in student.parameters()}) == len(list(student.parameters()))


def with_block() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Block())


def test_repeated_blocks(tmp_path: Path) -> None:
    model = with_block()
    x = torch.randn(2, 4)
    plan = net2net.plan_deepen(model, x, method="residual")
    state = clones(model.state_dict())
    safetensors_torch.save_file(state, tmp_path / "a.safetensors")
    plan.grow_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert_same(safetensors_torch.load_file(tmp_path / "b.safetensors"), plan.grow_state_dict(state))
    student = net2net.load(tmp_path / "b.safetensors", with_block)
    assert net2net.verify(model, student, x).ok


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(self.a(x).relu())


def test_shards_and_their_index(tmp_path: Path) -> None:
    plans, model, x = plans_of("residual")
    state = clones(model.state_dict())
    source = tmp_path / "sharded"
    source.mkdir()
    names = list(state)
    files = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for file_name, own in files.items():
        safetensors_torch.save_file({k: state[k] for k in own}, source / file_name, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in state.values()), "total_parameters": 1, "by": "me"},
        "weight_map": {name: file_name for file_name, own in files.items() for name in own},
    }
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "config.json").write_text("{}")
    for i, plan in enumerate(plans):
        target = tmp_path / f"grown{i}"
        plan.grow_checkpoint(source if i else source / "model.safetensors.index.json", target)
        expected = plan.grow_state_dict(state)
        grown = json.loads((target / "model.safetensors.index.json").read_text())
        got = {}
        for file_name in files:
            tensors = safetensors_torch.load_file(target / file_name)
            assert {grown["weight_map"][name] for name in tensors} == {file_name}
            got |= tensors
        assert_same(got, expected)
        assert set(grown["weight_map"]) == set(expected)
        assert grown["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
        assert grown["metadata"]["by"] == "me"
        assert "total_parameters" not in grown["metadata"]
        assert len(list(target.iterdir())) == 3
        assert net2net.verify(model, net2net.load(target, partial(base, "residual")).eval(), x).ok
    nothing_hidden(tmp_path)


def test_numbers_that_are_none_pass_through_and_are_reported(tmp_path: Path) -> None:
    model, x = EXAMPLES["plain_2d"].build(torch.float32)
    plan = net2net.plan_widen(model, x, 1.5)
    state = clones(model.state_dict())
    state["4.weight"].view(torch.int32)[1, 2, 0, 1] = 0x7FC12345  # a NaN with a payload
    state["1.bias"][2] = torch.inf
    safetensors_torch.save_file(state, tmp_path / "a.safetensors")
    report = plan.grow_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    got = safetensors_torch.load_file(tmp_path / "b.safetensors")
    assert_same(got, plan.grow_state_dict(state))
    assert (got["4.weight"].view(torch.int32) == 0x7FC12345).any()
    assert {name: int((~got[name].isfinite()).sum()) for name in ("4.weight", "1.bias")} == report.not_finite
    assert "4.weight has" in str(report)


def test_other_dtypes_are_copied_and_cannot_grow(tmp_path: Path) -> None:
    model, x = EXAMPLES["plain_2d"].build(torch.float32)
    plan = net2net.plan_widen(model, x, 1.5, layers=["4"])
    state = clones(model.state_dict())
    state["12.bias"] = state["12.bias"].to(torch.float8_e4m3fn)
    safetensors_torch.save_file(state, tmp_path / "a.safetensors")
    plan.grow_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert_same(safetensors_torch.load_file(tmp_path / "b.safetensors")["12.bias"], state["12.bias"])
    state["4.bias"] = state["4.bias"].to(torch.float8_e4m3fn)
    safetensors_torch.save_file(state, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"4\.bias.*dtype torch\.float8_e4m3fn"):
        plan.grow_checkpoint(tmp_path / "c.safetensors", tmp_path / "d.safetensors")


def test_a_file_whose_tensors_lie_anywhere(tmp_path: Path) -> None:
    """Other writers do not fill up their headers: tensors are at odd addresses then."""
    plans, model, _ = plans_of("plain_2d")
    state = clones(model.state_dict())
    data = safetensors_torch.save(state)
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip() + b" "
    header += b" " * (len(header) % 2 == 0)
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    plans[0].grow_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert_same(safetensors_torch.load_file(tmp_path / "b.safetensors"), plans[0].grow_state_dict(state))


# -- with optimizers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_file_of_torch_save(kind: str, tmp_path: Path) -> None:
    for name in ("plain_2d", "tied"):
        plans, model, x = plans_of(name)
        model = model.to(memory_format=torch.channels_last)
        optimizer = stepped(model, kind)
        average = {f"module.{k}": v for k, v in model.state_dict().items()}
        everything = {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3, "list": [torch.ones(2), "x"],
            "ema": {**average, "n_averaged": torch.tensor(3)},
        }  # fmt: skip
        torch.save(everything, tmp_path / f"{name}.pt")
        for i, plan in enumerate(plans):
            target = tmp_path / f"{name}{i}.pt"
            for state in ("exact", "replicas_reset", "reset"):
                target.unlink(missing_ok=True)
                plan.grow_checkpoint(tmp_path / f"{name}.pt", target, optimizer=kind, state=state, model=model)
                grown = plan.grow_state_dict(model.state_dict())
                expected = plan.grow_optimizer(optimizer, plan.apply(model), state=state).state_dict()
                ema = {**{f"module.{k}": v for k, v in grown.items()}, "n_averaged": torch.tensor(3)}
                got = torch.load(target, weights_only=True)
                assert json.loads(got.pop("net2net.growth"))[0]["plan"]["kind"] == plan.kind
                assert_same(got, {**everything, "model": grown, "optimizer": expected, "ema": ema})
            assert net2net.verify(model, net2net.load(target, partial(base, name)).eval(), x).ok


def test_a_state_dict_of_torch_save_stays_one_or_becomes_safetensors(tmp_path: Path) -> None:
    plans, model, x = plans_of("tied")
    torch.save(model.state_dict(), tmp_path / "a.pt")
    for target in (tmp_path / "b.pt", tmp_path / "b.safetensors"):
        plans[0].grow_checkpoint(tmp_path / "a.pt", target)
        assert net2net.verify(model, net2net.load(target, partial(base, "tied")), x).ok
    got = torch.load(tmp_path / "b.pt", weights_only=True)
    assert_same(dict(got), plans[0].grow_state_dict(model.state_dict()))
    assert got["b.weight"].data_ptr() == got["c.weight"].data_ptr()  # still one
    plans[0].apply(model).load_state_dict(got)  # where the log is, nobody minds
    assert_same(safetensors_torch.load_file(tmp_path / "b.safetensors"), dict(got))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_checkpoint_of_a_run_goes_on(kind: str, tmp_path: Path) -> None:
    for name in ("plain_2d", "tied"):
        plans, model, _ = plans_of(name)
        optimizer = stepped(model, kind)
        source = checkpoint.save(State(model, optimizer, ema=moving_average(model, 0.9), step=4), tmp_path / name)
        for i, plan in enumerate(plans):
            student = plan.apply(model)
            plan.grow_checkpoint(source, tmp_path / f"{name}{i}")
            other = net2net.load(tmp_path / f"{name}{i}", partial(base, name))
            restored = State(other, OPTIMIZERS[kind](other.parameters()), ema=moving_average(other, 0.9))
            checkpoint.restore(restored, tmp_path / f"{name}{i}")
            assert restored.step == 4
            assert restored.ema is not None
            for got in (restored.model, restored.ema.module):
                assert_same(got.state_dict(), student.state_dict())
            expected = plan.grow_optimizer(optimizer, student)
            mine, theirs = dict(student.named_parameters()), dict(other.named_parameters())
            for key, p in mine.items():
                assert_same(restored.optimizer.state.get(theirs[key], {}), expected.state.get(p, {}), key)
            trained = {id(p) for group in restored.optimizer.param_groups for p in group["params"]}
            assert trained == {id(p) for p in other.parameters()}


@pytest.mark.parametrize("kind", ["AdamW", "RMSprop"])
def test_a_folder_of_dcp(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from net2net.checkpoints import dcp_format

    monkeypatch.setattr(dcp_format, "ITEM_BYTES", 2000)
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    plans, model, x = plans_of("plain_2d")
    optimizer = stepped(model, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state, "step": 3}, checkpoint_id=tmp_path / "a", no_dist=True)
    for i, plan in enumerate(plans):
        target = tmp_path / f"b{i}"
        plan.grow_checkpoint(tmp_path / "a", target, optimizer=kind)
        student = plan.apply(model)
        grown = plan.grow_optimizer(optimizer, student)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected, expected_state = get_state_dict(student, grown)
            got = {"model": clones(expected), "optimizer": expected_state, "step": 0}
            wanted = {"model": clones(expected), "optimizer": json_free(expected_state), "step": 3}
            for t in (*got["model"].values(), *tensors_of(got["optimizer"])):
                t.detach().fill_(7)
            dcp.load(got, checkpoint_id=target, no_dist=True)
        assert_same(got["model"], wanted["model"])
        assert_same(got["optimizer"]["state"], wanted["optimizer"]["state"])
        assert got["step"] == 3
        assert net2net.verify(model, net2net.load(target, partial(base, "plain_2d")).eval(), x).ok
        assert len(net2net.growth_log(target)) == 1
    # What has been saved in several pieces grows too, by several plans.
    student = plans[0].apply(model)
    more = [net2net.plan_widen(student, x, 1.25, seed=1)]
    more.append(net2net.plan_widen(more[0].apply(student), x, 1.25, seed=2))
    net2net.grow_checkpoint(tmp_path / "b0", tmp_path / "c", more, optimizer=kind)
    expected = more[1].apply(more[0].apply(student)).state_dict()
    assert_same(net2net.load(tmp_path / "c", partial(base, "plain_2d")).state_dict(), expected)
    assert len(net2net.growth_log(tmp_path / "c")) == 3
    nothing_hidden(tmp_path)


def json_free(state: dict[str, Any]) -> dict[str, Any]:
    return {"state": {n: clones(s) for n, s in state["state"].items()}, "param_groups": state["param_groups"]}


def tensors_of(state: dict[str, Any]) -> list[torch.Tensor]:
    return [t for kept in state["state"].values() for t in kept.values()]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = base("residual")
    a, b, c = (tmp_path / f"{x}.safetensors" for x in "abc")
    safetensors_torch.save_file(model.state_dict(), a)
    spec = ["--model", "test_checkpoint_growth:residual", "--input", "2x3x8x8"]
    steps = ["--widen", "1.5 noise=none split=dyadic", "--kernel", "5 layers=conv1", "--deepen", "1 after=bn1"]
    assert main(["grow", str(a), str(b), *spec, *steps, "--verify"]) == 0
    assert main(["grow", str(b), str(c), *spec, "--widen", "1.3", "--seed", "4", "--verify"]) == 0
    out = capsys.readouterr().out
    assert out.count("same function") == 2
    assert [e["plan"]["kind"] for e in net2net.growth_log(c)] == ["widen", "kernel", "deepen", "widen"]
    plan = net2net.GrowthPlan.from_document(net2net.growth_log(b)[0]["plan"], "the log")
    plan.save(tmp_path / "plan.json")
    assert main(["grow", str(a), str(tmp_path / "d.safetensors"), "--plan", str(tmp_path / "plan.json")]) == 0
    got = safetensors_torch.load_file(tmp_path / "d.safetensors")
    assert_same(got, plan.grow_state_dict(clones(model.state_dict())))


def residual() -> nn.Module:
    return EXAMPLES["residual"].make().double()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to do"),
        (["--widen", "1.5"], "--model is needed"),
        (["--widen", "1.5", "--model", "test_checkpoint_growth:residual"], "--input is needed"),
        (["--plan", "none.json"], "none.json"),
        (
            ["--plan", "none.json", "--order", "sorted"],
            "--order (='sorted') must be model or names, or a file of names",
        ),
    ],
)
def test_command_lines_that_say_too_little(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safetensors_torch.save_file(base("residual").state_dict(), tmp_path / "a.safetensors")
    assert main(["grow", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), *argv]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()


def test_formats_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        formats.format_of(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="without a checkpoint"):
        formats.format_of(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="its name must end in"):
        formats.format_of(tmp_path / "x.npz")


def test_shards_of_any_form_are_put_together(tmp_path: Path) -> None:
    from net2net.checkpoints import dcp_format, safetensors_file
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata

    def entry(whole: torch.Tensor, places: list[tuple[int, ...]], parts: list[torch.Tensor]) -> TensorStorageMetadata:
        chunks = [ChunkStorageMetadata(torch.Size(at), t.shape) for at, t in zip(places, parts, strict=True)]
        return TensorStorageMetadata(TensorProperties(dtype=whole.dtype), whole.shape, chunks)

    tensors = {"columns": torch.randn(5, 7, 3), "rows": torch.randn(6, 4).double(), "one": torch.randn(9)}
    columns, rows = tensors["columns"], tensors["rows"]
    parts = {
        "columns": ([(0, 0, 0), (0, 3, 0)], [columns[:, :3], columns[:, 3:]]),
        "rows": ([(4, 0), (0, 0)], [rows[4:], rows[:4]]),
        "one": ([(0,)], [tensors["one"]]),
    }
    saved = {f"{name}{i}": t.contiguous() for name, (_, ts) in parts.items() for i, t in enumerate(ts)}
    safetensors_torch.save_file(saved, tmp_path / "a.safetensors")
    stored, _ = safetensors_file.read(tmp_path / "a.safetensors")
    given = {
        name: (entry(tensors[name], at, ts), [stored[f"{name}{i}"] for i in range(len(ts))])
        for name, (at, ts) in parts.items()
    }
    got = dcp_format.assembled(given, tmp_path)
    assert_same({name: s.tensor() for name, s in got.items()}, tensors)


class Words(nn.Module):
    """A table and an output layer that are not tied, though a file may have them in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 9, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(self.words(x)))
        return out


def test_what_lies_in_one_place_may_grow_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Words().eval()
    plan = net2net.plan_widen(model, torch.arange(3)[None], 2)
    state = model.state_dict()
    state["head.weight"] = state["words.weight"]
    torch.save(state, tmp_path / "a.pt")
    plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")
    assert_same(dict(torch.load(tmp_path / "b.pt", weights_only=True)), plan.grow_state_dict(state))
    for order in (1, -1):
        both = dict([("part", {"table": state["words.weight"]}), ("model", state)][::order])
        torch.save(both, tmp_path / f"both{order}.pt")
        plan.grow_checkpoint(tmp_path / f"both{order}.pt", tmp_path / f"grown{order}.pt")
        grown = torch.load(tmp_path / f"grown{order}.pt", weights_only=True)
        assert_same(grown["part"], both["part"])
        assert_same(grown["model"], plan.grow_state_dict(state))


@pytest.mark.parametrize("prefix", ["module.module.", "module.module._orig_mod.", "ema_model.", "net."])
def test_averages_under_other_names_grow_too(prefix: str, tmp_path: Path) -> None:
    model, x = EXAMPLES["gated"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    state = model.state_dict()
    average = {prefix + name: t.clone() for name, t in state.items()} | {"n_averaged": torch.tensor(3)}
    torch.save({"model": state, "ema": average}, tmp_path / "a.pt")
    report = plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")
    assert report.models == ["model", "ema"]
    grown = torch.load(tmp_path / "b.pt", weights_only=True)["ema"]
    assert grown.pop("n_averaged") == 3
    assert_same({name.removeprefix(prefix): t for name, t in grown.items()}, plan.grow_state_dict(state))


def test_averages_without_names_are_refused(tmp_path: Path) -> None:
    model, x = EXAMPLES["gated"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    torch.save({"model": model.state_dict(), "shadow": [p.detach() for p in model.parameters()]}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"\(shadow\) lists tensors of the shapes of the model's parameters"):
        plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()


def test_files_in_torchs_old_format_are_refused(tmp_path: Path) -> None:
    model, x = EXAMPLES["gated"].build()
    torch.save(model.state_dict(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="old format"):
        net2net.plan_widen(model, x, 1.5).grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")


def test_a_link_that_leads_nowhere_is_not_overwritten(tmp_path: Path) -> None:
    model, x = EXAMPLES["gated"].build()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    (tmp_path / "b.pt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        net2net.plan_widen(model, x, 1.5).grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")
    assert (tmp_path / "b.pt").is_symlink()
