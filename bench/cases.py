"""What is measured: one table of named cases, each with its full size for a GPU and a small one for a CPU."""

from dataclasses import dataclass

import torch
from net2net.models import inception_bn
from torch import Tensor


@dataclass(frozen=True)
class Growth:
    """A list of teacher tensors whose axes all double, with input scales, and perhaps noise."""

    name: str
    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], ...]
    noise: str | None = None

    @property
    def bytes(self) -> int:
        """The least traffic: each teacher tensor is read once, each student tensor written once."""
        teacher = sum(torch.Size(shape).numel() for shape in self.shapes)
        student = sum(torch.Size(_student(shape)).numel() for shape in self.shapes)
        return (teacher + student) * self.dtype.itemsize

    def tensors(self, device: torch.device) -> list[Tensor]:
        return [torch.randn(shape, device=device, dtype=self.dtype) for shape in self.shapes]


def _student(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*(2 * n for n in shape[:2]), *shape[2:])


def doubling_map(units: int) -> Tensor:
    """Identity, then each unit once more in another order."""
    return torch.cat([torch.arange(units), torch.randperm(units, generator=torch.Generator().manual_seed(units))])


@dataclass(frozen=True)
class Weights:
    """A list of weights to be filled with identity kernels; write only."""

    name: str
    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], ...]

    @property
    def bytes(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes) * self.dtype.itemsize

    def tensors(self, device: torch.device) -> list[Tensor]:
        return [torch.full(shape, torch.nan, device=device, dtype=self.dtype) for shape in self.shapes]


@dataclass(frozen=True)
class Activation:
    """One tensor `[N, C, H, W]` whose channels' moments are taken; read only."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, int, int, int]
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def tensor(self, device: torch.device) -> Tensor:
        return torch.randn(self.shape, device=device, dtype=self.dtype).to(memory_format=self.memory_format)


def inception_shapes(base: float) -> tuple[tuple[int, ...], ...]:
    """The tensors of the paper's network: convolutions, batch normalisation's four vectors each, the classifier."""
    with torch.device("meta"):
        state = inception_bn(1000, base=base).state_dict()
    return tuple(tuple(t.shape) for t in state.values() if t.is_floating_point())


def growths(small: bool) -> list[Growth]:
    f32, bf16 = torch.float32, torch.bfloat16
    many, large = (20, ((256, 256, 3, 3),)) if small else (1000, ((2048, 2048, 3, 3),) * 64)
    inception = inception_shapes(0.25 if small else 1.0)
    return [
        Growth("many 64x64x3x3 fp32", f32, ((64, 64, 3, 3),) * many),
        Growth("many 16x16x1x1 fp32", f32, ((16, 16, 1, 1),) * many),
        Growth("large 3x3 bf16", bf16, large),
        Growth("large 3x3 bf16, paper's noise", bf16, large, "replicas"),
        Growth("large 3x3 bf16, cancelling noise", bf16, large, "cancelling"),
        Growth("Inception-BN fp32", f32, inception),
        Growth("Inception-BN fp32, cancelling noise", f32, inception, "cancelling"),
    ]


def identities(small: bool) -> list[Weights]:
    many, side = (20, 256) if small else (1000, 2048)
    return [
        Weights("many 64x64x3x3 fp32", torch.float32, ((64, 64, 3, 3),) * many),
        Weights("large 3x3 bf16", torch.bfloat16, ((side, side, 3, 3),)),
    ]


def activations(small: bool) -> list[Activation]:
    n = 2 if small else 256
    return [
        Activation("64 channels fp32", torch.float32, (n, 64, 80, 80)),
        Activation("64 channels bf16, channels_last", torch.bfloat16, (n, 64, 80, 80), torch.channels_last),
        Activation("1024 channels fp32", torch.float32, (n, 1024, 20, 20)),
    ]
