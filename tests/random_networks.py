"""Random networks: graphs of the layers that convolutional networks are made of, drawn by hypothesis.

A network is a list of steps. Each makes a new map of features out of maps that are there; the last one is pooled and
classified. What does not fit (other sizes, other widths) is made to fit by a convolution, as people do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "hardtanh": F.hardtanh, "sigmoid": torch.sigmoid}

#: Steps that take one map, and those that take two.
ONE = (
    "conv", "strided", "pointwise", "grouped", "depthwise", "transposed", "separable", "batch_norm", "group_norm",
    "layer_norm", "activation", "max_pool", "average_pool", "gate", "shuffle", "halves", "slice", "linear",
    "scale", "pad",
)  # fmt: skip
TWO = ("add", "multiply", "cat", "interleave", "attend")


@dataclass(frozen=True)
class Step:
    kind: str
    inputs: tuple[int, ...]  # positions in the list of maps, counted from its end
    width: int  # where the step may choose
    activation: str


@dataclass(frozen=True)
class Recipe:
    """All that decides a network."""

    steps: tuple[Step, ...]
    shared: bool  # the first convolution is used twice
    seed: int

    def build(self) -> tuple[RandomNetwork, Tensor]:
        """In float64, with random weights, statistics, gains and shifts, in evaluation mode; and two images."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network, x = RandomNetwork(self), torch.randn(2, 3, 8, 8)
            with torch.no_grad():
                network(x)  # makes the layers that depend on widths
                for module in network.modules():
                    if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
                        module.weight.uniform_(0.5, 1.5)
                        module.bias.normal_()
                    if isinstance(module, nn.BatchNorm2d):
                        module.running_mean.normal_()
                        module.running_var.uniform_(0.5, 1.5)
            return network.double().eval(), x.double()


