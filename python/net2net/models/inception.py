"""The paper's network (section 3.1): Inception with batch normalisation, 25 to 47 weight layers deep.

The paper gives the structure and not the channels: 3 convolutions, then 11 modules, each one convolution
followed by three forked paths, the shortest with one more convolution, the longest with three more.
Convolutions in the modules come in pairs, a vertical kernel and then a horizontal one, each a complete layer
with its own batch normalisation and rectifier. `CHANNELS` below is this package's own table, chosen in the
spirit of Inception-BN (Ioffe & Szegedy, 2015): the resolution halves twice while the channels double, and
the standard network for 1000 classes has about 11 million parameters.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ModuleChannels:
    """One row of the channel table: the output channels of every convolution of one Inception module.

    A pair's vertical and horizontal convolution have the same number of channels, so that a caller who
    appends pairs (paper, figure 5) appends identity-shaped ones.
    """

    name: str
    reduce: int  # the 1x1 convolution that all three paths start from
    short: int  # 1x1
    middle: int  # 3x1, then 1x3
    long_reduce: int  # 1x1 ...
    long: int  # ... then 3x1, then 1x3

    @property
    def output(self) -> int:
        """Channels of the module's concatenated output."""
        return self.short + self.middle + self.long


# 3 modules at 1/8 of the image's side ("imagenet" stem), 5 at 1/16, 3 at 1/32.
CHANNELS: tuple[ModuleChannels, ...] = (
    ModuleChannels("inception3a", reduce=96, short=64, middle=96, long_reduce=64, long=96),
    ModuleChannels("inception3b", reduce=128, short=96, middle=128, long_reduce=64, long=96),
    ModuleChannels("inception3c", reduce=128, short=96, middle=128, long_reduce=96, long=128),
    ModuleChannels("inception4a", reduce=192, short=160, middle=192, long_reduce=96, long=160),
    ModuleChannels("inception4b", reduce=192, short=160, middle=192, long_reduce=128, long=160),
    ModuleChannels("inception4c", reduce=256, short=192, middle=224, long_reduce=128, long=160),
    ModuleChannels("inception4d", reduce=256, short=192, middle=256, long_reduce=128, long=192),
    ModuleChannels("inception4e", reduce=288, short=192, middle=288, long_reduce=160, long=192),
    ModuleChannels("inception5a", reduce=384, short=320, middle=352, long_reduce=192, long=224),
    ModuleChannels("inception5b", reduce=448, short=320, middle=384, long_reduce=192, long=320),
    ModuleChannels("inception5c", reduce=448, short=320, middle=384, long_reduce=192, long=320),
)
STEM_CHANNELS = (64, 64, 192)
STEMS = ("imagenet", "small")

# A normalised input has mean 0, so with the customary bias of 0 every rectifier cuts off half of it, and 47 such layers
# without shortcuts make a network whose gradients say little: it idles for some hundred steps before it learns. One
# standard deviation higher the rectifiers cut off a sixth, and training starts at once. Measured with `net2net demo`'s
# teacher (handwritten digits, 250 steps, three seeds): validation accuracy 0.97 to 0.99 against 0.72 to 0.82.
INITIAL_BN_BIAS = 1.0


