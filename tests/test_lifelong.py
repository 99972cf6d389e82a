"""The example of a growing training set runs, and says what it measured."""

import dataclasses
import json
from pathlib import Path

import pytest
from net2net.experiments import lifelong
from net2net.experiments.lifelong import ANEW, GROWN, SMALL, LifelongConfig, Stage

pytest.importorskip("sklearn", reason="scikit-learn is not installed")


def test_it_runs_and_grows_with_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lifelong.main(["--out", str(tmp_path), "--steps", "8"]) == 0
    result = json.loads((tmp_path / "results.json").read_text())
    out = capsys.readouterr().out
    assert out.count("outputs changed by at most") == 3
    assert [stage["images"] for stage in result["stages"]] == [100, 400, 1438]
    grown, small, anew = ([stage["parameters"][name] for stage in result["stages"]] for name in (GROWN, SMALL, ANEW))
    assert grown == anew == sorted(set(grown))
    assert len(set(small)) == 1
    for stage in result["stages"]:
        for record in stage["growths"]:
            assert record["max_abs"] < 1e-3
    assert result["histories"][GROWN]["step"][-1] == 24


def test_stages_must_fit_the_data() -> None:
    from net2net.data import digits

    for images in ((400, 100), (100, 10_000), ()):
        stages = tuple(Stage(n, 1) for n in images)
        with pytest.raises(ValueError, match=r"must grow, up to the 1438 images"):
            lifelong.run(dataclasses.replace(LifelongConfig(), stages=stages), digits())
