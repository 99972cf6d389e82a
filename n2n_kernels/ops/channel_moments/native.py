"""channel_moments on the compiled backends, `cpu` and `cuda`."""

import torch
from torch import Tensor

from n2n_kernels import dtypes, native
from n2n_kernels.ops.channel_moments.api import Channels


def run(c: Channels) -> Tensor:
    """float64 [C, chunks, 2]: per chunk the sums of d and of d*d."""
    partials = torch.empty(c.sizes[1], c.chunks, 2, dtype=torch.float64, device=c.x.device)
    with native.launching_on(c.x.device) as stream:
        native.module().channel_moments(
            c.x.device.type == "cuda",
            dtypes.TABLE[c.x.dtype].code,
            c.x.data_ptr(),
            c.sizes,
            c.strides,
            partials.data_ptr(),
            c.chunks,
            torch.get_num_threads(),
            stream,
        )
    return partials