class ConvBNReLU(nn.Module):
    """One complete layer: convolution without bias, batch normalisation, rectifier.

    The rectifier is a module of its own in every layer, never shared: a layer can be inserted before it by name.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        padding = (kernel_size[0] // 2, kernel_size[1] // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class Pair(nn.Module):
    """A vertical (3x1) and then a horizontal (1x3) layer; its output is the horizontal layer's output."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.vertical = ConvBNReLU(in_channels, out_channels, (3, 1))
        self.horizontal = ConvBNReLU(out_channels, out_channels, (1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.horizontal(self.vertical(x))


class InceptionModule(nn.Module):
    """`reduce`, then the paths `short`, `middle` and `long`, concatenated along the channels.

    `middle` holds `pair0`, `pair1`, ...; `long` holds `reduce`, `pair0`, `pair1`, ....
    """

    def __init__(self, in_channels: int, channels: ModuleChannels, extra_pairs: int) -> None:
        super().__init__()
        self.reduce = ConvBNReLU(in_channels, channels.reduce, (1, 1))
        self.short = ConvBNReLU(channels.reduce, channels.short, (1, 1))
        self.middle = nn.Sequential(_pairs(channels.reduce, channels.middle, 1 + extra_pairs))
        long_reduce = ConvBNReLU(channels.reduce, channels.long_reduce, (1, 1))
        long_pairs = _pairs(channels.long_reduce, channels.long, 1 + extra_pairs)
        self.long = nn.Sequential(OrderedDict([("reduce", long_reduce), *long_pairs.items()]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return torch.cat([self.short(x), self.middle(x), self.long(x)], dim=1)

    def weight_layers(self) -> tuple[int, int]:
        """Convolutions on the shortest and on the longest path through the module."""
        paths = [_convolutions(path) for path in (self.short, self.middle, self.long)]
        return _convolutions(self.reduce) + min(paths), _convolutions(self.reduce) + max(paths)


class InceptionBN(nn.Module):
    """Stem, 11 Inception modules with max pooling between the stages, global average pooling, classifier.

    Built by `inception_bn`, where the arguments are explained.
    """

    def __init__(
        self,
        num_classes: int,
        width: float = 1.0,
        extra_pairs: int = 0,
        in_channels: int = 3,
        *,
        base: float = 1.0,
        stem: str = "imagenet",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(num_classes, width, extra_pairs, in_channels, base, stem, dropout)
        stem_channels = tuple(_scaled(channels, base) for channels in STEM_CHANNELS)
        self.stem = _stem(stem, in_channels, stem_channels)
        body: OrderedDict[str, nn.Module] = OrderedDict()
        channels = stem_channels[-1]
        previous = CHANNELS[0]
        for row in CHANNELS:
            if _stage(row) != _stage(previous):
                body[f"pool{_stage(previous)}"] = nn.MaxPool2d(3, stride=2, padding=1)
            scaled = _scaled_row(row, base * width)
            body[row.name] = InceptionModule(channels, scaled, extra_pairs)
            channels, previous = scaled.output, row
        self.body = nn.Sequential(body)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        return self.fc(self.dropout(self.flatten(self.pool(x))))

    def reset_parameters(self) -> None:
        """Draw all weights anew (He et al., 2015) from torch's global generator; see `INITIAL_BN_BIAS`."""
        initialise_layers(self)
        # No rectifier follows the classifier, so its gain is 1 instead of sqrt(2).
        nn.init.kaiming_normal_(self.fc.weight, nonlinearity="linear")
        nn.init.zeros_(self.fc.bias)

    def inception_modules(self) -> list[InceptionModule]:
        """The 11 modules, in order."""
        return [module for module in self.body if isinstance(module, InceptionModule)]

    def pair_names(self) -> list[str]:
        """The names of all pairs, such as `body.inception3a.middle.pair0`, in the order of the forward pass."""
        return [name for name, module in self.named_modules() if isinstance(module, Pair)]

    def weight_layers(self) -> tuple[int, int]:
        """Convolutions on the shortest and on the longest path, counted by walking the network as it is now.

        The paper's count leaves the classifier out: 25 and 47 for the standard network, 3 + 11 * 2 and 3 + 11 * 4.
        """
        depths = [module.weight_layers() for module in self.inception_modules()]
        stem = _convolutions(self.stem)
        return stem + sum(short for short, _ in depths), stem + sum(long for _, long in depths)


def inception_bn(
    num_classes: int,
    width: float = 1.0,
    extra_pairs: int = 0,
    in_channels: int = 3,
    *,
    base: float = 1.0,
    stem: str = "imagenet",
    dropout: float = 0.0,
) -> InceptionBN:
    """The paper's Inception network with batch normalisation, with random weights.

    ```
    module         reduce   short   middle     long            output
                   1x1      1x1     3x1, 1x3   1x1; 3x1, 1x3
    inception3a     96       64      96         64;  96          256
    inception3b    128       96     128         64;  96          320
    inception3c    128       96     128         96; 128          352    then max pooling
    inception4a    192      160     192         96; 160          512
    inception4b    192      160     192        128; 160          512
    inception4c    256      192     224        128; 160          576
    inception4d    256      192     256        128; 192          640
    inception4e    288      192     288        160; 192          672    then max pooling
    inception5a    384      320     352        192; 224          896
    inception5b    448      320     384        192; 320         1024
    inception5c    448      320     384        192; 320         1024
    ```

    The stem has 64, 64 and 192 channels. Every convolution is a layer `conv`, `bn`, `relu`. A pair is a
    submodule of its own, such as `body.inception3a.middle.pair0`, holding `vertical` and `horizontal`.

    Args:
        num_classes: length of the output, at least 1.
        width: factor on the channels inside the modules; the stem keeps its own, as in the paper.
            `0.3 ** 0.5` gives the paper's narrow teacher, with about 30 % of the weights in most layers.
        extra_pairs: pairs appended after every pair of the `middle` and `long` paths (paper, figure 5: 2).
        in_channels: channels of the images.
        base: factor on all channels, the stem's too, for runs at a small scale.
        stem: "imagenet" for images of about 224 pixels (the modules start at 1/8 of the side), "small" for
            16 to 64 pixels (at 1/2 of the side).
        dropout: probability of dropping an input of the classifier, in [0, 1).

    Scaled channels are rounded, halves upwards, and are at least 1.

    Returns:
        A module that takes float images `[N, in_channels, H, W]` and returns logits `[N, num_classes]`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range. Both name the argument and its value.
    """
    return InceptionBN(num_classes, width, extra_pairs, in_channels, base=base, stem=stem, dropout=dropout)


def initialise_layers(module: nn.Module) -> None:
    """Give the convolutions and normalisations of `module` the random start that `inception_bn` gives its own.

    For layers that were inserted later, in baselines that start them at random.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()  # and the running statistics
            nn.init.constant_(part.bias, INITIAL_BN_BIAS)


def _stem(kind: str, in_channels: int, channels: tuple[int, ...]) -> nn.Sequential:
    """Three convolutions: 1/8 of the side for ImageNet's images, 1/2 for small ones."""
    first, second, third = channels
    if kind == "imagenet":
        return nn.Sequential(
            OrderedDict(
                conv1=ConvBNReLU(in_channels, first, (7, 7), stride=2),
                pool1=nn.MaxPool2d(3, stride=2, padding=1),
                conv2=ConvBNReLU(first, second, (1, 1)),
                conv3=ConvBNReLU(second, third, (3, 3)),
                pool2=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )
    return nn.Sequential(
        OrderedDict(
            conv1=ConvBNReLU(in_channels, first, (3, 3)),
            conv2=ConvBNReLU(first, second, (1, 1)),
            conv3=ConvBNReLU(second, third, (3, 3)),
            pool1=nn.MaxPool2d(3, stride=2, padding=1),
        )
    )


def _pairs(in_channels: int, out_channels: int, count: int) -> OrderedDict[str, nn.Module]:
    inputs = [in_channels] + [out_channels] * (count - 1)
    return OrderedDict((f"pair{i}", Pair(inputs[i], out_channels)) for i in range(count))


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in module.modules())


def _stage(row: ModuleChannels) -> str:
    """The stage of `inception3a` is 3."""
    return row.name[len("inception")]


def _scaled(channels: int, factor: float) -> int:
    return max(1, math.floor(channels * factor + 0.5))


def _scaled_row(row: ModuleChannels, factor: float) -> ModuleChannels:
    return ModuleChannels(
        row.name,
        reduce=_scaled(row.reduce, factor),
        short=_scaled(row.short, factor),
        middle=_scaled(row.middle, factor),
        long_reduce=_scaled(row.long_reduce, factor),
        long=_scaled(row.long, factor),
    )


def _check(
    num_classes: int, width: float, extra_pairs: int, in_channels: int, base: float, stem: str, dropout: float
) -> None:
    for name, value, least in (
        ("num_classes", num_classes, 1),
        ("extra_pairs", extra_pairs, 0),
        ("in_channels", in_channels, 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} (={value!r}) must be an int")
        if value < least:
            raise ValueError(f"{name} (={value}) must be at least {least}")
    for name, number in (("width", width), ("base", base), ("dropout", dropout)):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise TypeError(f"{name} (={number!r}) must be a number")
    for name, number in (("width", width), ("base", base)):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} (={number}) must be positive and finite")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout (={dropout}) must be in [0, 1)")
    if stem not in STEMS:
        raise ValueError(f"stem (={stem!r}) must be one of {STEMS}")
