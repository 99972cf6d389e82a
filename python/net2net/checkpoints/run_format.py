"""Checkpoints of `net2net train`: folders whose files `net2net.training.checkpoint` describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from net2net.checkpoints import log, safetensors_file
from net2net.checkpoints.checkpoint import Checkpoint, Format
from net2net.checkpoints.optimizers import CLASS
from net2net.checkpoints.streams import Stream
from net2net.checkpoints.tally import Tally
from net2net.plan import GrowthPlan

DOCUMENT = "state.json"
VERSION = 1

#: In the notes of that file, what has grown while the run went on; and the folder with the plans, beside the
#: checkpoints.
NOTES = "growth"
PLANS = "growth"


class Run(Format):
    """Model, optimizer, and the moving average if there is one; the growth log is in the model's file, after what the
    run's own notes have of growths.

    What else a run keeps (steps done, the schedule, the history) stays as it is. What is written has all growths in its
    log and none in the notes, since it lies in another place than the run's plans.
    """

    name = "a checkpoint of net2net train"

    def read(self, path: Path, scratch: Path | None = None) -> Checkpoint:
        document = _document(path)
        try:
            optimizer, shared = document["optimizer"], dict(document["shared"])
            groups, others, kind = optimizer["groups"], optimizer["others"], optimizer["class"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no checkpoint of a run: {type(error).__name__}: {error}") from error
        model, metadata = safetensors_file.read(path / "model.safetensors")
        tree: dict[str, Any] = {"model": model}
        if document.get("ema") is not None:
            tree["ema"] = safetensors_file.read(path / "ema.safetensors")[0]
        for tensors in tree.values():
            for name, other in shared.items():
                if other not in tensors:
                    raise ValueError(f"{path} has no {other}, which {name} is to share")
                tensors[name] = tensors[other]
        tensors, _ = safetensors_file.read(path / "optimizer.safetensors")
        state: dict[str, dict[str, Any]] = {}
        for place, value in {**tensors, **others}.items():
            name, _, key = place.rpartition("/")
            state.setdefault(name, {})[key] = value
        tree["optimizer"] = {"state": state, "param_groups": groups, CLASS: kind}
        return Checkpoint(self, tree, _log(path, document, metadata), (_without_growths(document), metadata))

    def read_log(self, path: Path) -> list[dict[str, Any]]:
        document = _document(path)
        return _log(path, document, safetensors_file.read(path / "model.safetensors")[1])

    def write(self, checkpoint: Checkpoint, path: Path, tally: Tally) -> None:
        document, metadata = checkpoint.rest
        path.mkdir()
        tree = checkpoint.tree
        own = {**metadata, log.KEY: log.written(checkpoint.log)}
        model, shared = _without_twins(tree["model"])
        safetensors_file.write(path / "model.safetensors", model, own, tally)
        if "ema" in tree:
            safetensors_file.write(path / "ema.safetensors", _without_twins(tree["ema"])[0], {}, tally)
        optimizer = tree["optimizer"]
        places = {f"{name}/{key}": v for name, kept in optimizer["state"].items() for key, v in kept.items()}
        tensors = {place: v for place, v in places.items() if isinstance(v, Stream)}
        safetensors_file.write(path / "optimizer.safetensors", tensors, {}, tally)
        others = {place: v for place, v in places.items() if place not in tensors}
        document = {
            **document,
            "optimizer": {"class": optimizer[CLASS], "groups": optimizer["param_groups"], "others": others},
            "shared": shared,
        }
        (path / DOCUMENT).write_text(json.dumps(document, indent=1) + "\n")


def _document(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((path / DOCUMENT).read_text(encoding="utf-8"))
        if document["version"] != VERSION:
            raise ValueError(f"it is of version {document['version']}, not {VERSION}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no checkpoint of a run: {type(error).__name__}: {error}") from error
    return document


def _log(path: Path, document: dict[str, Any], metadata: dict[str, str]) -> list[dict[str, Any]]:
    """Of growths in the run, then of those since."""
    entries = []
    for record in document.get("notes", {}).get(NOTES, {"done": []})["done"]:
        if not record["plans"]:
            raise ValueError(f"path (={str(path)!r}) has grown by {record['entry']!r}, whose plan was not saved")
        for name in record["plans"]:
            place = path.parent / PLANS / name
            try:
                plan = GrowthPlan.load(place)
            except OSError as error:
                raise ValueError(f"path (={str(path)!r}) needs the plan {place}: {error}") from error
            entries.append(log.entry(plan, f"step-{record['step']:08d}"))
    return [*entries, *log.read(metadata, str(path))]


def _without_growths(document: dict[str, Any]) -> dict[str, Any]:
    notes = document.get("notes", {})
    return {**document, "notes": {**notes, NOTES: {**notes[NOTES], "done": []}}} if NOTES in notes else document


def _without_twins(streams: dict[str, Stream]) -> tuple[dict[str, Stream], dict[str, str]]:
    """The streams without those of tensors that are there under another name already, and whose they are."""
    first: dict[object, str] = {}
    shared = {}
    for name, stream in streams.items():
        if stream.tied is not None and first.setdefault(stream.tied, name) != name:
            shared[name] = first[stream.tied]
    return {name: stream for name, stream in streams.items() if name not in shared}, shared
