"""Some rows of one tensor's student, for what does not fit into memory as a whole: the bits are those of the whole.

No kernel knows of it. The table says which student rows are copies of a teacher row, so one that lists the wanted rows
alone makes just these; and they go to where they lie in the whole student, whose address is set so that the first
wanted row falls on the first one of the memory that there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import dtypes, native
from n2n_kernels.ops import checks
from n2n_kernels.ops.gather_scale import reference
from n2n_kernels.ops.gather_scale.bound import Item
from n2n_kernels.ops.gather_scale.native import CPU
from n2n_kernels.ops.gather_scale.request import NOISES, Kind, check_seed
from n2n_kernels.ops.gather_scale.tasks import Column
from n2n_kernels.table import TILE

if TYPE_CHECKING:
    from n2n_kernels.ops.gather_scale.plan import Deviations, GatherScalePlan

_Table = np.ndarray | None


def run(plan: GatherScalePlan, src: Tensor, begin: int, end: int, noise_std: Deviations, seed: int) -> Tensor:
    """See `GatherScalePlan.rows`."""
    if len(plan._kinds) != 1:
        raise ValueError(f"rows are of plans for one tensor, and this one is for {len(plan._kinds)}")
    if plan.backend not in ("cpu", "reference"):
        raise ValueError(f"rows cannot be made by the backend {plan.backend!r}, only by 'cpu' and 'reference'")
    kind = plan._kinds[0]
    begin, end, seed = (checks.integer(*named) for named in (("begin", begin), ("end", end), ("seed", seed)))
    check_seed(seed)
    if not 0 <= begin <= end <= kind.student_shape[0]:
        raise ValueError(f"begin (={begin}) and end (={end}) must be rows of the student's {kind.student_shape[0]}")
    if not isinstance(src, Tensor):
        raise TypeError(f"src (={type(src).__name__}) must be a torch.Tensor")
    if src.layout != torch.strided:
        raise TypeError(f"src.layout (={src.layout}) must be torch.strided")
    if not src.is_contiguous():
        raise ValueError(f"src (of strides {src.stride()}) must be contiguous")
    sources = plan._expected.check([src])
    sigma = plan._sigma(noise_std, [src])
    # Where there are no columns, kernels take tiles of elements.
    elements = kind.student_shape[1:].numel() == 1
    first = begin // TILE * TILE if elements and plan.backend == "cpu" else begin
    out = torch.empty((end - first, *kind.student_shape[1:]), dtype=kind.dtype, device="cpu")
    if out.numel() == 0:
        return out
    if plan.backend == "reference":
        item = Item(src, out, kind, 0.0 if sigma is None else float(sigma[0]), plan._ids[0], begin, end)
        reference.run_item(item, plan._noise, seed)
        return out
    forms = plan._forms.of(sources, None)
    if forms.copied:
        raise ValueError(f"src (at the address {src.data_ptr():#x}) must be at a multiple of its dtype's size")
    prepared = plan._prepare(forms)[0]
    task = prepared.tasks.copy()
    task[0, Column.SRC] = src.data_ptr()
    task[0, Column.DST] = out.data_ptr() - first * int(task[0, Column.DST_STRIDE_O]) * kind.dtype.itemsize
    sigmas = np.zeros(1) if sigma is None else np.array([float(sigma[0])])
    task[0, Column.SIGMA] = sigmas.ctypes.data
    begins, listed, tiles = _tables(kind, first, end, elements)
    if elements:
        task[0, Column.O] = end
    else:
        task[0, Column.TILE_ROWS], task[0, Column.TILE_COLUMNS] = 1, kind.student_shape[1:].numel()
    if begins is not None and listed is not None:
        task[0, Column.ROW_BEGIN], task[0, Column.ROW_LIST] = begins.ctypes.data, listed.ctypes.data
    native.module().gather_scale(
        CPU,
        dtypes.TABLE[kind.dtype].code,
        task.ctypes.data,
        tiles.ctypes.data,
        len(tiles),
        seed,
        NOISES[plan._noise] if sigmas[0] else 0,
        prepared.launch.stage_bytes,
        out.nbytes,
        False,  # no large outputs: whoever wants some rows wants them now, and the student's memory is not all there
        torch.get_num_threads(),
        0,
    )
    return out[begin - first :]


def _tables(kind: Kind, begin: int, end: int, elements: bool) -> tuple[_Table, _Table, np.ndarray]:
    """For these student rows: `ROW_BEGIN` and `ROW_LIST` (None: every teacher row is copied once, in order), and
    tiles."""
    begins = listed = None
    if elements:
        teacher = np.arange(begin // TILE, -(-end // TILE))
    elif kind.out_map is None:
        teacher = np.arange(begin, end)
    else:
        index = kind.out_map.index[begin:end]
        listed = (np.argsort(index, kind="stable") + begin).astype(np.int32)
        count = np.bincount(index, minlength=kind.shape[0])
        begins = np.concatenate([[0], np.cumsum(count)]).astype(np.int32)
        teacher = np.flatnonzero(count)
    tiles = np.zeros((len(teacher), 4), dtype=np.int32)
    tiles[:, 1] = teacher
    return begins, listed, tiles
