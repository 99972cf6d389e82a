"""channel_moments and tensor_moments: the public functions, their registration with torch.library, and the choice of a
backend."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from n2n_kernels import dtypes
from n2n_kernels.backends import check_name, choose, implementation
from n2n_kernels.library import LIBRARY
from n2n_kernels.ops import checks
from n2n_kernels.ops.channel_moments.channels import channels, run_of
from n2n_kernels.ops.channel_moments.order import chunk_of
from n2n_kernels.ops.channel_moments.tasks import chunks_per_block
from n2n_kernels.ops.memory import Memory, check_memory


def channel_moments(x: Tensor, *, dim: int = 1, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, over all dimensions but `dim`, reading `x` once.

    These are the statistics that batch normalisation uses in train mode, and that an identity layer must undo (Chen et
    al., ICLR 2016, section 2.4).

    Args:
        x: 1-D to 5-D, float32, float64, bfloat16 or float16, in any layout; must not be empty.
        dim: the channel dimension.
        backend: one of `n2n_kernels.backends()`, or None for the best for the tensor's device.

    Returns:
        (mean, var), each `[C]`, float64 for float64 and float32 for everything else. Sums are kept in float64, of the
        differences to the channel's first element, in one fixed order: every backend gives the same bits, in every
        layout.

    Raises:
        ValueError, TypeError: naming the argument and its value.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x (={type(x).__name__}) must be a torch.Tensor")
    dim = checks.integer("dim", dim)
    check_name(backend)
    with torch.no_grad():
        mean, var = torch.ops.n2n.channel_moments.default(x, dim, backend)
    return mean, var


def tensor_moments(tensors: Sequence[Tensor], *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all elements of each tensor of a list, reading each of them once.

    One launch per dtype sums, however many tensors there are, and one more gives the moments of them all; the host
    waits for nothing. Made for the weights of a network, whose noise is to be in proportion to their standard deviation
    (`var.sqrt()`).

    Args:
        tensors: all on one device, each in float32, float64, bfloat16 or float16, of any shape and in any layout; what
            has gaps is copied first.
        backend: one of `n2n_kernels.backends()`, or None for the best for the tensors' device.

    Returns:
        (mean, var), each float64 `[len(tensors)]` on the tensors' device (the CPU, for no tensors). NaN for a tensor
        without elements. Sums are kept in float64, of the differences to the tensor's first element, in one fixed
        order, that of the tensor's memory (of its indices, if it has gaps): every backend gives the same bits.

    Raises:
        ValueError, TypeError: naming the argument and its value.
    """
    given = checks.tensor_list("tensors", tensors)
    check_name(backend)
    with torch.no_grad():
        mean, var = torch.ops.n2n.tensor_moments.default(given, backend)
    return mean, var


def moments_in_parts(
    t: Tensor, after: Callable[[], None], *, part_bytes: int = 2**24, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """`tensor_moments([t])`, with the same bits, of a tensor that is read from a file a part at a time.

    Args:
        t: on the CPU, of any shape and in any layout, not empty; what has gaps is copied first, as a whole.
        after: called whenever about `part_bytes` have been read, which are not read again: the caller may let go of
            their pages.
        part_bytes: at least 1; rounded up to what the kernel takes at once.
        backend: `"cpu"`, `"reference"` or None for the best.

    Returns:
        (mean, var), each float64 `[1]`.

    Raises:
        ValueError, TypeError: naming the argument and its value.
    """
    checks.check_tensor("t", t, dims=range(65))
    check_memory("t", t)
    part_bytes = checks.integer("part_bytes", part_bytes)
    if t.device.type != "cpu" or t.numel() == 0 or part_bytes < 1:
        raise ValueError(f"t ({tuple(t.shape)}, on {t.device}) must be on the CPU and not empty, in parts of bytes")
    chosen = choose(backend, t.device)
    if chosen == "triton":
        raise ValueError(f"backend (={backend!r}) cannot take a tensor in parts")
    unit = chunk_of(t.numel()) * chunks_per_block(t.dtype)
    elements = -(-part_bytes // (unit * t.dtype.itemsize)) * unit
    with torch.no_grad():
        mean, var = implementation("channel_moments", chosen, t.device).run_in_parts(run_of(t), elements, after)
    return mean, var


LIBRARY.define("channel_moments(Tensor x, int dim, str? backend) -> (Tensor, Tensor)")
LIBRARY.define("tensor_moments(Tensor[] tensors, str? backend) -> (Tensor, Tensor)")


@torch.library.impl(LIBRARY, "channel_moments", "CompositeExplicitAutograd")
def _channel_moments(x: Tensor, dim: int, backend: str | None) -> tuple[Tensor, Tensor]:
    _check(x, dim)
    check_memory("x", x)
    mean, var = implementation("channel_moments", backend, x.device).run(channels(x, dim))
    return mean, var


@torch.library.impl(LIBRARY, "tensor_moments", "CompositeExplicitAutograd")
def _tensor_moments(tensors: list[Tensor], backend: str | None) -> tuple[Tensor, Tensor]:
    _check_tensors(tensors)
    Memory(tensors).check("tensors")
    if not tensors:
        return torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
    kernel = implementation("channel_moments", backend, tensors[0].device)
    mean, var = kernel.run_tensors([run_of(t) for t in tensors])
    return mean, var


def _check(x: Tensor, dim: int) -> None:
    """Everything that can be told from numbers, dtypes, shapes and devices, so for fake tensors too."""
    checks.check_tensor("x", x, dims=range(1, 6))
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim (={dim}) is out of range for x, which has {x.dim()} dimensions")
    if x.numel() == 0:
        raise ValueError(f"x (shape {tuple(x.shape)}) is empty, so its moments do not exist")


def _check_tensors(tensors: list[Tensor]) -> None:
    """The same."""
    for i, t in enumerate(tensors):
        checks.check_tensor(f"tensors[{i}]", t, dims=range(65))  # as many as torch has
    if tensors:
        checks.check_one_device("tensors", tensors)


@torch.library.register_fake("n2n::channel_moments", lib=LIBRARY)
def _(x: Tensor, dim: int, backend: str | None) -> tuple[Tensor, Tensor]:
    _check(x, dim)
    moments = x.new_empty(x.shape[dim], dtype=dtypes.TABLE[x.dtype].compute)
    return moments, torch.empty_like(moments)


@torch.library.register_fake("n2n::tensor_moments", lib=LIBRARY)
def _(tensors: list[Tensor], backend: str | None) -> tuple[Tensor, Tensor]:
    _check_tensors(tensors)
    device = tensors[0].device if tensors else torch.device("cpu")
    moments = torch.empty(len(tensors), dtype=torch.float64, device=device)
    return moments, torch.empty_like(moments)
