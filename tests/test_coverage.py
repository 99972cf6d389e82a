"""The table of what can be widened: its script, on one model and on made-up records."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# By its path: there is a well-known package of the same name.
_spec = importlib.util.spec_from_file_location("coverage_script", ROOT / "bench" / "coverage.py")
assert _spec is not None
assert _spec.loader is not None
coverage_script = importlib.util.module_from_spec(_spec)
sys.path.append(str(ROOT / "bench"))  # as it is for a script, which has its neighbours
_spec.loader.exec_module(coverage_script)


def record(model: str, **changes: object) -> dict[str, object]:
    usual = {
        "model": model, "parameters": 1000, "share": 1.0, "growth": 2.1, "eval": 1e-15, "train": 1e-14, "seconds": 0.5,
        "cpu_seconds": 0.4, "changes": 0, "skipped": [],
    }  # fmt: skip
    return {**usual, **changes}


def test_report_tells_of_failures() -> None:
    text = coverage_script.report(
        [
            record("a"),
            record("b", share=0.5, skipped=[["conv", 3, "no rule | for x"]], train="ValueError: odd"),
            {"model": "c", "error": "took more than 10 s"},
            record("d", eval=1.0),
        ]
    )
    assert "4 models" in text
    assert "2 exact" in text
    assert "1 not widened" in text
    assert "| c | | | | | | | | took more than 10 s |" in text
    assert "at most 0.4 s" in text
    assert "conv and others: no rule / for x" in text


def test_a_zoo_is_gone_through_once(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    command = [sys.executable, str(ROOT / "bench" / "coverage.py"), "torchvision", "--out", str(tmp_path)]
    options = ["--only", "shufflenet_v2_x0_5"]
    for seconds, printed in (("0.01", "took more than 0 s"), ("0.01", "- 1 models")):  # the second time it is known
        ran = subprocess.run([*command, *options, "--seconds", seconds], capture_output=True, text=True, check=True)
        assert printed in ran.stdout
    records = [json.loads(line) for line in (tmp_path / "torchvision.jsonl").read_text().splitlines()]
    assert [r["model"] for r in records] == ["shufflenet_v2_x0_5"]
    assert "1 not widened" in (tmp_path / "torchvision.md").read_text()


def test_a_model_of_a_zoo(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    command = [sys.executable, str(ROOT / "bench" / "coverage.py"), "torchvision", "--only", "squeezenet1_1"]
    subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=True)
    (found,) = (json.loads(line) for line in (tmp_path / "torchvision.jsonl").read_text().splitlines())
    assert found["eval"] < 1e-9
    assert found["share"] == 1.0
