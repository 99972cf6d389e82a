"""Checkpoints: a folder for each, with tensors as safetensors and all else as JSON.

    step-00001000/
        model.safetensors      the model's state dict
        ema.safetensors        the moving average's, if there is one
        optimizer.safetensors  "<parameter>/<key>", such as "stem.conv1.conv.weight/square_avg"
        state.json             the rest of the `State`
    growth/                    plans of what the model has grown by, see `growing`
    latest                     the name of the last one that was saved

A folder is there with all that belongs to it, on disk, or not at all, and is never written to again.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from net2net.dynamics import keep_dynamics
from net2net.extras import require
from net2net.files import naming, new_folder, remove_folder, remove_unfinished, write_atomically
from net2net.training import distributed
from net2net.training.state import History, State

VERSION = 1
PREFIX = "step-"
SIMPLE = ("step", "epoch", "batch", "seconds", "loss_sum", "notes", "generators")


def save(state: State, folder: Path, keep: int = 0) -> Path:
    """Save `state` as `folder/step-N`; every process calls it, the first one writes.

    Args:
        state: between two steps.
        folder: made if need be.
        keep: so many checkpoints are kept, older ones removed; 0 for all.

    Returns:
        The checkpoint's folder.

    Raises:
        FileExistsError: there is a checkpoint of this step already.
        ModuleNotFoundError: safetensors is not installed; names the extra that brings it.
    """
    path = folder / f"{PREFIX}{state.step:08d}"
    if distributed.rank_and_size()[0] == 0:
        folder.mkdir(parents=True, exist_ok=True)
        with new_folder(path) as place:
            _write(state, place)
        write_atomically(folder / "latest", path.name + "\n")
        for old in saved(folder)[:-keep] if keep else ():
            remove_folder(old)
    distributed.wait_for_all()
    return path


def saved(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, in the order of their steps; each is complete.

    The last may be newer than `latest`, if the process was killed just then.
    """
    return sorted(folder.glob(f"{PREFIX}[0-9]*")) if folder.is_dir() else []


def clean(folder: Path) -> None:
    """Remove what a process left that was killed while it saved."""
    remove_unfinished(folder, PREFIX, "latest")


def restore(state: State, path: Path, *, settings: bool = True) -> None:
    """Bring `state`, with a model, optimizer, scheduler and average like those that were saved, to what `path` has.

    Args:
        state: as far as it has been trained, it is overwritten.
        path: a checkpoint's folder.
        settings: also the learning rates, the schedule and the optimizer's other options; False leaves those that
            `state` has, and restores what training has made: weights, moments, steps, history.

    Raises:
        ValueError: it is no checkpoint, or of another version, or does not fit `state`.
        ModuleNotFoundError: safetensors is not installed; names the extra that brings it.
    """
    document = _document(path)
    for name, mine in (("scheduler", state.scheduler), ("ema", state.ema)):
        if (document[name] is None) != (mine is None):
            raise ValueError(
                f"path (={str(path)!r}) has {'no' if mine is not None else 'a'} {name}, the run has {mine or 'none'}"
            )
    _load_model(state.model, path / "model.safetensors", document["shared"])
    if state.ema is not None:
        _load_model(state.ema.module, path / "ema.safetensors", document["shared"])
        state.ema.n_averaged.fill_(document["ema"])
    _load_optimizer(state.model, state.optimizer, path / "optimizer.safetensors", document["optimizer"], settings)
    if state.scheduler is not None and settings:
        state.scheduler.load_state_dict(document["scheduler"])
    for name in SIMPLE:
        setattr(state, name, document[name])
    state.history = History(**document["history"])


def notes(path: Path) -> dict[str, Any]:
    """The `State.notes` of a checkpoint. ValueError if it is none, or of another version."""
    found: dict[str, Any] = _document(path)["notes"]
    return found


