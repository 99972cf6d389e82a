"""The paper's experiments: their grids, what is resumed, what is said of the results, and the report."""

import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from folders import raw_digits, write_image_folder
from net2net import console
from net2net.cli import main
from net2net.experiments import figures, reproduce, runs, students, summary
from net2net.experiments.config import BUDGETS, ReproduceConfig
from net2net.experiments.experiment import Claim, Experiment, Variant
from net2net.experiments.networks import Size
from net2net.experiments.runs import Result
from net2net.experiments.summary import Estimate
from net2net.files import alone
from net2net.plots import Curve, Panel, accuracy_limits
from net2net.training import History

for module in ("sklearn", "safetensors", "matplotlib", "rich"):
    pytest.importorskip(module, reason=f"{module} is not installed")

TINY = {
    "seeds": 2, "base": 0.01, "teacher_steps": 2, "steps": 3, "batch_size": 8, "eval_every": 2, "save_every": 1,
    "eval_images": 16, "threads": 1, "device": "cpu", "growth_batches": 1, "rates": "0.1",
}  # fmt: skip


def tiny(name: str = "figure4", **changes: Any) -> ReproduceConfig:
    return reproduce.configure(name, "smoke", TINY | changes)


def two_variants(config: ReproduceConfig) -> Experiment:
    """A grid in which nothing is grown."""
    scratch = students.random_init(Size(0.2))
    claim = Claim("one is better", scratch.name, "teacher", "final accuracy", 1)
    return Experiment("two", "<Two> & more", students.teacher(Size(0.1)), [scratch], scratch.name, [claim])


# -- the grids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", reproduce.EXPERIMENTS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_every_experiment_with_every_budget(name: str, budget: str, tmp_path: Path) -> None:
    for changes in ({}, {"every": True, "feature_prediction": True, "rates": "0.5,1"}):
        experiment = reproduce.EXPERIMENTS[name](reproduce.configure(name, budget, changes))
        names = [variant.name for variant in experiment.all]
        assert len({runs.place_of(tmp_path, variant, 0) for variant in experiment.all}) == len(set(names)) == len(names)
        assert experiment.reference in names
        for claim in experiment.claims:
            assert {claim.first, claim.second} <= set(names)
            assert claim.measure in summary.MEASURES
        assert set(experiment.figures) <= set(figures.FIGURES) == set(figures.CAPTIONS)
        assert set(experiment.curves or []) <= set(names)


def test_the_ablation_has_every_combination() -> None:
    experiment = reproduce.EXPERIMENTS["symmetry"]
    near = experiment(tiny("symmetry")).variants
    every = experiment(tiny("symmetry", every=True)).variants
    assert (len(near), len(every)) == (8 + 2 * 4 + 1, 8 * 3 * 3 + 1)
    assert {variant.name for variant in near} < {variant.name for variant in every}


@pytest.mark.parametrize("rates", ["", "0", "fast", "0.1,0.1", "0.1;0.2", "inf"])
def test_bad_rates(rates: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "figure4", "--rates", rates, "--out", str(tmp_path)]) == 1
    assert f"rates (={rates!r}) must be different positive numbers" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("base", "message"), [("inf", "must be finite"), ("1e-9", "must be at least 0.01")])
def test_bad_base(base: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "figure4", "--base", base, "--out", str(tmp_path)]) == 1
    assert f"base (={float(base)}) {message}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- runs ------------------------------------------------------------------------------------------------------------


