"""The tables of gather_scale: tasks and tiles, as `csrc/gather_scale.h` lays them out.

A task is one tensor's row of int64 words, a tile a piece of its work. How tensors are cut into tiles is decided here,
for all backends alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, auto

import numpy as np
import torch

from n2n_kernels import dtypes
from n2n_kernels.layout import Layout
from n2n_kernels.ops.gather_scale.forms import Form, Place
from n2n_kernels.ops.gather_scale.request import AxisMap, Kind, Scale
from n2n_kernels.table import TILE, VECTOR_BYTES, Arena


class Column(IntEnum):
    """The fields of `n2n::Task`, in order."""

    SRC = 0
    DST = auto()
    OUT_MAP = auto()
    IN_MAP = auto()
    ROW_BEGIN = auto()
    ROW_LIST = auto()
    OUT_SCALE = auto()
    IN_SCALE = auto()
    OUT_SEEN = auto()
    IN_NEXT = auto()
    IN_ORDER = auto()
    IN_TOTAL = auto()
    IN_BEGIN = auto()
    IN_LIST = auto()
    IN_UNITS = auto()
    SIGMA = auto()
    O = auto()  # noqa: E741
    I = auto()  # noqa: E741
    K = auto()
    SRC_O = auto()
    SRC_I = auto()
    SRC_STRIDE_O = auto()
    SRC_STRIDE_I = auto()
    SRC_STRIDE_K = auto()
    DST_STRIDE_O = auto()
    DST_STRIDE_I = auto()
    DST_STRIDE_K = auto()
    K_OUTER = auto()
    IN_PREFIX = auto()
    ROWS = auto()
    TILE_ROWS = auto()
    TILE_COLUMNS = auto()
    STAGED = auto()
    LANES_LOG2 = auto()
    MAGIC = auto()
    SHIFT = auto()
    TENSOR_ID = auto()
    ROW_ROOM = auto()
    WORDS = auto()


POINTERS = slice(Column.OUT_MAP, Column.IN_UNITS + 1)

#: Threads of a block; `n2n::kBlockThreads`.
THREADS = 256

#: Shared memory for the teacher rows of a tile, at most: a row of 2048 channels of 3x3 in float32 fits, and three
#: blocks fit a multiprocessor of an H100 or H200 (228 KB, of which each block takes 1 KB more).
STAGE_BYTES = 74 * 1024

#: Shared memory of a multiprocessor, an H100's or H200's where there is none. Three blocks share it, with cancelling
#: noise two.
_MULTIPROCESSOR_BYTES = 228 * 1024

#: What a tile writes, about: small enough that the last tiles of a launch do not leave a GPU idle for long
#: (`_TILES_WANTED` is eight for each block that an H200 holds), large enough that a block's beginning does not count.
#: Of a launch that has very many, larger ones: what is found out about a row's columns then serves more rows.
_TILE_BYTES = (8 * 1024, 64 * 1024)
_LARGE_TILE_BYTES = 320 * 1024
_TILES_WANTED = 8 * 6 * 132

#: Of a row with cancelling noise, a thread makes about so many pieces, or of all rows that are made at a time: what it
#: does once for a row then does not count.
_ITEMS_OF_THREAD = 8


@dataclass(frozen=True, eq=False)
class Launch:
    """The tensors of one dtype, and what a launch needs but for the tensors' addresses.

    `tasks` has 0 for addresses of tensors and of sigma, and handles of the arena for those of tables.
    """

    dtype: torch.dtype
    members: np.ndarray  # int64 [tasks]: positions in the call's lists
    tasks: np.ndarray  # int64 [tasks, words]
    tiles: np.ndarray  # int32 [tiles, 4]
    stage_bytes: int
    output_bytes: int


def launches(forms: Sequence[Form], noise: str, tensor_ids: Sequence[int], arena: Arena) -> list[Launch]:
    """One launch per dtype, for tensors of these forms. Empty tensors need none."""
    # Tensors of one form differ in nothing but their ids.
    number = {form: n for n, form in enumerate(dict.fromkeys(forms))}
    numbers = np.fromiter(map(number.__getitem__, forms), np.int64, len(forms))
    ids = np.array(tensor_ids, dtype=np.int64)
    stages = _stages(arena.device)
    result = []
    for dtype in {form.kind.dtype: None for form in number}:
        mine = [form for form in number if form.kind.dtype == dtype and not form.kind.empty]
        if not mine:
            continue
        row_of = np.full(len(number), -1)
        row_of[[number[form] for form in mine]] = np.arange(len(mine))
        members = np.flatnonzero(row_of[numbers] >= 0)
        which = row_of[numbers[members]]
        rows = {place: _row_at(place) for place in dict.fromkeys(form.place for form in mine)}
        tasks = np.stack([rows[form.place] for form in mine])
        for row, form in zip(tasks, mine, strict=True):
            _point(row, form.kind, noise, arena)
        count = np.bincount(which)
        sizes = tasks[:, Column.O] * tasks[:, Column.I] * tasks[:, Column.K] * dtype.itemsize
        output_bytes = int((sizes * count).sum())
        stage_bytes = _cut(tasks, dtype.itemsize, output_bytes, *stages)
        tasks = tasks[which]
        tasks[:, Column.TENSOR_ID] = ids[members]
        result.append(Launch(dtype, members, tasks, _tiles(tasks), stage_bytes, output_bytes))
    return result


def _stages(device: torch.device) -> tuple[int, int]:
    """Bytes of shared memory that a block may take, and where it makes rows with cancelling noise in it."""
    there = _MULTIPROCESSOR_BYTES
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor
    # It is given out in pieces of 256 bytes at most.
    three, two = (max(0, there // blocks - 1024) // 256 * 256 for blocks in (3, 2))
    return min(three, STAGE_BYTES), two


def _row_at(place: Place) -> np.ndarray:
    """What a task has of its tensors' place alone."""
    source, target = place.source, place.target
    row = np.zeros(len(Column), dtype=np.int64)
    row[Column.O : Column.K + 1] = target[:3]
    row[[Column.SRC_O, Column.SRC_I]] = source[:2]
    row[Column.SRC_STRIDE_O : Column.SRC_STRIDE_K + 1] = source[3:]
    row[Column.DST_STRIDE_O : Column.DST_STRIDE_K + 1] = target[3:]
    # Walk the output in the order of its memory.
    k_outer = target.K > 1 and target.I > 1 and target.stride_i < target.stride_k
    row[Column.K_OUTER] = k_outer
    row[Column.ROWS] = (
        target.I * target.K > 1
        and source.O < 2**31  # teacher rows are counted in 32 bits, and so are the bytes of one, and of a student's
        and max(source.I * source.K, target.I * target.K) * place.dtype.itemsize < 2**32
        and _dense(target, k_outer)
        and _dense(source, k_outer)
    )
    row[Column.IN_PREFIX] = target.I
    row[Column.MAGIC], row[Column.SHIFT] = reciprocal(target.I if k_outer else target.K)
    return row


