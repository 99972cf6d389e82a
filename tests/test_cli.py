"""The command line, and the main job from end to end in a few steps."""

import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from net2net.cli import COMMANDS, main
from net2net.experiments import digits as experiment
from net2net.files import write_atomically
from net2net.plots import curves_png
from net2net.training import History

EXTRAS = ("sklearn", "matplotlib", "rich", "torchvision")


@pytest.fixture(scope="module")
def extras() -> None:
    """For tests of what needs the extra `demo`."""
    for module in ("sklearn", "matplotlib", "rich"):
        pytest.importorskip(module, reason=f"{module} is not installed")


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", *argv], capture_output=True, text=True, timeout=120)


def test_import_needs_no_extra() -> None:
    code = f"import sys, net2net, net2net.cli; print([m for m in {EXTRAS} if m in sys.modules])"
    done = run("-c", code)
    assert done.stdout == "[]\n", done.stderr


def test_python_m_net2net() -> None:
    done = run("-m", "net2net", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: net2net" in done.stdout
    for command in COMMANDS:
        assert command.name in done.stdout
        assert command.help in " ".join(done.stdout.split())


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert f"example:\n  net2net {command}" in out


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in ("torch", torch.__version__, "scikit-learn", "reference      ok", "native module", "cores"):
        assert words in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["grow-hair"], "invalid choice: 'grow-hair'"),
        (["demo", "--steps", "0"], "argument --steps: 0 is less than 1"),
        (["demo", "--steps", "many"], "argument --steps: 'many' is not a whole number"),
        (["demo", "--seed", "-1"], "argument --seed: -1 is less than 0"),
        (["demo", "--lr", "nan"], "argument --lr: nan is not a positive finite number"),
        (["demo", "--lr", "fast"], "argument --lr: 'fast' is not a number"),
        (["train", "--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["train", "--optimizer", "lion"], "argument --optimizer: invalid choice: 'lion'"),
        (["train", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["demo", "--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_wrong_command_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("extras")
def test_demo_refuses_before_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    out = ["--out", str(tmp_path / "out")]
    for argv, message in (
        (["--data", str(tmp_path / "nowhere"), *out], "nowhere') does not exist"),
        (["--out", str(tmp_path / "file")], "file') is a file, not a folder"),
        (["--device", "abacus", *out], "--device (='abacus') is no device"),
        (["--device", "cuda:99", *out], "--device (='cuda:99'): there are"),
        (["--device", "meta", *out], "--device (='meta') must be auto, cpu, cuda or cuda:N"),
        (["--batch-size", "5000", *out], "batch_size (=5000) must be at most the training set's 1438 images"),
    ):
        assert main(["demo", *argv]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("net2net demo: error: ")
        assert message in captured.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


# The rest needs growth itself: plan_widen, plan_deepen, random_pad, verify.


@pytest.fixture(scope="module")
def demo(extras: None, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that a short demo wrote, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "runs" / "demo"
    argv = ["--steps", "3", "--teacher-steps", "4", "--eval-every", "2", "--base", "0.04", "--seed", "3"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["demo", "--out", str(out), *argv, "--device", "cpu"]) == 0
    return out, printed.getvalue()


def test_demo_end_to_end(demo: tuple[Path, str]) -> None:
    out, printed = demo
    for words in ("wider", "deeper", "Net2Net", "random pad", "random initialisation", "results.json"):
        assert words in printed
    assert sorted(p.name for p in out.iterdir()) == ["curves.png", "results.json"]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")

    result = json.loads((out / "results.json").read_text())
    assert (result["config"]["seed"], result["config"]["student_steps"], result["dataset"]) == (3, 3, "digits")
    assert result["environment"]["versions"]["torch"] == torch.__version__
    assert result["teacher"]["history"]["step"] == [0, 2, 4]
    assert [s["history"]["step"] for s in result["students"]] == [[0, 2, 3]] * 3
    assert len({s["parameters"] for s in result["students"]}) == 1

    net2net, pad, scratch = result["students"]
    assert net2net["history"]["val_accuracy"][0] == result["teacher"]["history"]["val_accuracy"][-1]
    assert result["steps_to_teacher_accuracy"]["Net2Net"] == 0
    assert net2net["lr"] == pytest.approx(result["teacher"]["lr"] / 10)
    assert pad["history"]["val_loss"][0] != net2net["history"]["val_loss"][0]
    assert [step["name"] for step in result["growth"]] == ["wider", "deeper"]
    for step in result["growth"]:
        assert step["parameters_after"] > step["parameters_before"]
        assert max(step["eval_mode"]["max_rel"], step["train_mode"]["max_rel"]) < 1e-3
        assert step["skipped"] == []
    assert result["growth"][1]["parameters_after"] == scratch["parameters"]


def test_demo_is_fixed_by_its_seed(demo: tuple[Path, str]) -> None:
    from net2net.data import digits

    first = json.loads((demo[0] / "results.json").read_text())
    config = experiment.DemoConfig(**first["config"])
    calls: list[tuple[str, int]] = []
    before = torch.get_rng_state()
    again = experiment.run(config, digits(), on_step=lambda *call: calls.append(call))
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(first["students"], again.students, strict=True):
        assert {**a["history"], "seconds": []} == {**dataclasses.asdict(b.history), "seconds": []}
    assert calls[-1] == (experiment.SCRATCH, config.total_steps)
    assert [steps for phase, steps in calls if phase != experiment.GROWING] == list(range(1, config.total_steps + 1))


@pytest.mark.usefixtures("extras", "one_thread")
def test_train_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    argv = ["train", "--runs", str(tmp_path), "--model", "net2net.models:inception_bn(base=0.02)", "--device", "cpu"]
    short = ["--steps", "3", "--save-every", "2", "--eval-images", "32", "--seed", "5"]
    assert main([*argv, *short]) == 0
    assert f"wrote {tmp_path / 'train'}" in capsys.readouterr().out
    config = json.loads((tmp_path / "train" / "config.json").read_text())
    assert (config["loop"]["steps"], config["run"]["seed"], config["optimizer"]["eps"]) == (3, 5, None)
    assert sorted(p.name for p in (tmp_path / "train" / "checkpoints").iterdir()) == [
        "latest",
        "step-00000000",
        "step-00000002",
        "step-00000003",
    ]
    assert main([*argv, *short]) == 1
    assert "--resume goes on with that run" in capsys.readouterr().err
    assert main(["train", "--runs", str(tmp_path), "--resume"]) == 0  # what is not given is as it was
    assert main(["train", "--runs", str(tmp_path), "--resume", "--steps", "9"]) == 1
    assert "--steps (=9) is 3 in the run" in capsys.readouterr().err
    document = {**config, "optimizer": {**config["optimizer"], "lr": 0.5}}
    (tmp_path / "other.json").write_text(json.dumps(document))
    other = ["train", "--runs", str(tmp_path), "--resume", "--config", str(tmp_path / "other.json")]
    assert main(other) == 1
    assert "--lr (=0.5) is 0.045 in the run" in capsys.readouterr().err
    assert main([*other, "--lr", "0.045"]) == 0
    copied = ["train", "--config", str(tmp_path / "train" / "config.json"), "--name", "other"]
    assert main(copied) == 0
    for place in ("train", "other"):
        rows = (tmp_path / place / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == [0, 3]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lr", "0"], "lr (=0.0) must be above 0"),
        (["--name", ""], "name (='') must be the name of a folder"),
        (["--name", "../esc"], "name (='../esc') must be the name of a folder"),
        (["--threads", "1000000"], "threads (=1000000) must be at most"),
        (["--steps", "-1"], "steps (=-1) must be at least 0"),
        (["--data", "nowhere"], "path (='nowhere') does not exist"),
        (["--config", "nowhere.json"], "nowhere.json"),
        (["--device", "abacus"], "--device (='abacus') is no device"),
    ],
)
def test_train_refuses(argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="rich is not installed")
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    assert main(["train", "--runs", str(tmp_path), *argv]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_curves_need_a_history() -> None:
    with pytest.raises(ValueError, match="at least one curve"):
        curves_png({}, History())


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, "old")
    with pytest.raises(TypeError):
        write_atomically(path, 1)  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert path.read_text() == "old"
    write_atomically(path, b"new")
    assert path.read_text() == "new"


def test_inspect_shows_groups(capsys: pytest.CaptureFixture[str]) -> None:
    model = "net2net.models:inception_bn(num_classes=3, width=0.2, stem='small')"
    assert main(["inspect", "--model", model, "--input", "1x3x16x16", "--widen", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "with", "it", "units", "blocks", "becomes"]
    assert any("the network's outputs" in line for line in lines)
    name, units, blocks, becomes = lines[1].split()
    assert (name, int(becomes)) == ("stem.conv1.conv", 2 * int(units))
    assert blocks == units


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing", "--input", "1x3"], r"--model \(='nothing'\)"),
        (["--model", "torch.nn:Missing", "--input", "1x3"], "Missing"),
        (["--model", "torch.nn:Linear(3)", "--input", "1x3"], "is not name=value"),
        (["--model", "torch.nn:Linear", "--input", "1x3"], "in_features"),
        (["--model", "torch:Size", "--input", "1x3"], "not a torch.nn.Module"),
        (["--model", "torch.nn:Identity", "--input", "1,3"], r"--input \(='1,3'\)"),
    ],
)
def test_inspect_with_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)