def test_a_grid_is_run_once_and_grows(tmp_path: Path) -> None:
    config = tiny(seeds=1)
    experiment = two_variants(config)
    called: list[tuple[str, int]] = []
    first = runs.carry_out(experiment, config, tmp_path, lambda *call: called.append(call))
    assert [(r.variant, r.seed) for r in first] == [("teacher", 0), ("random initialisation", 0)]
    assert [r.history.step for r in first] == [[0, 2], [0, 2, 3]]
    assert called[-1] == ("random initialisation, seed 0", runs.total_steps(experiment, config))
    assert first == [Result.from_json(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert (tmp_path / "runs" / "teacher" / "seed-0" / "checkpoints").is_dir()
    assert not (tmp_path / "runs" / "random-initialisation" / "seed-0" / "checkpoints").exists()

    seen: list[int] = []
    more = tiny(seeds=2)
    both = runs.carry_out(experiment, more, tmp_path, on_seed=lambda results: seen.append(len(results)))
    assert both[:2] == first  # their wall times too: nothing was done again
    assert seen == [2, 4]
    assert [r.seed for r in both] == [0, 0, 1, 1]
    assert both[0].history.val_loss != both[2].history.val_loss

    with pytest.raises(ValueError, match=r"--teacher-steps \(=9\) is 2 in the run"):
        runs.carry_out(experiment, tiny(teacher_steps=9), tmp_path)


def files_of(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_folder_is_of_one_experiment(tmp_path: Path) -> None:
    """Two experiments have runs of the same names with other networks: none is gone on with as the other."""
    config = tiny(seeds=1, teacher_steps=1, steps=1)
    experiment = dataclasses.replace(two_variants(config), variants=[])
    runs.carry_out(experiment, config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["experiment"] == "two"
    other = dataclasses.replace(experiment, name="another")

    def old_without_its_name() -> None:
        document = json.loads((tmp_path / "config.json").read_text())
        del document["experiment"]
        (tmp_path / "config.json").write_text(json.dumps(document))

    def nothing_finished() -> None:
        (tmp_path / "runs" / "teacher" / "seed-0" / "result.json").unlink()

    for change, message in (
        (lambda: None, "has runs of two, not of another: give another folder"),
        (old_without_its_name, "has runs of two, not of another: give another folder"),
        (nothing_finished, "does not say to what experiment"),
    ):
        change()
        before = files_of(tmp_path)
        with pytest.raises(ValueError, match=message):
            runs.carry_out(other, config, tmp_path)
        assert files_of(tmp_path) == before


def test_the_report_is_of_all_runs_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_rate(config: ReproduceConfig) -> Experiment:
        two = two_variants(config)
        variants = [dataclasses.replace(two.variants[0], detail=students.rate(s)) for s in config.grid.shares]
        return dataclasses.replace(two, variants=variants, reference=variants[0].name, claims=[])

    monkeypatch.setitem(reproduce.EXPERIMENTS, "two", by_rate)
    changes = {"seeds": 1, "teacher_steps": 1, "steps": 1}
    for rates, variants in (("0.2", 2), ("0.1", 3), ("0.2", 3)):
        results = reproduce.reproduce("two", tiny("two", rates=rates, **changes), tmp_path)
        assert len(results) == variants
        for rate in {"0.2", rates}:
            assert f"| {SCRATCH}, rate {rate} |" in (tmp_path / "table.md").read_text()
    experiment, config = reproduce.of_folder("two", tmp_path)
    assert config.grid.rates == "0.1,0.2"
    assert len(summary.rows(experiment, results)) == 3


def test_grids_together() -> None:
    before = tiny(rates="0.1,0.2", every=True, seeds=5).grid
    assert tiny(rates="0.3", seeds=2).grid.together(before) == tiny(rates="0.1,0.2,0.3", every=True, seeds=5).grid
    assert tiny(rates="0.2,0.1", seeds=6).grid.together(before).rates == "0.2,0.1"


def test_a_teacher_that_is_gone(tmp_path: Path) -> None:
    config = tiny(seeds=1, teacher_steps=1, steps=1)
    whole = two_variants(config)
    runs.carry_out(dataclasses.replace(whole, variants=[]), config, tmp_path)
    gone = tmp_path / "runs" / "teacher" / "seed-0" / "checkpoints"
    shutil.rmtree(gone)
    before = files_of(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{gone} has no checkpoint of the teacher"):
        runs.carry_out(whole, config, tmp_path)
    assert files_of(tmp_path) == before
    runs.carry_out(dataclasses.replace(whole, variants=[]), config, tmp_path)  # all is done: nobody needs it


def _killed(out: Path, at: int | None) -> None:
    config = tiny(seeds=1)

    def on_step(name: str, steps: int) -> None:
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)

    runs.carry_out(two_variants(config), config, out, on_step)


def test_killed_and_resumed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["net2net.experiments.reproduce", "safetensors.torch", "sklearn.datasets"])
    for at in (4, None):
        process = context.Process(target=_killed, args=(tmp_path / "killed", at))
        process.start()
        process.join(timeout=300)
        assert process.exitcode == (0 if at is None else -signal.SIGKILL)
    _killed(tmp_path / "whole", None)
    whole, killed = (
        [dataclasses.replace(r, history=dataclasses.replace(r.history, seconds=[])) for r in runs.results(place)]
        for place in (tmp_path / "whole", tmp_path / "killed")
    )
    assert killed == whole
    assert not list((tmp_path / "killed").rglob(".*"))


def test_what_diverges_is_a_result(tmp_path: Path) -> None:
    config = tiny(seeds=1)
    calm = two_variants(config)

    def wild(setting: runs.Setting) -> Any:
        start = calm.variants[0].start(setting)
        with torch.no_grad():
            next(start.state.model.parameters()).fill_(math.nan)
        return start

    experiment = dataclasses.replace(calm, variants=[Variant("wild", "", wild)], reference="wild", claims=[])
    results = runs.carry_out(experiment, config, tmp_path)
    assert results[1].error == "after 0 steps the losses are nan and nan (validation)"
    row = summary.rows(experiment, results)[1]
    assert (row.seeds, row.diverged, row.final, row.to_teacher) == (1, 1, None, [])
    reproduce.write(experiment, config, results, tmp_path)


def test_images_that_are_read_from_a_folder(tmp_path: Path) -> None:
    images = write_image_folder(tmp_path / "images", raw_digits())
    config = tiny(seeds=1, data=str(images), workers=0)
    results = runs.carry_out(two_variants(config), config, tmp_path / "out")
    assert [len(r.history.step) for r in results] == [2, 3]


def test_one_command_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path, "held"), pytest.raises(BlockingIOError, match="is being written by another process"):
        runs.carry_out(two_variants(tiny()), tiny(), tmp_path)
    assert runs.results(tmp_path) == []


def test_no_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process"):
        runs.carry_out(two_variants(tiny()), tiny(), tmp_path)


def test_figure4_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | {"seeds": 1}).items()]
    assert main(["reproduce", "figure4", "--out", str(tmp_path), *options, "--feature-prediction"]) == 0
    assert "report.html" in capsys.readouterr().out
    found = {r.variant: r for r in runs.results(tmp_path)}
    assert list(found) == [
        "teacher",
        "Net2WiderNet, rate 0.1",
        "Net2WiderNet, the paper's noise, rate 0.1",
        "random pad, rate 0.1",
        "random initialisation",
        "feature prediction",
    ]
    exact, noisy, pad, scratch, predicting = list(found.values())[1:]
    assert exact.notes["grown"]["max_rel"] < 1e-4 < noisy.notes["grown"]["max_rel"]
    assert exact.history.val_accuracy[0] == found["teacher"].history.val_accuracy[-1]
    assert exact.history.val_loss[0] == pytest.approx(found["teacher"].history.val_loss[-1], rel=1e-4)
    assert pad.history.val_loss[0] != pytest.approx(exact.history.val_loss[0], rel=1e-2)
    assert exact.lr == noisy.lr == pad.lr == pytest.approx(scratch.lr / 10)
    assert len({r.parameters for r in (exact, noisy, pad, scratch, predicting)}) == 1
    assert predicting.history.val_loss[0] == scratch.history.val_loss[0]
    assert predicting.history.val_loss[-1] != scratch.history.val_loss[-1]
    for name in ("report.html", "table.md", "curves.png", "config.json", "environment.json"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["figure5", "figure6", "symmetry"])