def _dense(layout: Layout, k_outer: bool) -> bool:
    """Whether the elements of each o lie one after the other, in the order of [K, I] or of [I, K]."""
    inner, outer = ("i", "k") if k_outer else ("k", "i")
    extent = {"i": layout.I, "k": layout.K}
    stride = {"i": layout.stride_i, "k": layout.stride_k}
    return (extent[inner] == 1 or stride[inner] == 1) and (extent[outer] == 1 or stride[outer] == extent[inner])


def reciprocal(divisor: int) -> tuple[int, int]:
    """(magic, shift) with n // divisor == n * magic >> shift for 0 <= n < 2**31 (Granlund and Montgomery, "Division
    by invariant integers using multiplication", PLDI 1994, theorem 4.2)."""
    shift = 31 + (divisor - 1).bit_length()
    return -(-(1 << shift) // divisor), shift


def _point(row: np.ndarray, kind: Kind, noise: str, arena: Arena) -> None:
    """Handles of the arrays that the task points to."""
    compute = dtypes.TABLE[kind.dtype].compute_numpy

    def integers(axis: AxisMap, what: str) -> int:
        return arena.add((axis, what), lambda: getattr(axis, what).astype(np.int32))

    if (out_map := kind.out_map) is not None:
        row[Column.OUT_MAP] = integers(out_map, "index")
        row[Column.ROW_BEGIN] = integers(out_map, "begins")
        row[Column.ROW_LIST] = integers(out_map, "by_unit")
        if noise == "replicas":
            row[Column.OUT_SEEN] = integers(out_map, "seen")
    if (in_map := kind.in_map) is not None:
        row[Column.IN_MAP] = integers(in_map, "index")
        row[Column.IN_PREFIX] = in_map.prefix
        if noise == "cancelling" and in_map.most_replicas() > 1:
            row[Column.IN_NEXT] = integers(in_map, "next")
            row[Column.IN_ORDER] = integers(in_map, "order")
            row[Column.IN_BEGIN] = integers(in_map, "begins")
            row[Column.IN_LIST] = integers(in_map, "by_unit")
            row[Column.IN_UNITS] = integers(in_map, "units")
            shares = kind.in_scale.values if kind.in_scale is not None else np.ones(len(in_map.index))
            row[Column.IN_TOTAL] = arena.add(
                (in_map, kind.in_scale, compute), lambda: in_map.replica_sums(shares).astype(compute)
            )
    for column, scale in ((Column.OUT_SCALE, kind.out_scale), (Column.IN_SCALE, kind.in_scale)):
        if scale is not None:
            row[column] = _add_scale(arena, scale, compute)


def _add_scale(arena: Arena, scale: Scale, compute: type) -> int:
    return arena.add((scale, compute), lambda: scale.values.astype(compute))


def _cut(tasks: np.ndarray, itemsize: int, output_bytes: int, stage: int, cancelling_stage: int) -> int:
    """Decides the tiles' sizes, into `tasks`; the shared memory that the launch needs."""
    dense = tasks[:, Column.ROWS] != 0
    if not dense.any():
        return 0
    per_vector = VECTOR_BYTES // itemsize
    row = tasks[:, Column.I] * tasks[:, Column.K]
    teacher_row = tasks[:, Column.SRC_I] * tasks[:, Column.K]
    # A staged row begins at a multiple of a vector.
    staged_bytes = -(-teacher_row // per_vector) * VECTOR_BYTES
    rows = np.maximum(tasks[:, Column.SRC_O], 1)
    made = row * itemsize * (tasks[:, Column.O] / rows)  # bytes made of one teacher row, on average
    wanted = min(max(output_bytes // _TILES_WANTED, _TILE_BYTES[0]), _TILE_BYTES[1])
    wanted = max(wanted, min(output_bytes // (8 * _TILES_WANTED), _LARGE_TILE_BYTES))
    tile_rows = np.clip((wanted / made).astype(np.int64), 1, rows)
    fits = np.minimum(tile_rows, np.maximum(stage // staged_bytes, 1))
    staged = staged_bytes <= stage
    tile_rows = np.where(staged, fits, 1)
    # A row of the student is made there too, with cancelling noise and where rows are not of whole vectors; of short
    # rows the threads would wait for each other too often.
    vectors = -(-row // per_vector)
    made_bytes = (vectors | 1) * VECTOR_BYTES  # several rows shall not begin in the same bank of memory
    cancelling = tasks[:, Column.IN_NEXT] != 0
    ragged = (row % per_vector != 0) & (row >= THREADS * per_vector)
    room = np.where(cancelling, cancelling_stage, stage)
    # Of a row that does not fit, a tile makes a part: with cancelling noise there too, and there are as few parts as
    # possible, because each looks at all units.
    most = np.maximum(cancelling_stage // VECTOR_BYTES, 1)
    parts = -(-vectors // most)
    # Of kernels of one element, words of noise too, if nothing else gives way to them: four to a vector, of which the
    # first may be of the row before.
    words = ((tasks[:, Column.SRC_I] + 6) // 4 | 1) * VECTOR_BYTES
    most = np.maximum((cancelling_stage - words) // VECTOR_BYTES - 1, 1)  # one for an odd number
    alone = np.where(
        staged & (staged_bytes + made_bytes <= room),
        staged_bytes + made_bytes + words <= room,
        (-(-vectors // most) == parts) & (2 * words <= room),
    )
    words = np.where(cancelling & (tasks[:, Column.K] == 1) & alone, words, 0)
    for_row = made_bytes + words
    at_once = np.where(cancelling, _rows_at_once(tasks, itemsize), 1)
    # A tile has at least twice as many, so that few threads have nothing to do at its end.
    most = np.minimum(room // 2 // for_row, tile_rows * tasks[:, Column.O] // (2 * rows))
    at_once = np.minimum(at_once, 1 << np.log2(np.maximum(most, 1)).astype(np.int64))
    fits = (room - at_once * for_row) // staged_bytes
    has_room = dense & staged & (cancelling | ragged) & (fits >= 1)
    tile_rows = np.where(has_room, np.minimum(tile_rows, fits), tile_rows)
    columns = np.maximum((wanted / made * row).astype(np.int64) // per_vector * per_vector, per_vector)
    windowed = dense & cancelling & ~has_room
    window = -(-vectors // parts) * per_vector
    columns = np.where(windowed, window, columns)
    staged &= ~windowed
    tile_rows = np.where(windowed, 1, tile_rows)
    tasks[:, Column.ROW_ROOM] = np.where(has_room, at_once, windowed)
    tasks[:, Column.WORDS] = dense & (words > 0)
    tasks[:, Column.TILE_ROWS] = np.where(dense, tile_rows, 0)
    tasks[:, Column.TILE_COLUMNS] = np.where(dense, np.where(staged, row, np.minimum(columns, row)), 0)
    tasks[:, Column.STAGED] = dense & staged
    tasks[:, Column.LANES_LOG2] = np.where(dense, _lanes(tasks, itemsize), 0)
    in_window = windowed * (window * itemsize + np.where(words > 0, VECTOR_BYTES + words, 0))
    needed = np.where(staged, tile_rows * staged_bytes + has_room * at_once * for_row, in_window)
    return int(needed[dense].max(initial=0))


def _rows_at_once(tasks: np.ndarray, itemsize: int) -> np.ndarray:
    """Of rows with cancelling noise, as many as have `_ITEMS_OF_THREAD` for each thread of a block: a power of two."""
    kernel = tasks[:, Column.K]
    whole = (kernel == 1) | (kernel == 3) | ((kernel == 9) & (itemsize <= 4))  # a thread takes all of a unit's kernel
    items = tasks[:, Column.SRC_I] * np.where(whole, 1, (kernel + 6) // 4)
    wanted = _ITEMS_OF_THREAD * THREADS / np.maximum(items, 1)
    return np.clip(1 << np.log2(wanted).astype(np.int64).clip(0), 1, THREADS // 16)


def _lanes(tasks: np.ndarray, itemsize: int) -> np.ndarray:
    """log2 of the threads that go along a row: as many as leave a thread the least to do, rather more than fewer."""
    row = tasks[:, Column.I] * tasks[:, Column.K]
    per_vector = np.where(row * itemsize % VECTOR_BYTES == 0, VECTOR_BYTES // itemsize, 1)
    vectors = np.minimum(row, tasks[:, Column.TILE_COLUMNS]) // per_vector
    rows = tasks[:, Column.TILE_ROWS]
    best = np.zeros(len(tasks), dtype=np.int64)
    score = np.full(len(tasks), np.inf)
    for log2 in range(THREADS.bit_length()):
        lanes = 1 << log2
        # What is found out about columns costs about as much as the making of a teacher row from it.
        work = -(-vectors // lanes) * (1 + -(-rows // (THREADS // lanes)))
        better = work <= score
        best, score = np.where(better, log2, best), np.where(better, work, score)
    return best


def _tiles(tasks: np.ndarray) -> np.ndarray:
    """int32 [tiles, 4]: task, first, column, 0."""
    row = tasks[:, Column.I] * tasks[:, Column.K]
    dense = tasks[:, Column.ROWS] != 0
    tile_rows, tile_columns = (np.maximum(tasks[:, c], 1) for c in (Column.TILE_ROWS, Column.TILE_COLUMNS))
    per_row = np.where(dense, -(-row // tile_columns), 1)
    down = np.where(dense, -(-tasks[:, Column.SRC_O] // tile_rows), -(-tasks[:, Column.O] * row // TILE))
    count = down * per_row
    task = np.repeat(np.arange(len(tasks)), count)
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    tiles = np.zeros((len(task), 4), dtype=np.int32)
    tiles[:, 0] = task
    tiles[:, 1] = number // per_row[task] * tile_rows[task]
    tiles[:, 2] = number % per_row[task] * tile_columns[task]
    return tiles
