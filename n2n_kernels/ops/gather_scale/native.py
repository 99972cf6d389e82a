"""gather_scale on the compiled backends, `cpu` and `cuda`: one launch per dtype."""

import torch

from n2n_kernels import dtypes, native
from n2n_kernels.ops.gather_scale.bound import BoundGatherScale
from n2n_kernels.ops.gather_scale.request import NOISES

#: Where the native module runs it; the last is the CUDA kernel's code, thread by thread on the CPU, for tests.
CPU, CUDA, BLOCKS = 0, 1, 2


def run(bound: BoundGatherScale) -> None:
    if not bound.parts:
        return
    device = bound.out[0].device
    _launch(bound, CUDA if device.type == "cuda" else CPU)


def _launch(bound: BoundGatherScale, target: int) -> None:
    noise = NOISES[bound.noise] if bound.has_noise else 0
    with native.launching_on(bound.out[0].device) as stream:
        for part in bound.parts:
            launch = part.prepared.launch
            native.module().gather_scale(
                target,
                dtypes.TABLE[launch.dtype].code,
                part.tasks.data_ptr(),
                part.prepared.tiles.data_ptr(),
                part.prepared.tiles.shape[0],
                bound.seed,
                noise,
                launch.stage_bytes,
                launch.output_bytes,
                part.prepared.streaming,
                torch.get_num_threads(),
                stream,
            )
