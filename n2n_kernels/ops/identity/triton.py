"""identity_ in Triton: one launch per dtype over the same task table as the compiled backends."""

import triton
import triton.language as tl
from torch import Tensor

from n2n_kernels import dtypes, native
from n2n_kernels.ops.identity.tasks import Column, pack
from n2n_kernels.table import TILE

DST, EXTENT = tl.constexpr(int(Column.DST)), tl.constexpr(int(Column.O))
STRIDE, K_OUTER = tl.constexpr(int(Column.STRIDE_O)), tl.constexpr(int(Column.K_OUTER))
PER_GROUP, CENTRE = tl.constexpr(int(Column.PER_GROUP)), tl.constexpr(int(Column.CENTRE))
FIRST_TILE = tl.constexpr(int(Column.FIRST_TILE))
WORDS = tl.constexpr(len(Column))

#: Zero has the bits 0 in every type; these are the types of one element, by dtype code.
_ELEMENT = {0: tl.float32, 1: tl.float64, 2: tl.bfloat16, 3: tl.float16}


@triton.jit
def identity_kernel(tasks, tile_task, ELEMENT: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr):
    tile = tl.program_id(0).to(tl.int64)
    task = tasks + tl.load(tile_task + tile).to(tl.int64) * WORDS
    dst = tl.load(task + DST).to(tl.pointer_type(ELEMENT))
    O, I, K = tl.load(task + EXTENT), tl.load(task + EXTENT + 1), tl.load(task + EXTENT + 2)  # noqa: E741
    k_outer = tl.load(task + K_OUTER) != 0
    per_group, centre = tl.load(task + PER_GROUP), tl.load(task + CENTRE)
    begin = (tile - tl.load(task + FIRST_TILE)) * TILE
    row = I * K
    inner = tl.where(k_outer, I, K)
    for at in range(0, TILE, BLOCK):
        e = begin + at + tl.arange(0, BLOCK)
        o = e // row
        rest = e - o * row
        outer = rest // inner
        within = rest - outer * inner
        i = tl.where(k_outer, within, outer)
        k = tl.where(k_outer, outer, within)
        one = (k == centre) & (i == o % per_group)
        offset = o * tl.load(task + STRIDE) + i * tl.load(task + STRIDE + 1) + k * tl.load(task + STRIDE + 2)
        tl.store(dst + offset, tl.where(one, 1.0, 0.0).to(ELEMENT), mask=e < O * row)


def run(tensors: list[Tensor], groups: list[int]) -> None:
    for dtype in {t.dtype: None for t in tensors}:
        mine = [(t, g) for t, g in zip(tensors, groups, strict=True) if t.dtype == dtype and t.numel()]
        if not mine:
            continue
        device = mine[0][0].device
        table = pack([t for t, _ in mine], [g for _, g in mine], device)
        with native.launching_on(device):
            identity_kernel[(table.tiles,)](
                table.tasks,
                table.tile_task,
                ELEMENT=_ELEMENT[dtypes.TABLE[dtype].code],
                TILE=TILE,
                BLOCK=TILE if device.type == "cpu" else 1024,
            )