class RandomNetwork(nn.Module):
    """Makes its layers in its first run, when the widths are known."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        maps = [first, F.relu(self.stem(x.flip(-1))) if self.recipe.shared else F.relu(first)]
        for i, step in enumerate(self.recipe.steps):
            given = [maps[-1 - at % len(maps)] for at in step.inputs]
            maps.append(getattr(self, f"_{step.kind}")(f"s{i}", step, *given))
        return self._layer("head", nn.Linear, maps[-1].shape[1], 3)(maps[-1].mean((2, 3)))

    def _layer(self, name: str, kind: type[nn.Module], *args: object, **options: object) -> nn.Module:
        if name not in self.layers:
            self.layers[name] = kind(*args, **options)
        return self.layers[name]

    def _conv2d(self, name: str, x: Tensor, out: int, size: int = 1, **options: object) -> Tensor:
        made: Tensor = self._layer(name, nn.Conv2d, x.shape[1], out, size, padding=size // 2, **options)(x)
        return made

    def _fit(self, name: str, x: Tensor, like: Tensor) -> Tensor:
        if x.shape[2:] != like.shape[2:]:
            x = F.interpolate(x, like.shape[2:])
        # By the layers that are there: a wider network must ask what its own first run asked.
        if f"{name}_fit" in self.layers or ("head" not in self.layers and x.shape[1] != like.shape[1]):
            return self._conv2d(f"{name}_fit", x, like.shape[1])
        return x

    # -- steps that take one map -------------------------------------------------------------------------------------

    def _conv(self, name: str, step: Step, x: Tensor) -> Tensor:
        return ACTIVATIONS[step.activation](self._conv2d(name, x, step.width, 3, bias=step.width % 2 == 0))

    def _strided(self, name: str, step: Step, x: Tensor) -> Tensor:
        return self._conv2d(name, x, step.width, 3, stride=2)

    def _pointwise(self, name: str, step: Step, x: Tensor) -> Tensor:
        return self._conv2d(name, x, step.width)

    def _grouped(self, name: str, step: Step, x: Tensor) -> Tensor:
        inner = self._conv2d(f"{name}_in", x, 8)
        return self._conv2d(name, inner, 8, 3, groups=2 if step.width % 2 else 4)

    def _depthwise(self, name: str, step: Step, x: Tensor) -> Tensor:
        inner = self._conv2d(f"{name}_in", x, step.width)
        multiplier = 2 if step.width % 3 == 0 else 1
        return self._conv2d(name, inner, step.width * multiplier, 3, groups=step.width)

    def _transposed(self, name: str, step: Step, x: Tensor) -> Tensor:
        made: Tensor = self._layer(name, nn.ConvTranspose2d, x.shape[1], step.width, 3, padding=1)(x)
        return made

    def _separable(self, name: str, step: Step, x: Tensor) -> Tensor:
        across = self._layer(f"{name}_a", nn.Conv2d, x.shape[1], step.width, (1, 3), padding=(0, 1))(x)
        down: Tensor = self._layer(f"{name}_b", nn.Conv2d, step.width, step.width, (3, 1), padding=(1, 0))(across)
        return down

    def _batch_norm(self, name: str, step: Step, x: Tensor) -> Tensor:
        return ACTIVATIONS[step.activation](self._layer(name, nn.BatchNorm2d, x.shape[1])(x))

    def _group_norm(self, name: str, step: Step, x: Tensor) -> Tensor:
        inner = self._conv2d(f"{name}_in", x, 8)
        made: Tensor = self._layer(name, nn.GroupNorm, 4 if step.width % 2 else 1, 8)(inner)
        return made

    def _layer_norm(self, name: str, step: Step, x: Tensor) -> Tensor:
        made: Tensor = self._layer(name, nn.LayerNorm, x.shape[1])(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return made

    def _activation(self, name: str, step: Step, x: Tensor) -> Tensor:
        return ACTIVATIONS[step.activation](x)

    def _max_pool(self, name: str, step: Step, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 1, 1)

    def _average_pool(self, name: str, step: Step, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if min(x.shape[2:]) > 1 else x

    def _gate(self, name: str, step: Step, x: Tensor) -> Tensor:
        squeezed = F.relu(self._conv2d(f"{name}_a", x.mean((2, 3), keepdim=True), 4))
        gates = self._layer(f"{name}_b", nn.Conv2d, 4, x.shape[1], 1)(squeezed)
        return x * torch.sigmoid(gates)

    def _shuffle(self, name: str, step: Step, x: Tensor) -> Tensor:
        inner = self._conv2d(f"{name}_in", x, 8)
        return F.channel_shuffle(inner, 2) if step.width % 2 else F.pixel_unshuffle(F.pixel_shuffle(inner, 2), 2)

    def _halves(self, name: str, step: Step, x: Tensor) -> Tensor:
        a, b = self._conv2d(f"{name}_in", x, 2 * step.width).chunk(2, dim=1)
        return a * torch.sigmoid(b)

    def _slice(self, name: str, step: Step, x: Tensor) -> Tensor:
        inner = self._conv2d(f"{name}_in", x, step.width)
        return torch.cat([F.relu(inner[:, :2]), inner[:, 2:]], dim=1)  # a size that is written into the code

    def _linear(self, name: str, step: Step, x: Tensor) -> Tensor:
        made: Tensor = self._layer(name, nn.Linear, x.shape[1], step.width)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return made

    def _scale(self, name: str, step: Step, x: Tensor) -> Tensor:
        return x * 0.5 + 1

    def _pad(self, name: str, step: Step, x: Tensor) -> Tensor:
        return F.pad(x, (1, 0, 0, 1))

    # -- steps that take two maps ------------------------------------------------------------------------------------

    def _add(self, name: str, step: Step, x: Tensor, y: Tensor) -> Tensor:
        return x + self._fit(name, y, x)

    def _multiply(self, name: str, step: Step, x: Tensor, y: Tensor) -> Tensor:
        return x * torch.sigmoid(self._fit(name, y, x))

    def _cat(self, name: str, step: Step, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, F.interpolate(y, x.shape[2:]) if y.shape[2:] != x.shape[2:] else y], dim=1)

    def _interleave(self, name: str, step: Step, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([x, self._fit(name, y, x)], dim=2).flatten(1, 2)

    def _attend(self, name: str, step: Step, x: Tensor, y: Tensor) -> Tensor:
        """A single head: positions of x look at those of y."""
        q, k, v = (
            self._conv2d(f"{name}_{which}", source, 4).flatten(2).transpose(1, 2)
            for which, source in (("q", x), ("k", y), ("v", y))
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:])
        return self._conv2d(f"{name}_out", mixed, step.width)


def recipes() -> st.SearchStrategy[Recipe]:
    """Of up to ten steps."""
    widths, names = st.integers(3, 8), st.sampled_from(list(ACTIVATIONS))
    recent = st.integers(0, 4)
    one = st.builds(Step, st.sampled_from(ONE), st.tuples(recent), widths, names)
    two = st.builds(Step, st.sampled_from(TWO), st.tuples(recent, recent), widths, names)
    steps = st.lists(one | one | two, min_size=1, max_size=10).map(tuple)
    return st.builds(Recipe, steps, st.booleans(), st.integers(0, 1000))
