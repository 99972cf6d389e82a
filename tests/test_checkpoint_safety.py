"""Nothing is lost: whatever happens, the source is intact, and the target is whole or absent."""

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import net2net
import pytest
import torch
import torch.distributed.checkpoint
from models import EXAMPLES
from net2net.checkpoints import safetensors_file, streams, tally
from net2net.checkpoints.stored import Stored

safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")


@pytest.fixture
def grown(tmp_path: Path) -> tuple[net2net.GrowthPlan, Path, Path]:
    """A plan, a source, and a target that is not there yet."""
    model, x = EXAMPLES["plain_2d"].build(torch.float32)
    safetensors_torch.save_file(model.state_dict(), tmp_path / "a.safetensors", {"format": "pt"})
    return net2net.plan_widen(model, x, 1.5), tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# -- what cannot be done -----------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(grown: tuple[net2net.GrowthPlan, Path, Path]) -> None:
    plan, source, target = grown
    before = source.read_bytes()
    with pytest.raises(ValueError, match=r"dst .* is src"):
        plan.grow_checkpoint(source, source)
    link = source.with_name("link.safetensors")
    link.symlink_to(source)
    with pytest.raises(ValueError, match=r"dst .* is src"):
        plan.grow_checkpoint(source, link)
    target.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"b\.safetensors exists"):
        plan.grow_checkpoint(source, target)
    assert target.read_bytes() == b"precious"
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        plan.grow_checkpoint(source, source.parent / "nowhere" / "b.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        plan.grow_checkpoint(source, source.with_name("b.pt"))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        plan.grow_checkpoint(source.with_name("none.safetensors"), source.with_name("c.safetensors"))
    assert source.read_bytes() == before
    assert left_in(source.parent) == ["a.safetensors", "b.safetensors", "link.safetensors"]


def test_a_target_inside_of_its_source(tmp_path: Path, grown: tuple[net2net.GrowthPlan, Path, Path]) -> None:
    plan, source, _ = grown
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(source, folder / "model.safetensors")
    with pytest.raises(ValueError, match="inside of src"):
        plan.grow_checkpoint(folder, folder / "grown")
    plan.grow_checkpoint(folder, tmp_path / "grown")
    assert left_in(tmp_path / "grown") == ["model.safetensors"]


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        header, data = header_of(path)
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)

    return damage


