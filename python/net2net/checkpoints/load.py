"""A grown network from a checkpoint that has its growth log."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from net2net.checkpoints import formats, log
from net2net.checkpoints.architecture import architecture
from net2net.checkpoints.prefixes import parted, prefixes_of
from net2net.checkpoints.stored import Stored
from net2net.skeleton import Tensors, rebuild


def load(path: str | os.PathLike[str], base_factory: Callable[[], nn.Module]) -> nn.Module:
    """The network of a checkpoint: the one that the first growth began with, grown by all of the log, with the
    checkpoint's values.

    Works for any checkpoint that `GrowthPlan.grow_checkpoint` takes or gives; one that has never grown has no log, and
    its network is the base.

    Args:
        path: the checkpoint. Where it has the model several times, the first one counts.
        base_factory: makes the network before its first growth; its values do not count, but what it keeps outside of
            its state dict does.

    Returns:
        A module with tensors of the checkpoint's dtypes, on the CPU, in the mode that the base is in.

    Raises:
        ValueError: the checkpoint is damaged, has a plan of another version, or is of another network.
    """
    return network(path, base_factory, in_memory=True)


def network(path: str | os.PathLike[str], base_factory: Callable[[], nn.Module], *, in_memory: bool) -> nn.Module:
    """`load`; without `in_memory`, parameters are the file's own memory, which must not be written to."""
    with tempfile.TemporaryDirectory() as scratch:
        # What is put together there stays as long as it is mapped.
        checkpoint = formats.read(Path(path), Path(scratch))
    model = base_factory()
    if not isinstance(model, nn.Module):
        raise TypeError(f"base_factory made a {type(model).__name__}, not a torch.nn.Module")
    for plan in log.plans(checkpoint.log, str(path)):
        model = architecture(plan, model)
    return _filled(model, checkpoint.tree, str(path), in_memory)


def _filled(model: nn.Module, tree: Any, what: str, in_memory: bool) -> nn.Module:
    """The model with the values of the first of its state dicts in `tree`."""
    names: dict[int, list[str]] = {}
    for name, t in model.state_dict(keep_vars=True).items():
        if isinstance(t, torch.Tensor):
            names.setdefault(id(t), []).append(name)
    own = {name: None for each in names.values() for name in each}
    stored = _find(tree, own)
    if stored is None:
        raise ValueError(f"{what} has none of the tensors of the network, such as {next(iter(own), 'any')}")
    for name in stored:
        if name not in own:
            raise ValueError(f"{what} has {name}, which the network has not: another base, or a growth without a log?")
    values = {}
    for first, t in Tensors.of(model).by_name.items():
        if id(t) not in names:
            continue
        source = next((stored[name] for name in names[id(t)] if name in stored), None)
        if source is None:
            raise ValueError(f"{what} has no {first}, which the network has: another base, or a growth without a log?")
        if source.shape != t.shape:
            raise ValueError(f"{what} has {first} of shape {source.shape}, but in the network it is {tuple(t.shape)}")
        values[first] = source.tensor()
        if in_memory or not isinstance(t, nn.Parameter):
            values[first] = values[first].clone()
            source.release()
    return rebuild(model, values)


def _find(node: Any, names: Mapping[str, Any]) -> dict[str, Stored] | None:
    if isinstance(node, list | tuple):
        node = dict(enumerate(node))
    if not isinstance(node, Mapping):
        return None
    if prefixes := prefixes_of(node, {}, names, names):
        return parted(node, prefixes)[0][prefixes[0]]
    return next((found for value in node.values() if (found := _find(value, names)) is not None), None)
