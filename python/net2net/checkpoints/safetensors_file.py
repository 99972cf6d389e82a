"""Safetensors files: eight bytes with the header's length, the header (JSON), then the tensors one after the other.

They are read and written here rather than by their own library because that takes or gives whole tensors. Its format is
theirs: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from net2net.checkpoints.stored import MappedFile, Stored
from net2net.checkpoints.streams import Stream
from net2net.checkpoints.tally import Tally, reserve

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}

METADATA = "__metadata__"

#: Longer headers are refused by the format's own library.
MOST_HEADER_BYTES = 100_000_000


def read(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The file's tensors in the order of its header, and its metadata.

    Raises:
        ValueError: it cannot be read, is no such file, or is shorter or longer than its header says.
    """
    file = MappedFile(path)
    length = int.from_bytes(file.bytes(0, 8), "little")
    if file.size < 8 or not 2 <= length <= min(MOST_HEADER_BYTES, file.size - 8):
        raise ValueError(f"{path} (of {file.size} bytes) is not a safetensors file, or is truncated")
    begin = 8 + length
    try:
        header = json.loads(file.bytes(8, begin))
        metadata = {str(k): str(v) for k, v in (header.pop(METADATA, None) or {}).items()}
        tensors = {str(name): _stored(file, name, begin, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header: {type(error).__name__}: {error}") from error
    end = begin
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if stored.offset != end:
            raise ValueError(f"{path} has a damaged header: {name} begins at {stored.offset}, not {end}")
        end += stored.nbytes
    if end != file.size:
        how = "is truncated" if end > file.size else "has bytes behind its tensors"
        raise ValueError(f"{path} {how}: it has {file.size} bytes, and by its header {end}")
    return tensors, metadata


def _stored(file: MappedFile, name: str, begin: int, entry: Mapping[str, object]) -> Stored:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has the dtype {entry['dtype']}, which is not known here")
    dtype = DTYPES[str(entry["dtype"])]
    shape = tuple(_size(name, n) for n in entry["shape"])  # type: ignore[attr-defined]
    first, last = (_size(name, n) for n in entry["data_offsets"])  # type: ignore[attr-defined]
    if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has the shape {shape}, but the bytes {first} to {last}")
    return Stored(file, dtype, shape, begin + first)


def _size(name: str, n: object) -> int:
    """ValueError unless it is a size that there may be."""
    if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < 2**63:
        raise ValueError(f"{name} has the size {n!r}")
    return n


def size(streams: Mapping[str, Stream]) -> int:
    """What `write` will write, but for the header."""
    return sum(stream.nbytes for stream in streams.values())


def write(path: Path, streams: Mapping[str, Stream], metadata: Mapping[str, str], tally: Tally) -> None:
    """A new file with these tensors and this metadata. OSError if it cannot be written."""
    # Each then begins at a multiple of its dtype's size.
    order = sorted(streams, key=lambda name: -streams[name].dtype.itemsize)
    header: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        stream = streams[name]
        if stream.dtype not in NAMES:
            raise ValueError(f"{name} has the dtype {stream.dtype}, which safetensors files do not have")
        header[name] = {
            "dtype": NAMES[stream.dtype], "shape": list(stream.shape), "data_offsets": [at, at + stream.nbytes]
        }  # fmt: skip
        at += stream.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER_BYTES:
        raise ValueError(f"{path.name} would have a header of {len(text)} bytes; {MOST_HEADER_BYTES} are possible")
    with path.open("xb") as file:
        reserve(file, 8 + len(text) + at)
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tally.write(file, name, streams[name])
