"""What is measured: the table of cases. Each has a full size, for a GPU, and perhaps a small one, for a quick run."""

import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from net2net.models import inception_bn
from torch import Tensor

F32, BF16 = torch.float32, torch.bfloat16

#: Sizes of a run. `quick` takes under three minutes on two cores; `check` is what `gpu_check.sh` has the time for.
SIZES = ("quick", "check", "full")

#: What a case may take on a CPU. It is far more than any cache, and a core needs seconds to move it.
CPU_MEMORY = 6 * 2**30


@dataclass(frozen=True)
class Case(ABC):
    """What every case has.

    Args:
        label: what the tensors are.
        dtype: of all of them.
        shapes: of the tensors; where `full` is more than these are, they come again from the start.
        full: how many tensors there are at full size.
        quick: how many in a quick run; 0 leaves the case out.
        check: whether `gpu_check.sh` has time for it.
        channels_last: the memory format of what is 4-D.
        reduced: why there are fewer tensors than at full size; "" where there are not.
    """

    label: str
    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], ...]
    full: int
    quick: int = 0
    check: bool = False
    channels_last: bool = False
    reduced: str = ""

    op = ""

    @property
    def name(self) -> str:
        several = f"{self.full} x " if len(self.shapes) < self.full else ""
        return several + ", ".join([f"{self.label} {str(self.dtype).removeprefix('torch.')}", *self._details()])

    def _details(self) -> list[str]:
        return ["channels_last"] if self.channels_last else []

    @property
    def all_shapes(self) -> list[tuple[int, ...]]:
        return [self.shapes[i % len(self.shapes)] for i in range(self.full)]

    @property
    @abstractmethod
    def read(self) -> int:
        """The least number of bytes that must be read; small tables of maps and scales are left out."""

    @property
    @abstractmethod
    def written(self) -> int:
        """The least number of bytes that must be written."""

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def sets(self, cache: int) -> int:
        """How many copies of the tensors to take in turn, so that none is still in a cache of `cache` bytes."""
        return min(64, math.ceil(4 * cache / self.bytes))

    def tensors(self, device: torch.device) -> list[Tensor]:
        """Random tensors, each with memory of its own, as a model has them."""
        return [self._laid_out(torch.randn(shape, device=device, dtype=self.dtype)) for shape in self.all_shapes]

    def _laid_out(self, t: Tensor) -> Tensor:
        return t.to(memory_format=torch.channels_last) if self.channels_last and t.dim() == 4 else t

    def _numel(self) -> int:
        """Shapes come again and again, and multiplying them out each time would be slow."""
        return sum(math.prod(shape) * times for shape, times in Counter(self.all_shapes).items())


@dataclass(frozen=True)
class Growth(Case):
    """gather_scale: all axes of all tensors grow by `factor`, and what was replicated is shared out.

    Args (further ones):
        noise: the kind of noise, if any.
        state_power: None for weights, which the split of their *input* units scales; for an optimizer's state, the
            power of the split of its *output* units (momentum 1, second moments 2).
    """

    factor: float = 2.0
    noise: str | None = None
    state_power: int | None = None

    op = "gather_scale"

    def _details(self) -> list[str]:
        return [
            *super()._details(),
            *([f"growth {self.factor:g}"] if self.factor != 2 else []),
            *([f"{self.noise} noise"] if self.noise else []),
            *([f"optimizer state, power {self.state_power}"] if self.state_power is not None else []),
        ]

    def grown(self, units: int) -> int:
        return math.ceil(units * self.factor)

    def student(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*map(self.grown, shape[:2]), *shape[2:])

    @property
    def read(self) -> int:
        return self._numel() * self.dtype.itemsize

    @property
    def written(self) -> int:
        numels = (math.prod(self.student(s)) * times for s, times in Counter(self.all_shapes).items())
        return sum(numels) * self.dtype.itemsize

    def axis_map(self, units: int) -> Tensor:
        """The identity, then random units once more: all of them in another order where the axis doubles."""
        again = torch.randperm(units, generator=torch.Generator().manual_seed(units))[: self.grown(units) - units]
        return torch.cat([torch.arange(units), again])


@dataclass(frozen=True)
class Weights(Case):
    """identity_: weights to be filled with identity kernels; write only."""

    op = "identity_"

    @property
    def read(self) -> int:
        return 0

    @property
    def written(self) -> int:
        return self._numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Activation(Case):
    """channel_moments: one activation `[N, C, H, W]`; read only. Its count is N, the images."""

    op = "channel_moments"

    @property
    def all_shapes(self) -> list[tuple[int, ...]]:
        return [(self.full, *self.shapes[0])]

    @property
    def read(self) -> int:
        return self._numel() * self.dtype.itemsize

    @property
    def written(self) -> int:
        return 0


def _square(side: int, *kernel: int) -> dict[str, object]:
    shape = (side, side, *kernel)
    return {"label": "x".join(map(str, shape)), "shapes": (shape,)}


def _inception() -> dict[str, Any]:
    """The paper's network, 11 million parameters: convolutions, four vectors for each, the classifier."""
    with torch.device("meta"):
        state = inception_bn(1000).state_dict()
    shapes = tuple(tuple(t.shape) for t in state.values() if t.is_floating_point())
    return {"label": "Inception-BN", "shapes": shapes, "full": len(shapes)}


def _images(channels: int, side: int) -> dict[str, object]:
    return {"label": f"{channels}x{side}x{side}", "shapes": ((channels, side, side),), "full": 320}


