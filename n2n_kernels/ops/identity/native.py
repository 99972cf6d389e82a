"""identity_ on the compiled backends, `cpu` and `cuda`: one launch per dtype."""

import torch

from n2n_kernels import dtypes, native
from n2n_kernels.ops.identity.tasks import Call, tables


def run(call: Call) -> None:
    device = call.memory.tensors[0].device
    for dtype, table in tables(call):
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
