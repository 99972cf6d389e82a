"""identity_ on the compiled backends, `cpu` and `cuda`: one launch per dtype."""

import torch
from torch import Tensor

from n2n_kernels import dtypes, native
from n2n_kernels.ops.identity.tasks import pack


def run(tensors: list[Tensor], groups: list[int]) -> None:
    for dtype in {t.dtype: None for t in tensors}:
        mine = [(t, g) for t, g in zip(tensors, groups, strict=True) if t.dtype == dtype and t.numel()]
        if not mine:
            continue
        device = mine[0][0].device
        table = pack([t for t, _ in mine], [g for _, g in mine], device)
        address = table.buffer.data_ptr()
        with native.launching_on(device) as stream:
            native.module().identity(
                device.type == "cuda",
                dtypes.TABLE[dtype].code,
                address,
                address + table.tasks_bytes,
                table.tiles,
                torch.get_num_threads(),
                stream,
            )
