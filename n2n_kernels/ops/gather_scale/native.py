"""gather_scale on the compiled backends, `cpu` and `cuda`: one launch per dtype."""

import torch

from n2n_kernels import dtypes, native
from n2n_kernels.ops.gather_scale.request import NOISES, Request
from n2n_kernels.ops.gather_scale.tasks import pack


def run(request: Request) -> None:
    for dtype in {item.src.dtype: None for item in request.items}:
        items = [item for item in request.items if item.src.dtype == dtype and item.out.numel()]
        if not items:
            continue
        device = items[0].src.device
        table, _copies = pack(items, request.noise, device)
        noise = NOISES[request.noise] if any(item.sigma for item in items) else 0
        with native.launching_on(device) as stream:
            native.module().gather_scale(
                device.type == "cuda",
                dtypes.TABLE[dtype].code,
                table.tasks.data_ptr(),
                table.tile_task.data_ptr(),
                table.tiles,
                request.seed,
                noise,
                torch.get_num_threads(),
                stream,
            )
