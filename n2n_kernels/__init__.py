"""Batched kernels that grow neural networks: gather-and-scale (widening), identity insertion (deepening), and moments.

The operations know tensors and nothing of modules; `net2net` builds on them.
"""

from n2n_kernels.backends import backends
from n2n_kernels.native import build_info
from n2n_kernels.ops.channel_moments.api import channel_moments, moments_in_parts, tensor_moments
from n2n_kernels.ops.gather_scale.api import gather_scale
from n2n_kernels.ops.gather_scale.bound import BoundGatherScale
from n2n_kernels.ops.gather_scale.plan import GatherScalePlan
from n2n_kernels.ops.identity.api import identity_

__all__ = [
    "BoundGatherScale",
    "GatherScalePlan",
    "backends",
    "build_info",
    "channel_moments",
    "gather_scale",
    "identity_",
    "moments_in_parts",
    "tensor_moments",
]