def _document(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((path / "state.json").read_text(), object_hook=_tensor)
    except (OSError, ValueError) as error:
        raise ValueError(f"path (={str(path)!r}) is no checkpoint: {error}") from error
    if document["version"] != VERSION:
        raise ValueError(f"path (={str(path)!r}) is a checkpoint of version {document['version']}, not {VERSION}")
    return document


def _write(state: State, place: Path) -> None:
    tensors, shared = _without_twins(state.model)
    _save_tensors(tensors, place / "model.safetensors")
    if state.ema is not None:
        _save_tensors(_without_twins(state.ema.module)[0], place / "ema.safetensors")
    tensors, optimizer = _optimizer_state(state.model, state.optimizer)
    _save_tensors(tensors, place / "optimizer.safetensors")
    document = {
        "version": VERSION,
        **{name: getattr(state, name) for name in SIMPLE},
        "history": dataclasses.asdict(state.history),
        "scheduler": None if state.scheduler is None else state.scheduler.state_dict(),
        "ema": None if state.ema is None else int(state.ema.n_averaged),
        "optimizer": optimizer,
        "shared": shared,
    }
    with naming(place / "state.json"):
        (place / "state.json").write_text(json.dumps(document, indent=1, default=_numbers) + "\n")


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """OSError if they cannot be written, as where the disk is full."""
    try:
        require("safetensors.torch", "train").save_file(tensors, path)
    except require("safetensors", "train").SafetensorError as error:
        raise OSError(
            f"{path.name} of {path.parent.name} cannot be written into {path.parent.parent}: {error}; "
            "the run can be resumed from the checkpoint before"
        ) from error


def _numbers(tensor: Tensor) -> dict[str, Any]:
    """A small tensor in JSON, such as the options of parameter groups may have."""
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "values": tensor.tolist()}


def _tensor(document: dict[str, Any]) -> Any:
    if document.keys() != {"dtype", "values"}:
        return document
    return torch.tensor(document["values"], dtype=getattr(torch, document["dtype"]))


# -- models ----------------------------------------------------------------------------------------------------------


def _without_twins(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict without tensors that are there under another name already (tied weights), and whose they are."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first:
            shared[name] = first[place]
        else:
            first[place] = name
            tensors[name] = _plain(tensor)
    return tensors, shared


def _load_model(model: nn.Module, path: Path, shared: dict[str, str]) -> None:
    tensors = require("safetensors.torch", "train").load_file(path)
    tensors |= {name: tensors[other] for name, other in shared.items()}
    mine = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            raise ValueError(
                f"path (={str(path)!r}) does not fit the model: {name} is {theirs.get(name, 'missing')} there and "
                f"{mine.get(name, 'missing')} in the model"
            )
    model.load_state_dict(tensors)


# -- optimizers ------------------------------------------------------------------------------------------------------


def _optimizer_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by "<parameter>/<key>", and the rest: the class, the groups with parameters' names, other state."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            place = tensors if isinstance(value, Tensor) else others
            place[f"{names[parameter]}/{key}"] = _plain(value) if isinstance(value, Tensor) else value
    groups = [
        {**group, "params": [names[parameter] for parameter in group["params"]]} for group in optimizer.param_groups
    ]
    return tensors, {"class": type(optimizer).__name__, "groups": groups, "others": others}


def _load_optimizer(
    model: nn.Module, optimizer: Optimizer, path: Path, document: dict[str, Any], settings: bool
) -> None:
    if document["class"] != type(optimizer).__name__:
        raise ValueError(
            f"path (={str(path)!r}) has the state of {document['class']}, the run's optimizer is "
            f"{type(optimizer).__name__}"
        )
    parameters = dict(model.named_parameters())
    groups = [group["params"] for group in document["groups"]]
    mine = {name for name, p in parameters.items() if any(p is q for g in optimizer.param_groups for q in g["params"])}
    if len(groups) != len(optimizer.param_groups) or {name for names in groups for name in names} != mine:
        raise ValueError(f"path (={str(path)!r}) has state of other parameters than the run's optimizer")
    for group, there in zip(optimizer.param_groups, document["groups"], strict=True):
        for key, value in there.items():
            if key in group and not settings:
                continue  # what is not there yet, such as the factors of `dynamics`, is no setting
            # JSON has no tuples (Adam's betas)
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        group["params"] = [parameters[name] for name in there["params"]]
    optimizer.state.clear()
    tensors = require("safetensors.torch", "train").load_file(path)
    for place, value in {**tensors, **document["others"]}.items():
        name, _, key = place.rpartition("/")
        parameter = parameters[name]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            # In the parameter's own layout (channels_last), as the optimizer had made it.
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        elif isinstance(value, Tensor) and value.dim():
            value = value.to(parameter.device)
        optimizer.state[parameter][key] = value  # step counts stay on the CPU
    keep_dynamics(optimizer)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous()
