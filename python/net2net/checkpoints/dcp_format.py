"""Folders of `torch.distributed.checkpoint` (DCP), as data-parallel and sharded runs save them.

They are written by DCP itself, piece by piece. Their directory, `.metadata`, is a pickle, which DCP loads: read those
that you trust.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

from net2net.checkpoints import log
from net2net.checkpoints.checkpoint import Checkpoint, Format
from net2net.checkpoints.stored import MappedFile, Stored
from net2net.checkpoints.streams import PIECE_BYTES, Stream
from net2net.checkpoints.tally import Tally
from net2net.checkpoints.trees import leaves, mapped

#: An item of what is written has about so many bytes, or is one row that is larger.
ITEM_BYTES = 2**24

#: The growth log, in the folder.
LOG = f"{log.KEY}.json"


class Dcp(Format):
    """The growth log is a file in the folder. A tensor that was saved in several shards is first put together in a file
    in `scratch`, and so is a large one that does not lie at a multiple of its dtype's size."""

    name = "a folder of torch.distributed.checkpoint"

    def read(self, path: Path, scratch: Path | None = None) -> Checkpoint:
        try:
            metadata = dcp.FileSystemReader(path).read_metadata()
        except Exception as error:  # whatever unpickling raises
            raise ValueError(f"{path} is no DCP checkpoint: {type(error).__name__}: {error}") from error
        items = _Items(path, metadata.storage_data)
        flat: dict[str, Any] = {}
        apart: dict[str, tuple[TensorStorageMetadata, list[Stored]]] = {}
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                flat[name] = items.value(name)
                continue
            shards = [items.tensor(name, chunk.offsets) for chunk in entry.chunks]
            if len(shards) == 1 and (shards[0].is_aligned or shards[0].nbytes <= PIECE_BYTES):
                flat[name] = shards[0]
            else:
                flat[name] = None  # keeps its place
                apart[name] = entry, shards
        flat |= assembled(apart, scratch)
        paths = metadata.planner_data or {}
        tree = _nested({paths.get(name, (name,)): value for name, value in flat.items()})
        return Checkpoint(self, tree, self.read_log(path))

    def read_log(self, path: Path) -> list[dict[str, Any]]:
        text = (path / LOG).read_text(encoding="utf-8") if (path / LOG).is_file() else None
        return log.read({log.KEY: text}, str(path / LOG))

    def write(self, checkpoint: Checkpoint, path: Path, tally: Tally) -> None:
        path.mkdir()
        streams: dict[int, tuple[str, Stream]] = {}
        names = {id(stream): name for name, stream in leaves(checkpoint.tree)}

        def hollow(stream: Stream) -> Tensor:
            t = torch.empty(stream.shape, dtype=stream.dtype)  # memory that is asked for, and never touched
            streams[id(t)] = names[id(stream)], stream
            return t

        tree = mapped(checkpoint.tree, Stream, hollow)
        # One tensor after the other; the whole folder is synchronised later.
        writer = dcp.FileSystemWriter(path, sync_files=False, per_thread_copy_ahead=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
            try:
                dcp.save(tree, storage_writer=writer, planner=_Planner(streams, tally), no_dist=True)
            except CheckpointException as error:  # which is no Exception
                raise _why(error) from error
        (path / LOG).write_text(log.written(checkpoint.log), encoding="utf-8")


def _why(error: CheckpointException) -> BaseException:
    """What went wrong at first: a full disk makes torch's writer stumble over what it could not write."""
    first: BaseException = next(iter(error.failures.values()))[0]
    causes: list[BaseException] = [first]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return next((cause for cause in causes if isinstance(cause, OSError)), first)


class _Planner(DefaultSavePlanner):
    """Saves tensors that do not exist yet: each piece of one is an item, and is made when it is asked for."""

    def __init__(self, streams: dict[int, tuple[str, Stream]], tally: Tally) -> None:
        super().__init__()
        self._streams, self._tally = streams, tally
        self._last = torch.empty(0)

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        self.plan = replace(plan, items=[part for item in plan.items for part in self._cut(item)])
        return self.plan

    def _cut(self, item: WriteItem) -> list[WriteItem]:
        data = item.tensor_data
        if data is None or len(data.size) == 0 or math.prod(data.size) == 0:
            return [item]
        rows, rest = data.size[0], data.size[1:]
        step = max(1, ITEM_BYTES // (math.prod(rest) * data.properties.dtype.itemsize))
        if step >= rows:
            return [item]
        parts = []
        for begin in range(0, rows, step):
            offsets = torch.Size([begin, *[0] * len(rest)])
            chunk = ChunkStorageMetadata(offsets, torch.Size([min(step, rows - begin), *rest]))
            index = MetadataIndex(item.index.fqn, offsets)
            parts.append(WriteItem(index, WriteItemType.SHARD, tensor_data=replace(data, chunk=chunk)))
        return parts

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        hollow = self.state_dict[write_item.index.fqn]
        if id(hollow) not in self._streams or write_item.tensor_data is None:
            return super().resolve_data(write_item)
        name, stream = self._streams[id(hollow)]
        chunk = write_item.tensor_data.chunk
        if not stream.shape or not stream.nbytes:
            return stream.whole()
        unit = stream.rows // stream.shape[0]  # a row here may be several of the stream
        begin, end = chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]
        made = stream.make(begin * unit, end * unit)
        self._tally.count(name, made)
        stream.release()
        if end == stream.shape[0]:
            stream.drop()
        # The writer keeps hold of all that it has written; its memory is taken back when the next piece is asked for.
        self._last.untyped_storage().resize_(0)
        self._last = made.clone(memory_format=torch.contiguous_format).view(chunk.sizes)
        return self._last


class _Items:
    """What is in the files of a folder."""

    def __init__(self, path: Path, storage: Any) -> None:
        self._path, self._storage = path, storage
        self._files: dict[str, MappedFile] = {}

    def _find(self, index: MetadataIndex) -> tuple[MappedFile, int, int]:
        info = self._storage[index]
        if getattr(info, "transform_descriptors", None):
            raise ValueError(
                f"{self._path} has {index.fqn} transformed ({info.transform_descriptors}), which is not read"
            )
        if info.relative_path not in self._files:
            self._files[info.relative_path] = MappedFile(self._path / info.relative_path)
        file = self._files[info.relative_path]
        if info.offset + info.length > file.size:
            raise ValueError(f"{file.path} is truncated: {index.fqn} ends behind its {file.size} bytes")
        return file, info.offset, info.length

    def value(self, name: str) -> Any:
        file, offset, length = self._find(MetadataIndex(name))
        try:
            return torch.load(io.BytesIO(file.bytes(offset, offset + length)), weights_only=True)
        except Exception as error:
            raise ValueError(f"{self._path} has {name}, which torch.load does not read: {error}") from error

    def tensor(self, name: str, at: torch.Size) -> Stored:
        file, offset, length = self._find(MetadataIndex(name, at))
        try:
            t = torch.load(cast(IO[bytes], _View(file, offset, length)), map_location="meta", weights_only=True)
        except Exception as error:
            raise ValueError(f"{self._path} has {name}, which torch.load does not read: {error}") from error
        begin = t.untyped_storage()._checkpoint_offset + t.storage_offset() * t.dtype.itemsize
        return Stored(
            file, t.dtype, tuple(t.shape), offset + begin, None if t.is_contiguous() else tuple(map(int, t.stride()))
        )


class _View(io.RawIOBase):
    """Some bytes of a file as a file."""

    def __init__(self, file: MappedFile, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._length)
        data = self._file.bytes(self._offset + self._at, self._offset + max(end, self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def assembled(
    tensors: dict[str, tuple[TensorStorageMetadata, list[Stored]]], scratch: Path | None
) -> dict[str, Stored]:
    """Tensors that lie in shards, or where the kernels cannot read them, put together in a file in `scratch`."""
    offsets, size = {}, 0
    for name, (entry, _) in tensors.items():
        offsets[name] = size
        size += -(-math.prod(entry.size) * entry.properties.dtype.itemsize // 64) * 64
    if not size:
        return {name: replace(shards[0], shape=tuple(entry.size)) for name, (entry, shards) in tensors.items()}
    handle, place = tempfile.mkstemp(dir=scratch)
    with os.fdopen(handle, "r+b") as file:
        file.truncate(size)
        for name, (entry, shards) in tensors.items():
            for chunk, shard in zip(entry.chunks, shards, strict=True):
                if shard.shape != tuple(chunk.sizes):
                    raise ValueError(
                        f"{shard.file.path} has a shard of {name} of shape {shard.shape}, not {chunk.sizes}"
                    )
                _put(file, offsets[name], tuple(entry.size), tuple(chunk.offsets), shard)
    whole = MappedFile(Path(place))
    return {
        name: Stored(whole, entry.properties.dtype, tuple(entry.size), offsets[name])
        for name, (entry, _) in tensors.items()
    }


def _put(file: BinaryIO, offset: int, shape: tuple[int, ...], at: tuple[int, ...], shard: Stored) -> None:
    """A shard into its place, `at`, in the tensor of this shape that begins at `offset`."""
    if not shard.nbytes:
        return
    if shard.stride is None and shard.shape[1:] == shape[1:]:  # whole rows: a run of bytes
        file.seek(offset + at[0] * (shard.nbytes // shard.shape[0]) if shape else offset)
        end = shard.offset + shard.nbytes
        for begin in range(shard.offset, end, PIECE_BYTES):
            file.write(shard.file.bytes(begin, min(begin + PIECE_BYTES, end)))
            shard.release()
        return
    file.flush()
    with mmap.mmap(file.fileno(), 0) as memory:
        whole = torch.frombuffer(memory, dtype=shard.dtype, count=math.prod(shape), offset=offset).view(shape)
        whole[tuple(slice(o, o + n) for o, n in zip(at, shard.shape, strict=True))] = shard.tensor()
        del whole
    shard.release()


def _nested(flat: dict[tuple[Any, ...], Any]) -> Any:
    """Dicts in dicts, and lists where keys are numbers."""
    root: dict[Any, Any] = {}
    for path, value in flat.items():
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return _with_lists(root)


def _with_lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    values = {key: _with_lists(value) for key, value in node.items()}
    if values and all(isinstance(key, int) for key in values):  # DCP makes texts of a dict's keys
        return [values[i] for i in sorted(values)]
    return values