def test_the_other_experiments(name: str, tmp_path: Path) -> None:
    results = reproduce.reproduce(name, tiny(name, seeds=1), tmp_path)
    teacher = results[0]
    for result in results:
        if "grown" in result.notes and "paper" not in result.variant:
            assert result.notes["grown"]["max_rel"] < 1e-4
            assert result.history.val_loss[0] == pytest.approx(teacher.history.val_loss[-1], rel=1e-4)
        if name == "symmetry" and "grown" in result.notes:
            assert result.notes["replicas"]["step"] == result.history.step


# -- what is said of them --------------------------------------------------------------------------------------------


def made_up(variant: str, seed: int, accuracy: list[float], error: str | None = None) -> Result:
    steps = [10 * i for i in range(len(accuracy))]
    losses = [1 - a for a in accuracy]
    history = History(steps, accuracy, losses, accuracy, losses, [], [], [float(s) for s in steps])
    return Result("two", variant, variant, "", seed, 1000, 0.1, history, {}, error)


SCRATCH = "random initialisation"


def test_estimate() -> None:
    assert Estimate.of([]) is None
    assert Estimate.of([3.0]) == Estimate(3.0, None, 1)
    estimate = Estimate.of([1.0, 2.0, 3.0, 4.0])
    assert estimate is not None
    assert estimate.mean == 2.5
    # 3.1824, the t distribution's 97.5 % quantile for 3 degrees of freedom, times 1.2910 / 2
    assert estimate.margin == pytest.approx(2.0542, abs=1e-3)