def without(path: Path, name: str) -> None:
    tensors = safetensors_torch.load_file(path)
    del tensors[name]
    safetensors_torch.save_file(tensors, path)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "truncated"),
    "a few bytes": (lambda p: p.write_bytes(b"123"), "truncated"),
    "half of the header": (lambda p: p.write_bytes(p.read_bytes()[:100]), "truncated"),
    "half of the tensors": (lambda p: p.write_bytes(p.read_bytes()[:-1000]), "is truncated: it has"),
    "a byte too many": (lambda p: p.write_bytes(p.read_bytes() + b"1"), "bytes behind"),
    "no JSON": (lambda p: p.write_bytes((8).to_bytes(8, "little") + b"{nonsens"), "damaged header"),
    "another file": (lambda p: p.write_bytes(b"PK" * 1000), "not a safetensors file"),
    "a list": (lambda p: p.write_bytes((8).to_bytes(8, "little") + b"[1,2,3] "), "damaged header"),
    "an unknown dtype": (with_header(lambda h: h["1.bias"].update(dtype="F4")), "dtype F4"),
    "a shape that does not fit": (with_header(lambda h: h["1.bias"].update(shape=[7])), r"1\.bias has the shape"),
    "offsets before the file": (with_header(lambda h: h["1.bias"].update(data_offsets=[-24, 0])), r"1\.bias"),
    "half a number": (with_header(lambda h: h["1.bias"].update(shape=[6.5])), r"1\.bias has the size 6\.5"),
    "true": (with_header(lambda h: h["1.bias"].update(shape=[6, True])), r"1\.bias has the size True"),
    "an absurd size": (with_header(lambda h: h["1.bias"].update(shape=[0, 10**30])), r"1\.bias has the size 10000"),
    "one tensor in the other's place": (
        with_header(lambda h: h["1.bias"].update(data_offsets=h["1.weight"]["data_offsets"])), "damaged header"
    ),
    "a hole": (with_header(lambda h: h.pop("1.bias")), "damaged header"),
    "too deep": (lambda p: p.write_bytes((40_000).to_bytes(8, "little") + b"[" * 40_000), "damaged header"),
    "a missing tensor": (lambda p: without(p, "1.bias"), r"has no 1\.bias"),
    "an unknown tensor": (with_header(lambda h: h.update(more=h.pop("1.bias"))), r"has no 1\.bias|has more"),
    "none of the tensors": (
        with_header(lambda h: [h.update({f"x{i}": h.pop(k)}) for i, k in enumerate(list(h)) if k != "__metadata__"]),
        "none of the tensors",
    ),
    "a transposed tensor": (
        with_header(lambda h: h["4.weight"].update(shape=h["4.weight"]["shape"][::-1])), r"4\.weight has shape"
    ),
    "a damaged log": (
        with_header(lambda h: h["__metadata__"].update({"net2net.growth": "[{}]"})), "damaged growth log",
    ),
    "a log of another version": (
        with_header(lambda h: h["__metadata__"].update({"net2net.growth": '[{"version": 99}]'})), "version 99",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_sources_are_refused(damage: str, grown: tuple[net2net.GrowthPlan, Path, Path]) -> None:
    plan, source, target = grown
    change, message = DAMAGES[damage]
    change(source)
    before = source.read_bytes()
    with pytest.raises(ValueError, match=message):
        plan.grow_checkpoint(source, target)
    assert source.read_bytes() == before
    assert left_in(source.parent) == ["a.safetensors"]


def test_a_source_that_cannot_be_read(
    grown: tuple[net2net.GrowthPlan, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, source, target = grown

    def refuse(self: Path, *_args: Any, **_options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read: .*Permission denied"):
        plan.grow_checkpoint(source, target)
    monkeypatch.undo()
    assert left_in(source.parent) == ["a.safetensors"]


def test_other_files_that_are_none(tmp_path: Path, grown: tuple[net2net.GrowthPlan, Path, Path]) -> None:
    plan, _, _ = grown
    (tmp_path / "x.pt").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(ValueError, match="weights_only=True"):
        plan.grow_checkpoint(tmp_path / "x.pt", tmp_path / "y.pt")
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="weights_only=True"):
        plan.grow_checkpoint(tmp_path / "evil.pt", tmp_path / "y.pt")
    assert not (tmp_path / "executed").exists()
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="a list, not a dict"):
        plan.grow_checkpoint(tmp_path / "list.pt", tmp_path / "y.pt")
    folder = tmp_path / "folder"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    for text, message in (
        ("{", "no index"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "no name of a file"),
        ('{"weight_map": {"a": "none.safetensors"}}', "cannot be read"),
    ):
        index.write_text(text)
        with pytest.raises(ValueError, match=message):
            plan.grow_checkpoint(folder, tmp_path / "y")
    index.rename(folder / "state.json")
    with pytest.raises(ValueError, match="no checkpoint of a run"):
        plan.grow_checkpoint(folder, tmp_path / "y")
    (folder / ".metadata").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no DCP checkpoint"):
        plan.grow_checkpoint(folder, tmp_path / "y")


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_unknown_optimizers_are_refused_by_name(tmp_path: Path) -> None:
    model, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    optimizer = torch.optim.Adam(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    both = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def refused(changed: Any, message: str, **options: Any) -> None:
        torch.save(changed, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=message):
            plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", **options)
        assert left_in(tmp_path) == ["a.pt"]

    refused(both, "give optimizer=")
    refused(both, r"optimizer \(='Lion'\) has no known laws", optimizer="Lion")
    refused(both, "'exp_avg' .* whose law under growth is not known", optimizer="SGD")
    refused(both, r"state \(='most'\)", optimizer="Adam", state="most")
    state = optimizer.state_dict()
    state["param_groups"][0]["net2net_dynamics"] = []
    refused({**both, "optimizer": state}, "teacher's dynamics", optimizer="Adam")
    two = torch.optim.Adam([{"params": list(model.parameters())[:2]}, {"params": list(model.parameters())[2:]}])
    refused({**both, "optimizer": two.state_dict()}, "positions", optimizer="Adam")
    refused({**both, "model": {"0.weight": torch.ones(2)}}, r"\(model\) does not fit the plan", optimizer="Adam")
    # Names say which is which, in any groups.
    named = list(model.named_parameters())
    two = torch.optim.Adam([{"params": named[4:]}, {"params": named[:4]}])
    two.step()
    torch.save({**both, "optimizer": two.state_dict()}, tmp_path / "a.pt")
    plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="Adam")
    expected = plan.grow_optimizer(two, plan.apply(model)).state_dict()
    got = torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"]
    assert got["param_groups"] == expected["param_groups"]
    for number, kept in expected["state"].items():
        for key, t in kept.items():
            assert torch.equal(got["state"][number][key], t)


def test_new_parameters_need_a_model_for_their_positions(tmp_path: Path) -> None:
    model, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_deepen(model, x, data=[x])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.save({"m": model.state_dict(), "o": optimizer.state_dict()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="give model="):
        plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="SGD")
    with torch.device("meta"):
        empty = EXAMPLES["plain_2d"].make().double()
    plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", optimizer="SGD", model=empty)
    got = torch.load(tmp_path / "b.pt", weights_only=True)["o"]
    assert len(got["param_groups"][0]["params"]) == len(list(plan.apply(model).parameters()))


# -- loading -----------------------------------------------------------------------------------------------------------


def test_networks_that_do_not_fit_are_refused(grown: tuple[net2net.GrowthPlan, Path, Path]) -> None:
    plan, source, target = grown
    plan.grow_checkpoint(source, target)
    make = EXAMPLES["plain_2d"].make
    with pytest.raises(ValueError, match="plan was made"):
        net2net.load(target, EXAMPLES["plain_1d"].make)
    with pytest.raises(ValueError, match="none of the tensors"):
        net2net.load(source, lambda: torch.nn.ModuleDict({"another": make()}))
    with pytest.raises(ValueError, match=r"has 13\.|has no 13\."):
        net2net.load(source, lambda: torch.nn.Sequential(*make(), torch.nn.Linear(4, 4)))
    with pytest.raises(TypeError, match="made a int"):
        net2net.load(source, lambda: 3)  # type: ignore[arg-type, return-value]
    bare = target.with_name("bare.safetensors")  # without its log
    safetensors_torch.save_file(safetensors_torch.load_file(target), bare)
    with pytest.raises(ValueError, match="of shape"):
        net2net.load(bare, make)
    header, data = header_of(target)
    log = json.loads(header["__metadata__"]["net2net.growth"])
    log[0]["plan"]["version"] = 99
    header["__metadata__"]["net2net.growth"] = json.dumps(log)
    text = json.dumps(header).encode()
    bare.write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises(ValueError, match=r"growth 1 of .* version 99"):
        net2net.load(bare, make)


def test_bytes_of_a_pickle_that_are_others(tmp_path: Path) -> None:
    """Each file is read, or refused by a ValueError; the zip's checksums are not looked at, for speed."""
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "a.pt")
    whole, rng = (tmp_path / "a.pt").read_bytes(), random.Random(0)
    refused = 0
    for i in range(60):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(min(4000, len(whole)))] ^= 1 << rng.randrange(8)
        (tmp_path / "a.pt").write_bytes(damaged)
        try:
            plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / f"{i}.pt")
        except ValueError:
            refused += 1
    assert refused > 20


