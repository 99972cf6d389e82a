"""What a run leaves in its output folder: `results.json` with everything measured, and `curves.png`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from net2net.environment import environment
from net2net.experiments.digits import DemoResult
from net2net.files import write_atomically
from net2net.plots import curves_png


def write(result: DemoResult, out: Path, device: str) -> list[Path]:
    """Write a demo's results into the folder `out`, made if need be; returns the files' paths.

    Files of an earlier run are replaced, each at once: an interrupted write leaves the old ones.
    """
    out.mkdir(parents=True, exist_ok=True)
    histories = {training.name: training.history for training in result.students}
    png = curves_png(histories, result.teacher.history, f"{result.dataset}: growing a trained network")
    files: list[tuple[Path, str | bytes]] = [
        (out / "results.json", to_json(result, device)),
        (out / "curves.png", png),
    ]
    for path, data in files:
        write_atomically(path, data)
    return [path for path, _ in files]


def to_json(result: DemoResult, device: str) -> str:
    """Everything measured, what it was measured with, and on what."""
    document: dict[str, Any] = dataclasses.asdict(result)
    document["steps_to_teacher_accuracy"] = {t.name: result.steps_to_teacher(t) for t in result.students}
    document["device"] = device
    document["environment"] = environment()
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
