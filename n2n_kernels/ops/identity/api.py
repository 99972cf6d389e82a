"""identity_: the public function, its registration with torch.library, and the choice of a backend."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from n2n_kernels.backends import check_name, implementation
from n2n_kernels.library import LIBRARY
from n2n_kernels.ops import checks
from n2n_kernels.ops.identity.tasks import Call
from n2n_kernels.ops.memory import Memory, check_types, mark_written


def identity_(
    tensors: Sequence[Tensor], *, groups: int | Sequence[int] = 1, backend: str | None = None
) -> list[Tensor]:
    """Fills convolution and linear weights with identity kernels, in place, in one launch per dtype.

    Net2DeeperNet's new layer (Chen et al., ICLR 2016, section 2.4): output channel o passes input channel o through the
    centre of its kernel (position `size // 2` in every kernel dimension) and nothing else. With `groups` groups, that
    holds within each group. The values are those of `torch.nn.init.dirac_` (and of `torch.nn.init.eye_` for linear
    weights): channels beyond the smaller side of a weight that is not square stay zero.

    Args:
        tensors: weights `[O, I, *K]`, 2-D to 5-D, all on one device, in float32, float64, bfloat16 or float16, in any
            layout that does not overlap.
        groups: the convolution's groups, for all tensors or per tensor; must divide O.
        backend: one of `n2n_kernels.backends()`, or None for the best for the tensors' device.

    Returns:
        The tensors.

    Raises:
        ValueError, TypeError: naming the argument and its value, before anything is written.
    """
    targets = checks.tensor_list("tensors", tensors)
    per_tensor = checks.integer_list("groups", groups if isinstance(groups, Iterable) else [groups] * len(targets))
    check_name(backend)
    with torch.no_grad():
        torch.ops.n2n.identity_.default(targets, per_tensor, backend)
    return targets


LIBRARY.define("identity_(Tensor(a!)[] tensors, int[] groups, str? backend) -> ()")


@torch.library.impl(LIBRARY, "identity_", "CompositeExplicitAutograd")
def _identity(tensors: list[Tensor], groups: list[int], backend: str | None) -> None:
    checks.check_length("groups", groups, len(tensors), "tensors")
    if not tensors:
        return
    check_types("tensors", tensors)
    try:
        memory = Memory(tensors)
    except RuntimeError:  # one of them is not strided
        _check(tensors, groups, range(len(tensors)))
        raise
    first, number = memory.kinds(groups)
    _check(tensors, groups, first)
    memory.check("tensors")
    memory.check_writable("tensors")
    kernel = implementation("identity", backend, tensors[0].device)
    mark_written(tensors)
    kernel.run(Call(memory, groups, first, number))


def _check(tensors: list[Tensor], groups: list[int], which: Iterable[int]) -> None:
    """Everything that can be told from numbers, dtypes, shapes and devices, so for fake tensors too."""
    checks.check_length("groups", groups, len(tensors), "tensors")
    for i in which:
        t = tensors[i]
        checks.check_tensor(f"tensors[{i}]", t, dims=range(2, 6))
        if groups[i] < 1 or t.shape[0] % groups[i]:
            raise ValueError(f"groups[{i}] (={groups[i]}) must divide the {t.shape[0]} output channels of tensors[{i}]")
    if tensors:
        checks.check_one_device("tensors", tensors)


@torch.library.register_fake("n2n::identity_", lib=LIBRARY)
def _(tensors: list[Tensor], groups: list[int], backend: str | None) -> None:
    _check(tensors, groups, range(len(tensors)))
