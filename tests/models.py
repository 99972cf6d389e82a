"""Example networks that the tests of growth share, each under a name, with inputs; and random weights for all of
them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from net2net.models import inception_bn
from torch import Tensor, nn


class Example(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def build(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[nn.Module, Tensor]:
        """The network with random weights, statistics and affine parameters, in eval mode, and a batch of inputs."""
        torch.manual_seed(seed)
        model = randomised(self.make(), seed).to(dtype).eval()
        return model, torch.randn(self.shape, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and affine parameters: those of a fresh network hide every mistake with batch normalisation."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if not t.is_floating_point() or t.dim() != 1:
                continue
            if name.endswith("running_var"):
                t.copy_(torch.rand(t.shape, generator=g) * 1.5 + 0.5)
            elif name.endswith("weight"):
                sign = torch.where(torch.rand(t.shape, generator=g) < 0.3, -1.0, 1.0)
                t.copy_((torch.rand(t.shape, generator=g) + 0.5) * sign)
            else:
                t.copy_(torch.randn(t.shape, generator=g) * 0.3)
    return model


class Residual(nn.Module):
    """Residual additions, a projection shortcut, a reused activation, in-place and functional forms, flattened
    images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.down_bn = nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12)
        self.conv3, self.bn3 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Linear(12 * 4 * 4, 10)
        self.fc2 = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        y = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(y)) + x)
        x = F.relu(self.bn3(self.conv3(x)) + self.down_bn(self.down(x)))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Gated(nn.Module):
    """Channels split in two, a squeeze-and-excitation gate, a spatial gate, a depthwise convolution, a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.gain = nn.Parameter(torch.ones(6, 1, 1))
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.spatial = nn.Conv2d(6, 1, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.b(self.a(x).relu()).chunk(2, 1)
        x = self.depthwise(left * right.sigmoid()) * self.gain
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = x * self.spatial(x).sigmoid()
        return self.head(F.adaptive_avg_pool2d(x.relu(), 1).flatten(1))


class Dense(nn.Module):
    """Concatenations of concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.head = nn.Conv2d(18, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.head(F.max_pool2d(torch.cat(features, 1), 2))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x).relu()).relu()).relu())


class ChannelsLastFeatures(nn.Module):
    """Images with channels last, a linear layer on them, and features flattened in that order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 8)
        self.fc, self.out = nn.Linear(8 * 16, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.conv(x).relu().permute(0, 2, 3, 1)).relu()
        return self.out(self.fc(x.flatten(1)).relu())


def plain_1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU6(), nn.AvgPool1d(2), nn.Conv1d(6, 8, 3, padding=1),
        nn.BatchNorm1d(8), nn.Hardtanh(-0.5, 2.0), nn.Flatten(), nn.Linear(32, 9), nn.BatchNorm1d(9), nn.ReLU(),
        nn.Linear(9, 3),
    )  # fmt: skip


def plain_2d() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Dropout(0.0), nn.Linear(40, 12), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip


def plain_3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 5, 3, padding=1), nn.BatchNorm3d(5), nn.PReLU(5), nn.MaxPool3d(2),
        nn.Conv3d(5, 7, (1, 3, 3), padding=(0, 1, 1)),
        nn.BatchNorm3d(7), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(7, 3),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 1))


class Crosswise(nn.Module):
    """Weights that are stored [in, out]: matrices that their inputs are multiplied by from the left, transposed
    convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.into, self.outof = nn.Parameter(torch.randn(4, 10)), nn.Parameter(torch.randn(10, 3))
        self.bias = nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.up(nn.functional.silu(self.stem(x)))).mean((2, 3))
        return torch.addmm(self.bias, x, self.into).sigmoid() @ self.outof


EXAMPLES = {
    "mlp": Example(mlp, (7, 5)),
    "plain_1d": Example(plain_1d, (6, 2, 8)),
    "plain_2d": Example(plain_2d, (5, 3, 8, 8)),
    "plain_3d": Example(plain_3d, (4, 2, 4, 6, 6)),
    "residual": Example(Residual, (5, 3, 8, 8)),
    "gated": Example(Gated, (3, 3, 7, 7)),
    "dense": Example(Dense, (4, 2, 6, 6)),
    "tied": Example(Tied, (9, 6)),
    "crosswise": Example(Crosswise, (5, 3, 6, 6)),
    "channels_last_features": Example(ChannelsLastFeatures, (3, 3, 4, 4)),
    "inception": Example(lambda: inception_bn(5, 0.3**0.5, base=0.1, in_channels=1, stem="small"), (4, 1, 16, 16)),
}
