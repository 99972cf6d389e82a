"""The benchmarks' harness: a small run from end to end, and its report. What is measured is not tested, only how."""

import dataclasses
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from net2net import benchmarks
from net2net.cli import main
from torch.utils._python_dispatch import TorchDispatchMode

import n2n_kernels as nk

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"

pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="bench/ is not part of this tree")

ROW = {
    "op", "case", "contender", "call", "ours", "time", "alone", "device_time", "launches", "peak_memory", "until_first",
    "rounds", "sets", "read", "written", "bytes", "rate", "roofline", "share", "against", "reduced",
}  # fmt: skip


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """bench/report.py's command line, in this process."""
    monkeypatch.syspath_prepend(str(BENCH))
    run = importlib.import_module("report").main
    return lambda *argv: int(run([str(part) for part in argv]))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run of one small case of each operation."""
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    folder = tmp_path_factory.mktemp("bench") / "results"
    cases = "vectors of 64 to 2048 float32|identity_: 2048x2048x3x3 bfloat16|40 x 64x80x80 float32"
    only = f"({cases}): (cpu|cuda|index_select|zero_|var_mean)"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)  # with it, pytest-benchmark measures nothing
        assert main(["bench", "--quick", "--only", only, "--out", str(folder)]) == 0
    return folder


def test_json(out: Path) -> None:
    result = json.loads((out / "bench.json").read_text())
    assert set(result) == {
        "settings", "environment", "cpu", "commit", "dirty", "datetime", "rows", "skipped",
    }  # fmt: skip
    assert result["settings"]["size"] == "quick"
    rows = result["rows"]
    assert {row["op"] for row in rows} == {"roofline", "gather_scale", "identity_", "channel_moments"}
    for row in rows:
        assert set(row) == ROW
        assert row["time"] > 0
        assert row["rate"] == pytest.approx((row["read"] + row["written"]) / row["time"])
    rates = {row["case"]: row["rate"] for row in rows if row["op"] == "roofline"}
    assert {"copy_, 1:1", "sum, read only", "memset, write only", "copy_ and memset, 1:2.00"} <= set(rates)
    for row in rows:
        if row["op"] != "roofline":
            assert row["share"] == pytest.approx(row["rate"] / rates[row["roofline"]])
        if row["ours"]:
            (peer,) = (r for r in rows if alike(r, row))
            assert row["against"] == {peer["contender"]: pytest.approx(peer["time"] / row["time"])}
    # What is not measured is named, with the reason.
    assert all(skipped["reason"] for skipped in result["skipped"])


def alike(peer: dict[str, Any], row: dict[str, Any]) -> bool:
    wanted = {"first": "call", "plan": "call", "run": "out="}.get(row["call"], row["call"])
    return not peer["ours"] and (peer["op"], peer["case"], peer["call"]) == (row["op"], row["case"], wanted)


def test_markdown_and_figure(out: Path) -> None:
    text = (out / "bench.md").read_text()
    for heading in ("# Benchmarks", "## Summary", "## Rooflines", "## gather_scale", "## identity_"):
        assert f"{heading}\n" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    head = next(table for table in tables if "1000 x vectors" in table and "least traffic" in table).splitlines()[0]
    for column in ("time", "least traffic", "GB/s", "of roofline", "launches", "peak memory", "faster than"):
        assert f" {column} |" in head
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_readme_shows_what_results_say(
    out: Path, tmp_path: Path, report: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench: -->\n<!-- /bench -->\nafter\n")
    assert report("--readme", readme, "--check") == 0
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "bench.json").write_bytes((out / "bench.json").read_bytes())
    assert report("--readme", readme, folder / "bench.json") == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench: results/bench.json -->\n")
    assert text.endswith("<!-- /bench -->\nafter\n")
    assert "| gather_scale, 1000 x vectors of 64 to 2048 float32 |" in text
    assert "(results/bench.md)" in text
    # The names in the marker are enough from now on, and a figure that was changed by hand is found.
    assert report("--readme", readme, "--check") == 0
    readme.write_text(text.replace(" ms |", " us |", 1))
    assert report("--readme", readme, "--check") == 1
    assert "does not show what its results say" in capsys.readouterr().out


def test_this_readme(report: Callable[..., int]) -> None:
    assert report("--readme", ROOT / "README.md", "--check") == 0


def test_report_explains(tmp_path: Path, report: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("no markers\n")
    (tmp_path / "other.json").write_text("{}")
    for argv, message in (
        (["--readme", tmp_path / "README.md"], "has no lines '<!-- bench: FILES -->'"),
        (["--readme", tmp_path / "nowhere.md"], "No such file"),
        (["--readme", ROOT / "README.md", "--check", tmp_path / "other.json"], "not a bench.json"),
        ([tmp_path / "nowhere.json", tmp_path], "No such file"),
    ):
        assert report(*argv) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("only", "message"), [("no such case", "leaves nothing to measure"), ("(", "no regular expr")])
def test_wrong_pattern(only: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    assert main(["bench", "--only", only, "--out", str(tmp_path / "out")]) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmarks, "BENCH", tmp_path / "bench")
    assert main(["bench"]) == 1
    assert "run this in a checkout of the source, after pip install" in capsys.readouterr().err


def test_bytes_of_a_case_are_those_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    cases, inputs = importlib.import_module("cases"), importlib.import_module("inputs")
    growths = [case for case in cases._table() if isinstance(case, cases.Growth)]
    assert len(growths) > 10
    for whole in growths:
        shapes = tuple((min(s[0], 6), *(min(n, 5) for n in s[1:])) for s in whole.shapes)[:20]
        case = dataclasses.replace(whole, shapes=shapes, full=len(shapes))
        given = inputs.GrowthInputs(case, torch.device("cpu"))
        assert case.read == sum(t.nbytes for t in given.sets[0]), whole.name
        grown = nk.gather_scale(given.sets[0], given.out_maps, given.in_maps)
        assert case.written == sum(t.nbytes for t in grown), whole.name


def test_bytes_of_a_roofline_are_those_that_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    rooflines = importlib.import_module("rooflines")
    monkeypatch.setattr(rooflines, "CPU_BYTES", 1 << 16)
    moved = {"read": 0, "written": 0}
    count = {"aten::copy_": ("read", "written"), "aten::sum": ("read",)}

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for what in count.get(func.name().split(".")[0], ()):
                moved[what] += args[0].nbytes
            return func(*args, **(kwargs or {}))

    def memset(t: torch.Tensor) -> None:
        moved["written"] += t.nbytes

    monkeypatch.setattr(rooflines, "memset", memset)
    for roofline in (*rooflines.ALWAYS, rooflines.roofline_of(1, 4)):
        call = next(roofline.contender(torch.device("cpu")))
        moved.update(read=0, written=0)
        with Count():
            call()
        assert (moved["read"], moved["written"]) == roofline.bytes(torch.device("cpu")), roofline.name
