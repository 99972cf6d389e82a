"""The native module's functions, as `backend="cpu"` calls them, but for that the build's PTX runs (ptx.py)."""

import functools
import re
import struct
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ptx import Kernel
from ptx_memory import GlobalMemory, Region
from tools import find_tool

import n2n_kernels as nk
from n2n_kernels import dtypes, native
from n2n_kernels.ops.channel_moments.tasks import Column as MomentsColumn
from n2n_kernels.ops.channel_moments.tasks import chunks_per_block
from n2n_kernels.ops.gather_scale.tasks import THREADS, Column
from n2n_kernels.ops.identity.tasks import Column as IdentityColumn

#: As C++ names them in a mangled name.
_MANGLED = {torch.float32: "f", torch.float64: "d", torch.bfloat16: "NS_4bf16E", torch.float16: "NS_3f16E"}
_BY_CODE = {entry.code: dtype for dtype, entry in dtypes.TABLE.items()}


@functools.cache
def built_ptx() -> tuple[str, str]:
    """The build's PTX; or nothing, and why."""
    if native.missing is not None:
        return "", native.missing
    if nk.build_info()["cuda"] is None:
        return "", "built without CUDA"
    tool = find_tool("cuobjdump")
    if tool is None:
        return "", "cuobjdump is neither on PATH nor in Triton's package"
    command = [tool, "-ptx", native.module().__file__]
    text = re.sub(r"//.*", "", subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return text, "" if ".entry" in text else "built without PTX"


@functools.cache
def _kernel(name: str) -> Kernel:
    return Kernel(built_ptx()[0], name)


class PtxModule:
    """Each kernel's memory is in `memories`, in the order of the launches. An access outside of it is an error."""

    def __init__(self) -> None:
        self._built = native.module()
        self.memories: list[GlobalMemory] = []
        self.executed = 0  # instructions of all warps
        #: What a launch does to its kernel first.
        self.spoil: Callable[[Kernel], None] | None = None

    def __getattr__(self, name: str) -> Any:  # what does not concern kernels
        return getattr(self._built, name)

    def _run(self, name: str, blocks: int, arguments: bytes, regions: list[Region], dynamic_shared: int = 0) -> None:
        if blocks == 0:
            return
        kernel = _kernel(name)
        if self.spoil is not None:
            kernel = Kernel(built_ptx()[0], name)
            self.spoil(kernel)
        self.memories.append(GlobalMemory(regions))
        self.executed += kernel.run(blocks, THREADS, [arguments], self.memories[-1], dynamic_shared)

    def gather_scale(
        self, target: int, dtype: int, tasks: int, tiles: int, count: int, seed: int, noise: int, stage_bytes: int,
        output_bytes: int, streaming: bool, threads: int, stream: int,
    ) -> None:  # fmt: skip
        arguments = struct.pack(
            "<QQqQi4xqq??6x", tasks, tiles, count, seed, noise, stage_bytes, output_bytes, streaming, streaming
        )
        tile = Region("tiles", tiles, 16 * count)
        number = 1 + int(tile.bytes.view(np.int32).reshape(-1, 4)[:, 0].max())
        table = Region("tasks", tasks, number * len(Column) * 8)
        regions = [tile, table, *_gather_scale_regions(_rows(table, len(Column)), _BY_CODE[dtype])]
        name = f"gather_scale_kernelI{_MANGLED[_BY_CODE[dtype]]}LNS_5NoiseE{noise}E"
        self._run(name, count, arguments, regions, stage_bytes)

    def identity(
        self, cuda: bool, dtype: int, tasks: int, tile_task: int, tiles: int, threads: int, stream: int
    ) -> None:
        table = Region("tasks", tasks, tile_task - tasks)
        regions = [table, Region("tile_task", tile_task, 4 * tiles)]
        itemsize = _BY_CODE[dtype].itemsize
        for row in _rows(table, len(IdentityColumn)):
            last = row[IdentityColumn.ELEMENTS] - 1
            if not row[IdentityColumn.DENSE]:
                extents = [row[IdentityColumn.EXTENT_1], row[IdentityColumn.EXTENT_2]]
                extents.insert(0, row[IdentityColumn.ELEMENTS] // (extents[0] * extents[1]))
                strides = row[IdentityColumn.STRIDE_0 : IdentityColumn.STRIDE_2 + 1]
                last = sum((n - 1) * stride for n, stride in zip(extents, strides, strict=True))
            regions.append(Region("dst", int(row[IdentityColumn.DST]), int(last + 1) * itemsize, True))
        name = f"identity_kernelI{_MANGLED[_BY_CODE[dtype]]}E"
        self._run(name, tiles, struct.pack("<QQq", tasks, tile_task, tiles), regions)

    def channel_moments(
        self, cuda: bool, dtype: int, src: int, sizes: list[int], strides: list[int], chunk: int, chunks: int,
        scratch: int, mean: int, var: int, threads: int, stream: int,
    ) -> None:  # fmt: skip
        storage = _BY_CODE[dtype]
        vector = 16 // storage.itemsize
        n, channels, s = sizes
        on_vectors = [x % vector == 0 for x in (channels, strides[0], strides[2], s, strides[1])]
        if along := strides[1] == 1 and channels > 1 and strides[2] != 1:
            wide = src % 16 == 0 and all(on_vectors[:3])
        else:
            rows = n == 1 or (on_vectors[3] and on_vectors[1])
            wide = src % 16 == 0 and strides[2] == 1 and rows and (channels == 1 or on_vectors[4])
        width = vector if wide else 1
        units = (channels // width if along else channels) * chunks
        per_block = THREADS // (32 if along else 32 // width)
        name = f"channel_moments_kernelINS_12MomentsBlockI{_MANGLED[storage]}Li{width}ELb{int(along)}E"
        last = sum((extent - 1) * stride for extent, stride in zip(sizes, strides, strict=True))
        source = Region("src", src, storage.itemsize * (last + 1) if min(sizes) else 0)
        sums = self._sums(scratch, channels, channels * chunks, True)
        arguments = struct.pack("<11q", src, *sizes, *strides, chunk, chunks, scratch, scratch + 8 * channels)
        self._run(name, -(-units // per_block), arguments, [source, *sums])
        to_float = storage != torch.float64
        arguments = struct.pack(
            "<3q5q?7x", channels, n * s, chunks, 0, scratch, scratch + 8 * channels, mean, var, to_float
        )
        size = (4 if to_float else 8) * channels
        out = [Region("mean", mean, size, True), Region("var", var, size, True)]
        self._run("finish_kernel", channels, arguments, [*self._sums(scratch, channels, channels * chunks), *out])

    def tensor_moments(
        self, cuda: bool, dtype: int, tasks: int, tensors: int, block_task: int, blocks: int, scratch: int,
        threads: int, stream: int,
    ) -> None:  # fmt: skip
        table = Region("tasks", tasks, tensors * len(MomentsColumn) * 8)
        storage, rows = _BY_CODE[dtype], _rows(table, len(MomentsColumn))
        mine = set(Region("block_task", block_task, 4 * blocks).bytes.view(np.int32).tolist()) if blocks else set()
        sources = [
            Region("src", int(row[MomentsColumn.SRC]), int(row[MomentsColumn.ELEMENTS]) * storage.itemsize)
            for n, row in enumerate(rows)
            if n in mine
        ]
        sums = self._sums(scratch, tensors, int(rows[:, MomentsColumn.CHUNKS].sum()), True)
        assert blocks == sum(-(-int(rows[n, MomentsColumn.CHUNKS]) // chunks_per_block(storage)) for n in mine)
        arguments = struct.pack("<5q", tasks, block_task, blocks, scratch, scratch + 8 * tensors)
        regions = [table, Region("block_task", block_task, 4 * blocks), *sources, *sums]
        self._run(f"tensor_moments_kernelI{_MANGLED[storage]}E", blocks, arguments, regions)

    def finish_tensor_moments(
        self, cuda: bool, tasks: int, tensors: int, scratch: int, mean: int, var: int, stream: int
    ) -> None:
        table = Region("tasks", tasks, tensors * len(MomentsColumn) * 8)
        partials = int(_rows(table, len(MomentsColumn))[:, MomentsColumn.CHUNKS].sum())
        arguments = struct.pack("<8q?7x", tensors, 0, 0, tasks, scratch, scratch + 8 * tensors, mean, var, False)
        out = [Region("mean", mean, 8 * tensors, True), Region("var", var, 8 * tensors, True)]
        self._run("finish_kernel", tensors, arguments, [table, *self._sums(scratch, tensors, partials), *out])

    @staticmethod
    def _sums(scratch: int, channels: int, partials: int, writable: bool = False) -> list[Region]:
        return [
            Region("pivots", scratch, 8 * channels, writable),
            Region("partials", scratch + 8 * channels, 16 * partials, writable),
        ]


def _rows(table: Region, columns: int) -> np.ndarray:
    return table.bytes.view(np.int64).reshape(-1, columns)


def _gather_scale_regions(rows: np.ndarray, dtype: torch.dtype) -> list[Region]:
    """Tensors and tables of the tasks, to the byte."""
    found: dict[int, Region] = {}
    scale = np.dtype(dtypes.TABLE[dtype].compute_numpy).itemsize
    for row in rows:
        o, i, k, src_o, src_i = (int(row[c]) for c in (Column.O, Column.I, Column.K, Column.SRC_O, Column.SRC_I))
        sizes = {
            Column.OUT_MAP: 4 * o, Column.IN_MAP: 4 * i, Column.ROW_BEGIN: 4 * (src_o + 1), Column.ROW_LIST: 4 * o,
            Column.OUT_SCALE: scale * o, Column.IN_SCALE: scale * i, Column.OUT_SEEN: 4 * o, Column.IN_NEXT: 4 * i,
            Column.IN_ORDER: 4 * i, Column.IN_TOTAL: scale * i, Column.IN_BEGIN: 4 * (src_i + 1),
            Column.IN_LIST: 4 * i, Column.IN_UNITS: 16 * src_i, Column.SIGMA: 8,
        }  # fmt: skip
        for extents, strides, base in (
            ((src_o, src_i, k), Column.SRC_STRIDE_O, Column.SRC),
            ((o, i, k), Column.DST_STRIDE_O, Column.DST),
        ):
            last = sum((n - 1) * int(s) for n, s in zip(extents, row[strides : strides + 3], strict=True))
            sizes[base] = dtype.itemsize * (last + 1)
        for column, size in sizes.items():
            address = int(row[column])
            # Tasks may share a table, and one know of a larger part of it.
            if address and (address not in found or found[address].size < size):
                found[address] = Region(column.name, address, size, column == Column.DST)
    return list(found.values())