def _table() -> list[Case]:
    """Every case. What matters most comes first, for runs that are short of time."""
    large, inception = _square(2048, 3, 3), _inception()
    tensors = len(inception["shapes"])
    vectors = {"label": "vectors of 64 to 2048", "shapes": tuple((64 << i,) for i in range(6)), "full": 1000}
    tall_and_wide = {"label": "512x512x1x7, 7x1", "shapes": ((512, 512, 1, 7), (512, 512, 7, 1))}
    rows: list[tuple[type[Case], dict[str, object], dict[str, object]]] = [
        # identity_ and channel_moments are done in no time, so they come before the long list.
        (Weights, _square(64, 3, 3), {"dtype": F32, "full": 1000, "quick": 200, "check": True}),
        (Weights, large, {"dtype": BF16, "full": 1, "quick": 1, "check": True}),
        (Weights, large, {"dtype": BF16, "full": 1, "quick": 1, "channels_last": True}),
        (Activation, _images(64, 80), {"dtype": F32, "quick": 40, "check": True}),
        (Activation, _images(64, 80), {"dtype": BF16, "quick": 40, "channels_last": True, "check": True}),
        (Activation, _images(1024, 20), {"dtype": F32, "quick": 40}),
        (Activation, _images(1024, 20), {"dtype": BF16, "quick": 40}),
        (Activation, _images(1024, 20), {"dtype": F32, "quick": 40, "channels_last": True}),
        (Activation, _images(64, 80), {"dtype": BF16}),
        (Activation, _images(64, 80), {"dtype": F32, "channels_last": True}),
        (Activation, _images(1024, 20), {"dtype": BF16, "channels_last": True}),
        (Growth, large, {"dtype": BF16, "full": 64, "quick": 1, "check": True}),
        (Growth, _square(64, 3, 3), {"dtype": F32, "full": 1000, "quick": 200, "check": True}),
        (Growth, _square(16, 1, 1), {"dtype": F32, "full": 1000, "quick": 1000, "check": True}),
        (Growth, inception, {"dtype": F32, "quick": tensors, "check": True}),
        (Growth, large, {"dtype": BF16, "full": 64, "noise": "replicas", "check": True}),
        (Growth, large, {"dtype": BF16, "full": 64, "noise": "cancelling", "check": True}),
        (Growth, large, {"dtype": F32, "full": 64, "check": True}),
        (Growth, _square(512, 3, 3), {"dtype": F32, "full": 64, "quick": 4, "check": True}),
        (Growth, _square(512, 3, 3), {"dtype": F32, "full": 64, "quick": 2, "channels_last": True, "check": True}),
        (Growth, inception, {"dtype": F32, "noise": "cancelling", "quick": tensors, "check": True}),
        (Growth, vectors, {"dtype": F32, "quick": 1000, "check": True}),
        (Growth, inception, {"dtype": F32, "noise": "replicas"}),
        (Growth, inception, {"dtype": BF16}),
        (Growth, inception, {"dtype": F32, "state_power": 1}),
        (Growth, inception, {"dtype": F32, "state_power": 2}),
        (Growth, _square(512, 3, 3), {"dtype": F32, "full": 64, "quick": 2, "noise": "replicas"}),
        (Growth, _square(512, 3, 3), {"dtype": F32, "full": 64, "quick": 2, "state_power": 2}),
        (Growth, large, {"dtype": BF16, "full": 16, "channels_last": True}),
        (Growth, large, {"dtype": BF16, "full": 64, "factor": 1.25}),
        (Growth, _square(512, 3, 3), {"dtype": F32, "full": 64, "quick": 2, "factor": 1.25}),
        (Growth, _square(512, 3, 3), {"dtype": BF16, "full": 64, "quick": 2}),
        (Growth, tall_and_wide, {"dtype": BF16, "full": 64, "quick": 2}),
        (Growth, _square(512, 5, 5), {"dtype": BF16, "full": 32, "quick": 1}),
        (Growth, _square(192, 7, 7), {"dtype": F32, "full": 64}),
        (Growth, _square(1024), {"dtype": BF16, "full": 256}),
        # Rows of 5958 and 11916 bytes: hardly any begins at a multiple of 16.
        (Growth, _square(331, 3, 3), {"dtype": BF16, "full": 256, "quick": 4}),
        (Growth, _square(331, 3, 3), {"dtype": F32, "full": 256, "factor": 1.25}),
    ]
    return [kind(**{**what, **how}) for kind, what, how in rows]


def cases(size: str, device: torch.device) -> list[Case]:
    """The cases of a run of `size` (one of `SIZES`), with as many tensors as fit into the memory that is free now."""
    memory = _free_memory(device)
    kept: Sequence[Case] = _table()
    if size == "quick":
        kept = [replace(case, full=case.quick) for case in kept if case.quick]
    elif size == "check":
        kept = [case for case in kept if case.check]
    return [_fitted(case, memory) for case in kept]


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(0.9 * torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(int(0.6 * free), CPU_MEMORY)


def _fitted(case: Case, memory: int) -> Case:
    """`case`, with fewer tensors if need be. At most one result exists at a time; its reference is of a few tensors."""
    each = case.bytes // case.full
    spare = 4 * each  # for what a peer makes on its way, and for checking results
    most = max(1, (memory - spare) // each)
    if case.full <= most:
        return case
    return replace(case, full=most, reduced=f"{most} of {case.full}, for want of memory")
