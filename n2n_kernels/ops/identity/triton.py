"""identity_ in Triton: one launch per dtype over the same task table as the compiled backends."""

import torch
import triton
import triton.language as tl

from n2n_kernels import dtypes, native
from n2n_kernels.ops.identity.tasks import TILE_BYTES, Call, Column, tables
from n2n_kernels.table import VECTOR_BYTES

DST, LEAD, FIRST_TILE = (tl.constexpr(int(c)) for c in (Column.DST, Column.LEAD, Column.FIRST_TILE))
ELEMENTS, DENSE, FIRST = (tl.constexpr(int(c)) for c in (Column.ELEMENTS, Column.DENSE, Column.FIRST))
EXTENT_1, EXTENT_2 = tl.constexpr(int(Column.EXTENT_1)), tl.constexpr(int(Column.EXTENT_2))
STRIDE = tl.constexpr(int(Column.STRIDE_0))
OUTER_STEP, INNER_STEP = tl.constexpr(int(Column.OUTER_STEP)), tl.constexpr(int(Column.INNER_STEP))
INNER, ONES = tl.constexpr(int(Column.INNER)), tl.constexpr(int(Column.ONES))
WORDS = tl.constexpr(len(Column))
VECTOR_BYTES_ = tl.constexpr(VECTOR_BYTES)

#: Below this, no index or sum of two exceeds 32 bits.
SMALL = tl.constexpr(2**30 - 64)

#: Zero has the bits 0 in every type; these are the types of one element, by dtype code.
_ELEMENT = {0: tl.float32, 1: tl.float64, 2: tl.bfloat16, 3: tl.float16}


@triton.jit
def to_next_one(e, first, outer_step, inner_step, inner, ones, UNSIGNED: tl.constexpr):
    """How far it is from element e to the first one there or later; negative if there is none."""
    along = tl.maximum(e - first, 0).to(UNSIGNED)
    o = along // outer_step.to(UNSIGNED)
    i = (along - o * outer_step.to(UNSIGNED) + (inner_step - 1).to(UNSIGNED)) // inner_step.to(UNSIGNED)
    o, i = o.to(e.dtype), i.to(e.dtype)
    o = tl.where(i < inner, o, o + 1)
    i = tl.where(i < inner, i, 0)
    position = first + o * outer_step + i * inner_step
    return tl.where(o * inner + i < ones, position - e, -1)


@triton.jit
def identity_kernel(
    tasks, tile_task, ELEMENT: tl.constexpr, TILE: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr
):
    tile = tl.program_id(0).to(tl.int64)
    task = tasks + tl.load(tile_task + tile).to(tl.int64) * WORDS
    dst = tl.load(task + DST).to(tl.pointer_type(ELEMENT))
    elements, first, ones = tl.load(task + ELEMENTS), tl.load(task + FIRST), tl.load(task + ONES)
    outer_step, inner_step, inner = tl.load(task + OUTER_STEP), tl.load(task + INNER_STEP), tl.load(task + INNER)
    dense, middle, last = tl.load(task + DENSE) != 0, tl.load(task + EXTENT_1), tl.load(task + EXTENT_2)
    stride_0, stride_1, stride_2 = tl.load(task + STRIDE), tl.load(task + STRIDE + 1), tl.load(task + STRIDE + 2)
    begin = (tile - tl.load(task + FIRST_TILE)) * TILE - tl.load(task + LEAD)

    # The shortest way between neighbours: in a run of the inner progression, or from its end to the next run.
    spaced = (outer_step - (inner - 1) * inner_step >= VECTOR) & ((inner == 1) | (inner_step >= VECTOR))
    if dense & spaced & (elements < SMALL):
        # The usual case: no vector has more than a single one, so there is one search for each.
        to = tl.multiple_of(dst + begin, VECTOR_BYTES_)
        lane = tl.arange(0, VECTOR)[None, :]
        b, n, f, count = begin.to(tl.int32), elements.to(tl.int32), first.to(tl.int32), ones.to(tl.int32)
        outer, step, c = outer_step.to(tl.int32), inner_step.to(tl.int32), inner.to(tl.int32)
        for at in range(0, TILE, BLOCK * VECTOR):
            slot = at + tl.arange(0, BLOCK)[:, None] * VECTOR
            one = to_next_one(b + slot, f, outer, step, c, count, tl.uint32) == lane
            # The mask is of vectors, not of elements, which would be stored one by one.
            inside = (b + slot >= 0) & (b + slot + VECTOR <= n)
            tl.store(to + slot + lane, tl.where(one, 1.0, 0.0).to(ELEMENT), mask=inside)
        if (b < 0) | (b + TILE > n):
            # What is left of the vectors in which the tensor begins and ends. They may be the same.
            begins = tl.arange(0, 2)[:, None] == 0
            end = (n - b) // VECTOR * VECTOR
            slot = tl.where(begins, 0, end)
            e = b + slot + lane
            one = to_next_one(b + slot, f, outer, step, c, count, tl.uint32) == lane
            cut = tl.where(begins, b < 0, (end < TILE) & ((end > 0) | (b >= 0)))
            tl.store(to + slot + lane, tl.where(one, 1.0, 0.0).to(ELEMENT), mask=cut & (e >= 0) & (e < n))
    else:
        for at in range(0, tl.minimum(elements - begin, TILE).to(tl.int32), BLOCK):
            e = begin + at + tl.arange(0, BLOCK)
            one = to_next_one(e, first, outer_step, inner_step, inner, ones, tl.uint64) == 0
            row = e // last
            plane = row // middle
            offset = plane * stride_0 + (row - plane * middle) * stride_1 + (e - row * last) * stride_2
            value = tl.where(one, 1.0, 0.0).to(ELEMENT)
            tl.store(dst + tl.where(dense, e, offset), value, mask=(e >= 0) & (e < elements))


def run(call: Call) -> None:
    device = call.memory.tensors[0].device
    for dtype, table in tables(call):
        with native.launching_on(device):
            identity_kernel[(table.tiles,)](
                table.buffer[: table.tasks_bytes].view(torch.int64),
                table.buffer[table.tasks_bytes :].view(torch.int32),
                ELEMENT=_ELEMENT[dtypes.TABLE[dtype].code],
                TILE=TILE_BYTES // dtype.itemsize,
                VECTOR=VECTOR_BYTES // dtype.itemsize,
                BLOCK=TILE_BYTES // VECTOR_BYTES if device.type == "cpu" else 256,
                num_warps=8,
            )
