"""Checkpoints in safetensors: a single file; or several with an index, as Hugging Face's libraries write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from net2net.checkpoints import log, safetensors_file
from net2net.checkpoints.checkpoint import Checkpoint, Format
from net2net.checkpoints.stored import Stored
from net2net.checkpoints.streams import Stream
from net2net.checkpoints.tally import Tally

SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"


class SingleFile(Format):
    """One file; the growth log is in its metadata."""

    name = "a safetensors file"

    def read(self, path: Path, scratch: Path | None = None) -> Checkpoint:
        tensors, metadata = safetensors_file.read(path)
        return Checkpoint(self, tensors, log.read(metadata, str(path)), metadata)

    def write(self, checkpoint: Checkpoint, path: Path, tally: Tally) -> None:
        metadata = {**checkpoint.rest, log.KEY: log.written(checkpoint.log)}
        safetensors_file.write(path, checkpoint.tree, metadata, tally)

    def check_target(self, path: Path) -> None:
        if path.suffix != SUFFIX:
            raise ValueError(f"dst (={str(path)!r}) must end in {SUFFIX}, as the source is {self.name}")


class Sharded(Format):
    """A folder with files and an index, which says in which of them a tensor is; or with one file alone.

    The growth log is in the index's metadata (in the file's, if there is no index). What else a folder has, such as a
    configuration, is not of the grown network and stays behind.
    """

    name = "a folder of safetensors files"

    def read(self, path: Path, scratch: Path | None = None) -> Checkpoint:
        indices = sorted(path.glob(f"*{INDEX}"))
        if len(indices) > 1:
            raise ValueError(f"{path} has several indices: {', '.join(p.name for p in indices)}")
        if not indices:
            (file,) = path.glob(f"*{SUFFIX}")
            tensors, metadata = safetensors_file.read(file)
            return Checkpoint(self, tensors, log.read(metadata, str(file)), (None, {}, {file.name: metadata}))
        index = _index(indices[0])
        parts: dict[str, dict[str, Stored]] = {}
        metadatas: dict[str, dict[str, str]] = {}
        tensors = {}
        for name, file_name in index["weight_map"].items():
            if file_name not in parts:
                parts[file_name], metadatas[file_name] = safetensors_file.read(path / file_name)
            if name not in parts[file_name]:
                raise ValueError(f"{indices[0]} has {name} in {file_name}, which has not")
            tensors[name] = parts[file_name][name]
        found = log.read(index.get("metadata") or {}, str(indices[0]))
        return Checkpoint(self, tensors, found, (indices[0].name, index, metadatas))

    def write(self, checkpoint: Checkpoint, path: Path, tally: Tally) -> None:
        index_name, index, metadatas = checkpoint.rest
        path.mkdir()
        shards: dict[str, dict[str, Stream]] = {file_name: {} for file_name in metadatas}
        where = next(iter(shards), "")
        for name, stream in checkpoint.tree.items():
            # What is new is where the tensor before it is.
            where = stream.tied[0].name if stream.tied is not None else where
            shards[where][name] = stream
        text = log.written(checkpoint.log)
        for file_name, streams in shards.items():
            own = metadatas[file_name] if index_name else {**metadatas[file_name], log.KEY: text}
            safetensors_file.write(path / file_name, streams, own, tally)
        if index_name:
            total = sum(stream.nbytes for stream in checkpoint.tree.values())
            metadata = {**(index.get("metadata") or {}), "total_size": total, log.KEY: text}
            metadata.pop("total_parameters", None)
            weight_map = {name: file_name for file_name, streams in shards.items() for name in streams}
            document = {**index, "metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
            (path / index_name).write_text(json.dumps(document, indent=2) + "\n")


def _index(path: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name, file_name in index["weight_map"].items():
            if Path(file_name).name != file_name:
                raise ValueError(f"{name} is in {file_name!r}, which is no name of a file beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of safetensors files: {type(error).__name__}: {error}") from error
    return index
