"""Files of `torch.save`: a state dict, an optimizer's, or a dict with both and anything else.

They are read with `weights_only=True`, so nothing in them is executed, and their tensors where they lie.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from net2net.checkpoints import log
from net2net.checkpoints.checkpoint import Checkpoint, Format
from net2net.checkpoints.stored import MappedFile, Stored
from net2net.checkpoints.streams import Stream
from net2net.checkpoints.tally import Tally, reserve
from net2net.checkpoints.trees import leaves, mapped

SUFFIXES = (".pt", ".pth", ".bin")


class TorchFile(Format):
    """The growth log is an entry of the outermost dict; in a state dict, which has tensors alone, one of its
    `_metadata`, which `load_state_dict` does not mind."""

    name = "a file of torch.save"

    def read(self, path: Path, scratch: Path | None = None) -> Checkpoint:
        file = MappedFile(path)
        try:
            loaded = torch.load(path, map_location="meta", weights_only=True)
        except Exception as error:  # a damaged pickle may raise anything
            hint = " (sparse and quantised tensors cannot be read here)" if "meta" in str(error) else ""
            raise ValueError(
                f"{path} is no file that torch.load reads with weights_only=True{hint}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(loaded, dict):
            raise ValueError(f"{path} has a {type(loaded).__name__}, not a dict")
        metadata = {**getattr(loaded, "_metadata", {}), **loaded}
        found = log.read({log.KEY: metadata.get(log.KEY)}, str(path))
        loaded.pop(log.KEY, None)
        return Checkpoint(self, mapped(loaded, Tensor, lambda t: _stored(file, t)), found)

    def write(self, checkpoint: Checkpoint, path: Path, tally: Tally) -> None:
        text = log.written(checkpoint.log)
        tensors: dict[object, Tensor] = {}  # memory for them is asked for, and never touched
        streams: dict[int, tuple[str, Stream]] = {}

        def hollow(where: str, stream: Stream) -> Tensor:
            key = stream.tied if stream.tied is not None else where
            if key not in tensors:
                tensors[key] = torch.empty(stream.shape, dtype=stream.dtype)
            streams.setdefault(id(tensors[key]), (where, stream))
            return tensors[key]

        names = {id(stream): where for where, stream in leaves(checkpoint.tree)}
        tree: Any = mapped(checkpoint.tree, Stream, lambda stream: hollow(names[id(stream)], stream))
        if all(isinstance(value, Tensor) for value in tree.values()):
            metadata = {name: entry for name, entry in getattr(tree, "_metadata", {}).items() if name != log.KEY}
            tree = OrderedDict(tree)
            tree._metadata = OrderedDict(metadata, **{log.KEY: text})
        else:
            tree[log.KEY] = text
        with path.open("xb") as file:
            with torch.serialization.skip_data():
                torch.save(tree, file)
            reserve(file, file.tell())
        written = mapped(torch.load(path, map_location="meta", weights_only=True), Tensor, _offset)
        places: dict[int, int] = {}
        for where, offset in _pairs(tree, written):
            places[id(where)] = offset
        with path.open("r+b") as filled:
            for key, (name, stream) in streams.items():
                filled.seek(places[key])
                tally.write(filled, name, stream)

    def check_target(self, path: Path) -> None:
        if path.suffix not in SUFFIXES:
            raise ValueError(f"dst (={str(path)!r}) must end in {' or '.join(SUFFIXES)}, as the source is {self.name}")


def _offset(t: Tensor) -> int:
    """Where in the file the tensor's storage begins, as torch.load tells of those on the meta device."""
    offset = t.untyped_storage()._checkpoint_offset
    if offset is None:
        raise ValueError(
            "a file of torch.save in its old format, without zip, cannot be grown where it lies: "
            "torch.save(torch.load(file, weights_only=True), file) gives one that can"
        )
    return int(offset)


def _stored(file: MappedFile, t: Tensor) -> Stored:
    if t.layout is not torch.strided:
        raise ValueError(f"{file.path} has a tensor of the layout {t.layout}, which cannot be read here")
    if t.is_conj() or t.is_neg():
        raise ValueError(f"{file.path} has a tensor that is to be conjugated or negated: save it with resolve_conj()")
    offset = _offset(t) + int(t.storage_offset()) * t.dtype.itemsize
    reach = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    if offset + reach * t.dtype.itemsize > file.size:
        raise ValueError(f"{file.path} is truncated: a tensor ends behind its {file.size} bytes")
    return Stored(file, t.dtype, tuple(t.shape), offset, None if t.is_contiguous() else tuple(map(int, t.stride())))


def _pairs(tree: Any, written: Any) -> list[tuple[Tensor, int]]:
    """Each tensor of the tree with its entry in another one of the same form."""
    if isinstance(tree, Tensor):
        return [(tree, written)]
    if isinstance(tree, dict):
        return [pair for key, value in tree.items() for pair in _pairs(value, written[key])]
    if isinstance(tree, list | tuple):
        return [pair for a, b in zip(tree, written, strict=True) for pair in _pairs(a, b)]
    return []