# -- a full disk, and processes that are killed ------------------------------------------------------------------------


def test_a_full_disk(grown: tuple[net2net.GrowthPlan, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out before the work, where the file system can tell; or else in the middle of it."""
    plan, source, target = grown
    before = source.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for can_tell in (True, False):
        if not can_tell:
            monkeypatch.setattr(safetensors_file, "reserve", lambda *_: None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        try:
            with pytest.raises(OSError, match=r"b\.safetensors cannot be written: .*as it was"):
                plan.grow_checkpoint(source, target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert source.read_bytes() == before
        assert left_in(source.parent) == ["a.safetensors"]
    plan.grow_checkpoint(source, target)


@pytest.mark.parametrize("kind", ["pt", "dcp"])
def test_a_disk_that_torchs_writers_find_full(kind: str, tmp_path: Path) -> None:
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    source = tmp_path / ("a.pt" if kind == "pt" else "a")
    if kind == "pt":
        torch.save(model.state_dict(), source)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.distributed.checkpoint.save(model.state_dict(), checkpoint_id=source, no_dist=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (200, 3000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(OSError, match=r"cannot be written: .*as it was"):
                plan.grow_checkpoint(source, tmp_path / ("b.pt" if kind == "pt" else "b"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert left_in(tmp_path) == [source.name]


def test_an_interrupted_run_leaves_nothing(grown: tuple[net2net.GrowthPlan, Path, Path]) -> None:
    plan, source, target = grown

    def stop(_name: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan.grow_checkpoint(source, target, progress=stop)
    assert left_in(source.parent) == ["a.safetensors"]


def test_one_at_a_time(grown: tuple[net2net.GrowthPlan, Path, Path]) -> None:
    """A second run with the same target does not take the first one's work for what a killed one left."""
    plan, source, target = grown
    tried: list[str] = []

    def second(_name: str, _done: int, _total: int) -> None:
        if not tried:
            with pytest.raises(BlockingIOError, match="another process is at work"):
                plan.grow_checkpoint(source, target)
            tried.append("once")

    plan.grow_checkpoint(source, target, progress=second)
    assert tried
    assert left_in(source.parent) == ["a.safetensors", "b.safetensors"]


def work(source: Path, plans: list[Path], target: Path, seconds: float, pieces: int) -> None:
    """Grow, slowly; killed so many seconds after the beginning, or when so many pieces have been written; 0: never."""
    for module in (streams, tally):
        module.PIECE_BYTES = 1024  # type: ignore[attr-defined]
    loaded = [net2net.GrowthPlan.load(plan) for plan in plans]
    if seconds:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    written = 0

    def on_piece(*_: Any) -> None:
        nonlocal written
        time.sleep(1e-3)
        written += 1
        if written == pieces:
            os.kill(os.getpid(), signal.SIGKILL)

    net2net.grow_checkpoint(source, target, loaded, progress=on_piece)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """New processes that need not import torch anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["net2net", "models", "safetensors.torch"])
    return context


def kill_and_complete(processes: ForkServerContext, tmp_path: Path, times: int, seed: int) -> None:
    model, x = EXAMPLES["residual"].build(torch.float32)
    source = tmp_path / "source"
    source.mkdir()
    names = sorted(state := model.state_dict())
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for name, own in files.items():
        safetensors_torch.save_file({k: state[k] for k in own}, source / name)
    weight_map = {k: name for name, own in files.items() for k in own}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    wide = net2net.plan_widen(model, x, 1.25)
    deep = net2net.plan_deepen(student := wide.apply(model), x)
    wide.save(tmp_path / "wide.json")
    deep.save(tmp_path / "deep.json")
    expected = deep.grow_state_dict(wide.grow_state_dict(state))
    del student
    plans, target = [tmp_path / "wide.json", tmp_path / "deep.json"], tmp_path / "target"
    quiet = sorted([*left_in(tmp_path)])

    def run(seconds: float = 0, pieces: int = 0) -> int | None:
        process = processes.Process(target=work, args=(source, plans, target, seconds, pieces))
        process.start()
        process.join(timeout=60)
        if process.is_alive():
            process.kill()
        return process.exitcode

    whole = 0.0
    for _ in range(2):  # the first one starts the server of processes
        started = time.perf_counter()
        assert run() == 0
        whole = time.perf_counter() - started
        shutil.rmtree(target)
    rng, killed, half = random.Random(seed), 0, 0
    for number in range(times):
        # At any moment, and while files are being written.
        how = {"pieces": rng.randint(1, 100)} if number % 2 else {"seconds": rng.uniform(1e-3, whole)}
        killed += run(**how) == -signal.SIGKILL  # type: ignore[arg-type]
        half += any(name.endswith(".unfinished") for name in left_in(tmp_path))
        if target.exists():
            assert_whole(target, expected)
            shutil.rmtree(target)
    assert killed > times // 3
    assert half
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert run() == 0  # the next one completes it, and removes what the others left
    assert_whole(target, expected)
    assert left_in(tmp_path) == sorted([*quiet, "target"])


def assert_whole(target: Path, expected: dict[str, torch.Tensor]) -> None:
    index = json.loads((target / "model.safetensors.index.json").read_text())
    found: dict[str, Stored] = {}
    for name in sorted(set(index["weight_map"].values())):
        found |= safetensors_file.read(target / name)[0]
    assert set(found) == set(expected)
    assert all(torch.equal(found[name].tensor(), expected[name]) for name in expected)


def test_killed_at_any_moment(processes: ForkServerContext, tmp_path: Path) -> None:
    kill_and_complete(processes, tmp_path, 10, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_killed_at_many_moments(processes: ForkServerContext, tmp_path: Path, seed: int) -> None:
    kill_and_complete(processes, tmp_path, 75, seed)


# -- memory ------------------------------------------------------------------------------------------------------------

MEMORY = """
import sys, torch, net2net
import torch.distributed.checkpoint  # or else it would be counted
from pathlib import Path

def resident(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024

plan = net2net.GrowthPlan.load(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here on
before = resident("VmRSS")
plan.grow_checkpoint(sys.argv[2], sys.argv[3])
print(resident("VmHWM") - before)
"""


class Wide(torch.nn.Module):
    """A table and a layer of 256 MiB each."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = torch.nn.Embedding(32768, 2048), torch.nn.Linear(2048, 32768)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.table(x).relu())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux tells it")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ""])
def test_memory_is_bounded(suffix: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = Wide()
    example = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    net2net.plan_widen(empty, example, 1.5).save(tmp_path / "plan.json")
    state, source = Wide().state_dict(), tmp_path / f"a{suffix}"
    if suffix == ".safetensors":
        safetensors_torch.save_file(state, source)
    elif suffix == ".pt":
        torch.save(state, source)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.distributed.checkpoint.save(state, checkpoint_id=source, no_dist=True)
    argv = [sys.executable, "-c", MEMORY, tmp_path / "plan.json", source, tmp_path / f"b{suffix}"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert float(done.stdout) < 200  # MiB, of a checkpoint of 512


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_as_long_as_they_may_be(grown: tuple[net2net.GrowthPlan, Path, Path]) -> None:
    plan, source, _ = grown
    longest = source.with_name("n" * (255 - len(".safetensors")) + ".safetensors")
    plan.grow_checkpoint(source, longest)
    assert left_in(source.parent) == ["a.safetensors", longest.name]


def test_work_on_a_longer_name_is_left_alone(grown: tuple[net2net.GrowthPlan, Path, Path]) -> None:
    """`b` must not take away what somebody is doing, or has left undone, for `b.safetensors`."""
    plan, source, target = grown
    folder = source.with_name("folder")
    folder.mkdir()
    shutil.copy(source, folder / "model.safetensors")
    others = source.with_name(f".{target.name}.abcdefgh.unfinished")
    others.mkdir()
    plan.grow_checkpoint(folder, source.with_name("b"))
    assert others.is_dir()
    plan.grow_checkpoint(source, target)
    assert not others.exists()