def test_rows_of_made_up_curves() -> None:
    experiment = two_variants(tiny())
    results = [
        made_up("teacher", 0, [0.1, 0.5, 0.6, 0.6, 0.6]),
        made_up(SCRATCH, 0, [0.1, 0.3, 0.6, 0.9, 0.9, 0.9]),
        made_up("teacher", 1, [0.1, 0.5, 0.8, 0.8, 0.8]),
        made_up(SCRATCH, 1, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        made_up("teacher", 2, [0.1, 0.5, 0.8, 0.8, 0.8]),
        made_up(SCRATCH, 2, [0.1], error="nan"),
    ]
    teacher, scratch = summary.rows(experiment, results)
    assert (teacher.to_teacher, scratch.to_teacher) == ([20, 20, 20], [20])
    assert (teacher.to_reference, scratch.to_reference) == ([20], [30, 50])
    assert (scratch.seeds, scratch.diverged, teacher.diverged) == (3, 1, 0)
    assert teacher.speed_up == 2.5  # in seed 1; in seed 0 it never had the reference's 0.9
    assert scratch.speed_up == 1.0
    assert scratch.final is not None
    assert scratch.final.mean == pytest.approx((0.9 + 0.55) / 2)  # means of two evaluations of five
    assert teacher.first_loss == Estimate(0.9, 0.0, 3)


@pytest.mark.parametrize(
    ("steps", "values", "expected"),
    [
        ([0, 30], [0.1, 0.4], 0.4),  # what was before any step is never in it
        ([0, 10, 20, 30], [0.1, 0.2, 0.3, 0.4], 0.4),
        ([0, 1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5, 0.7], 0.6),
        (list(range(10)), [0.1 * i for i in range(10)], 0.8),
        (list(range(101)), [0.01 * i for i in range(101)], 0.99),  # never more than three
        ([10, 20], [0.3, 0.4], 0.4),
        ([0], [0.1], 0.1),  # it was not trained at all
    ],
)
def test_final_is_of_the_last_quarter(steps: list[int], values: list[float], expected: float) -> None:
    assert summary.final(steps, values) == pytest.approx(expected)


def test_who_computes_what_the_teacher_does_has_its_accuracy_at_once() -> None:
    """The teacher may have been better shortly before its end: its students begin with what it was then."""
    experiment = two_variants(tiny())
    accuracy = [0.1, *[0.9] * 11, 0.8]
    results = [made_up("teacher", 0, accuracy), made_up(SCRATCH, 0, [0.8, 0.7, 0.9])]
    assert [row.to_teacher for row in summary.rows(experiment, results)] == [[10], [0]]


def test_speed_up_from_the_start() -> None:
    experiment = two_variants(tiny())
    results = [made_up("teacher", 0, [0.9, 0.9, 0.9]), made_up(SCRATCH, 0, [0.1, 0.8, 0.8, 0.8])]
    assert summary.rows(experiment, results)[0].speed_up == math.inf
    assert summary.rows(experiment, results[:1])[0].speed_up is None


def test_mean_accuracy_is_an_area() -> None:
    history = made_up("teacher", 0, [0.0, 1.0, 1.0]).history
    assert summary.mean_accuracy(history) == pytest.approx(0.75)
    history.step[2] = 40  # 5 until step 10, 30 until step 40
    assert summary.mean_accuracy(history) == pytest.approx(35 / 40)


@pytest.mark.parametrize(
    ("sign", "gains", "words"),
    [
        (1, [], "not run"),
        (1, [0.1], "one seed cannot tell"),
        (1, [0.1, 0.11, 0.09], "confirmed"),
        (-1, [0.1, 0.11, 0.09], "contradicted"),
        (0, [0.1, 0.11, 0.09], "contradicted"),
        (1, [0.1, -0.1, 0.05], "undecided"),
        (0, [0.1, -0.1, 0.05], "no difference found"),
        (1, [0.1, 0.1], "undecided"),  # one image is 0.1
        (1, [0.1, 0.1, 0.1, 0.1], "undecided"),
    ],
)
def test_verdicts(sign: int, gains: list[float], words: str) -> None:
    experiment = two_variants(tiny())
    claim = dataclasses.replace(experiment.claims[0], sign=sign)
    results = [made_up("teacher", seed, [0.1 * seed + 0.2]) for seed in range(5)]
    results += [made_up(SCRATCH, seed, [0.1 * seed + 0.2 + gain]) for seed, gain in enumerate(gains)]
    (verdict,) = summary.verdicts(dataclasses.replace(experiment, claims=[claim]), results)
    assert verdict.words == words


def test_one_image() -> None:
    results = [made_up("teacher", 0, [k / 359 for k in (36, 39, 341)]), made_up("teacher", 1, [0.0, 1.0])]
    assert summary.one_image(results) == pytest.approx(1 / 359)
    assert summary.one_image(results[1:]) == 1


@pytest.mark.parametrize(
    ("measure", "words", "margin"),
    # one image of 1000 is far less than the difference: 12.706 * 0.001 / sqrt(2)
    [
        ("final accuracy", "confirmed", 0.00898),
        ("mean accuracy", "confirmed", 0.00898),
        ("final training loss", "undecided", 0.0),
    ],
)
def test_seeds_that_agree(measure: str, words: str, margin: float) -> None:
    experiment = two_variants(tiny())
    claim = dataclasses.replace(experiment.claims[0], measure=measure, sign=-1 if "loss" in measure else 1)
    results = [made_up("teacher", seed, [0.25 + 0.125 * seed, 0.002]) for seed in (0, 1)]
    results += [made_up(SCRATCH, seed, [0.5 + 0.125 * seed, 0.252]) for seed in (0, 1)]
    (verdict,) = summary.verdicts(dataclasses.replace(experiment, claims=[claim]), [*results, made_up("x", 0, [0.001])])
    assert verdict.words == words
    assert verdict.difference is not None
    assert verdict.difference.margin == pytest.approx(margin, abs=1e-5)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_nothing_is_cut_on_a_narrow_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    name, figure = "Net2WiderNet, the paper's noise, rate 0.1", "0.4688 ± 0.2321"
    headings = ["variant", "to the teacher's", "to that of random initialisation", "validation accuracy"]
    console.print_table("Table", headings, [[name, "0", "never", figure], ["teacher", "1", "2", "-"]])
    shown = capsys.readouterr().out
    assert "…" not in shown
    for word in [*name.split(), *figure.split()] if columns >= 80 else []:
        assert word in shown
    assert (f"{name} " in shown) == (columns == 200)


# -- the report ------------------------------------------------------------------------------------------------------


class References(HTMLParser):
    """All that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        assert tag not in ("script", "link", "iframe", "object")


def test_report_is_one_well_formed_page(tmp_path: Path) -> None:
    config = tiny()
    experiment = dataclasses.replace(two_variants(config), figures=("curves", "replicas", "final"), against="teacher")
    results = [made_up(name, seed, [0.1, 0.5, 0.9]) for seed in (0, 1) for name in ("teacher", SCRATCH)]
    (tmp_path / "environment.json").write_text(json.dumps({"versions": {"a<b": "1"}, "platform": "p&q", "gpus": []}))
    written = reproduce.write(experiment, config, results, tmp_path, command="net2net reproduce 'a<b'")
    assert sorted(p.name for p in written) == ["curves.png", "report.html", "table.md"]
    page = (tmp_path / "report.html").read_text()
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert root.findtext("head/title") == "<Two> & more"
    references = References()
    references.feed(page)
    assert [reference[:22] for reference in references.found] == ["data:image/png;base64,"]
    assert "url(" not in page
    assert "Networks with 0.01 times the channels" in page
    tables = [[[cell.text for cell in row] for row in table.iter("tr")] for table in root.iter("table")]
    assert [row[0] for row in tables[0][1:]] == ["teacher", SCRATCH]
    assert tables[1][1][0] == "one is better"
    assert ["--teacher-steps", "2"] in tables[3]
    assert "| teacher | 1,000 |" in (tmp_path / "table.md").read_text()


def test_axes_begin_where_curves_can_be_told_apart() -> None:
    """Not at 0, where they begin, but below the second half of their means, and alike in all panels."""
    steps = [0, 10, 20, 30, 40]
    runs = [[0.1, 0.3, 0.80, 0.90, 0.92], [0.1, 0.3, 0.82, 0.92, 0.94]]
    students = Curve("students", [(steps, values) for values in runs])
    low, high = accuracy_limits([Panel([students], "accuracy", teacher=0.78), Panel([students], "accuracy")])
    assert (low, high) == pytest.approx((0.78 - 0.015, 0.93 + 0.015))
    assert accuracy_limits([Panel([Curve("all", [(steps, [1.0] * 5)])], "accuracy")]) == pytest.approx((0.995, 1.005))


def test_all_figures_are_drawn() -> None:
    config = tiny("symmetry")
    experiment = reproduce.EXPERIMENTS["symmetry"](config)
    results = []
    for seed in (0, 1):
        for i, variant in enumerate(experiment.all):
            result = made_up(variant.name, seed, [0.1, 0.5, 0.9 - 0.01 * i * seed])
            notes = {"replicas": {"step": [0, 10], "weights": [0.0, 0.5], "outputs": [0.0, 0.1]}}
            result = dataclasses.replace(result, method=variant.method, detail=variant.detail, notes=notes)
            results.append(result)
    drawn = figures.draw(experiment, results)
    assert list(drawn) == ["curves", "replicas", "final"]
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())
    assert figures.draw(experiment, []) == {}
