"""gather_scale: the public function, its registration with torch.library, and the choice of a backend."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from n2n_kernels.backends import check_name
from n2n_kernels.library import LIBRARY
from n2n_kernels.ops import checks
from n2n_kernels.ops.gather_scale import request as requests
from n2n_kernels.ops.gather_scale.plan import GatherScalePlan
from n2n_kernels.ops.gather_scale.request import Axis, Call, as_call, as_stds, as_tensor_ids
from n2n_kernels.ops.memory import Memory


def gather_scale(
    srcs: Sequence[Tensor],
    out_maps: Axis | None,
    in_maps: Axis | None,
    *,
    out_scales: Axis | None = None,
    in_scales: Axis | None = None,
    noise_std: float | Sequence[float] = 0.0,
    noise: str = "replicas",
    seed: int = 0,
    out: Sequence[Tensor] | None = None,
    backend: str | None = None,
    tensor_ids: Sequence[int] | None = None,
) -> list[Tensor]:
    """Widens a whole list of tensors: `U[o, i, k] = W[g_o[o], g_i[i], k] * c_i[i] * c_o[o]`, plus optional noise.

    This is Net2WiderNet's remapping (Chen et al., ICLR 2016, section 2.3) of both axes in one pass, in one launch for
    all tensors of a dtype, whatever their shapes, kernel sizes and layouts.

    Args:
        srcs: teacher tensors `[O, I, *K]`, 1-D to 5-D, all on one device, in float32, float64, bfloat16 or float16,
            mixed as you like. A 1-D tensor `[O]` (a bias, a norm's parameter) has no input axis. Any strides.
        out_maps: per tensor an int64 map `[O']` from student to teacher index on axis 0, or None to leave the axis;
            every teacher index must occur. None for the whole argument leaves the axis of every tensor.
        in_maps: likewise on axis 1.
        out_scales: per tensor a floating-point vector `[O']`, or None.
        in_scales: per tensor a floating-point vector `[I']`, or None.
        noise_std: standard deviation of the noise, absolute, for all tensors or per tensor.
        noise: `"replicas"` adds noise to rows whose map entry has occurred before (the paper's: all but the first
            copy). `"cancelling"` perturbs the columns of each input unit's replicas so that their sum stays: by
            `z[o, i, k] - z[o, next(i), k]`, with `z` the noise and `next` the unit's next replica, cyclically; the last
            replica takes the remainder of what was stored. Columns with one replica, and weights that are not finite,
            get none.
        seed: of the noise, in [0, 2**63). The noise on replicas of an element depends on (seed, tensor id, its index in
            the student's contiguous order) alone, cancelling noise on (seed, tensor id, student row, teacher column and
            kernel element, which replica): neither on backend, batch or layout.
        out: tensors to write to, of the student's shapes, in any dense or strided layout that does not overlap, be it
            another argument, and whose kernel dimensions are dense among themselves; None allocates them in the
            teacher's memory format, each with memory of its own.
        backend: one of `n2n_kernels.backends()`, or None for the best for the tensors' device.
        tensor_ids: the tensor ids of the noise, in [0, 2**32); by default the positions in `srcs`.

    Returns:
        The student tensors (`out`, if given). They are not attached to autograd.

    Arithmetic is in float32 for 16-bit types, else in the tensor's own type, and rounds once. Where there is neither a
    scale nor noise, bits are copied. All backends give the same bits.

    Raises:
        ValueError, TypeError: naming the argument and its value, before anything is written.
    """
    call = as_call(srcs, out_maps, in_maps, out_scales, in_scales)
    n = len(call.srcs)
    ids = as_tensor_ids(tensor_ids, n)
    seed = checks.integer("seed", seed)
    requests.check_noise_name(noise)
    check_name(backend)
    arguments = (*call, as_stds(noise_std, n), noise, seed, ids, backend)
    with torch.no_grad():
        if out is None:
            return list(torch.ops.n2n.gather_scale(*arguments))
        targets = checks.tensor_list("out", out)
        torch.ops.n2n.gather_scale_out(*arguments, targets)
    return targets


_ARGUMENTS = (
    "Tensor[] srcs, Tensor?[] out_maps, Tensor?[] in_maps, Tensor?[] out_scales, Tensor?[] in_scales, "
    "float[] noise_std, str noise, int seed, int[] tensor_ids, str? backend"
)
LIBRARY.define(f"gather_scale({_ARGUMENTS}) -> Tensor[]")
LIBRARY.define(f"gather_scale_out({_ARGUMENTS}, Tensor(a!)[] out) -> ()")


def _check(call: Call, noise_std: list[float], noise: str, seed: int, ids: list[int], out: list[Tensor] | None) -> None:
    """What a plan checks, as far as it can be told from numbers, dtypes, shapes and devices: for fake tensors."""
    requests.check_noise_name(noise)
    requests.check_seed(seed)
    requests.check_tensor_ids(ids, len(call.srcs))
    requests.check(call)
    requests.check_noise_stds(noise_std, noise, call.srcs)
    if out is not None:
        requests.check_targets(call.srcs, requests.student_shapes(call), out)


def _run(arguments: tuple[Any, ...], out: list[Tensor] | None) -> list[Tensor]:
    call, (noise_std, noise, seed, ids, backend) = Call(*arguments[:5]), arguments[5:]
    srcs, out_maps, in_maps, out_scales, in_scales = call
    plan = GatherScalePlan(
        srcs, out_maps, in_maps, out_scales=out_scales, in_scales=in_scales, noise=noise, tensor_ids=ids,
        backend=backend,
    )  # fmt: skip
    if out is None:
        return plan(srcs, noise_std=noise_std, seed=seed)
    bound = plan.bind(srcs, out, noise_std=noise_std, seed=seed)
    memory = Memory(out)
    for name, axis in zip(Call._fields[1:], call[1:], strict=True):
        memory.check_disjoint("out", name, axis)
    return bound.run()


@torch.library.impl(LIBRARY, "gather_scale", "CompositeExplicitAutograd")
def _gather_scale(*arguments: Any) -> list[Tensor]:
    return _run(arguments, None)


@torch.library.impl(LIBRARY, "gather_scale_out", "CompositeExplicitAutograd")
def _gather_scale_out(*arguments: Any) -> None:
    *rest, out = arguments
    _run(tuple(rest), out)


@torch.library.register_fake("n2n::gather_scale", lib=LIBRARY)
def _(*arguments: Any) -> list[Tensor]:
    call, (noise_std, noise, seed, ids, _) = Call(*arguments[:5]), arguments[5:]
    _check(call, noise_std, noise, seed, ids, None)
    return requests.students_like(call)


@torch.library.register_fake("n2n::gather_scale_out", lib=LIBRARY)
def _(*arguments: Any) -> None:
    call, (noise_std, noise, seed, ids, _, out) = Call(*arguments[:5]), arguments[5:]
    _check(call, noise_std, noise, seed, ids, out)
