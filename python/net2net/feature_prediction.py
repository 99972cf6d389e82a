"""The paper's section 2.1: a student of any kind that learns to predict its teacher's hidden layers.

New, learned 1x1 convolutions (linear maps of the channels at each place) take the student's hidden layers to the
teacher's, and their mean squared error is added to the loss. The authors found no advantage in it; it is here to be
compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net2net.running import Inputs, call
from net2net.skeleton import aside, own_random_state


class FeaturePrediction(nn.Module):
    """The auxiliary loss by which a student predicts hidden layers of its teacher.

        with net2net.FeaturePrediction(teacher, student, {"layer1": "layer1"}, images) as prediction:
            optimizer.add_param_group({"params": list(prediction.parameters())})
            for x, y in batches:
                loss = F.cross_entropy(student(x), y) + prediction(x)
                ...  # backward, optimizer.step()
                prediction.step()

    Its parameters are those of the heads alone; teacher and student are no part of its state dict. It hooks itself into
    both, until `remove` or the end of the `with`.

    Args:
        teacher: the trained network. It is run without gradients, in the mode that it is in (usually eval).
        student: any network that takes the same inputs.
        pairs: names of modules of the student -> names of modules of the teacher whose outputs they predict. Both are
            tensors that agree in everything but the number of channels.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for both forwards, for the
            numbers of channels. Both are run once, as copies that are in eval mode.
        weight: what the loss is multiplied by.
        decay: what `weight` is multiplied by at each `step`, in (0, 1].
        dim: of the channels; -1 for tokens with their features last.
        seed: of the heads' first weights.

    Attributes:
        heads: the linear maps, in the order of `pairs`.
        weight: as it is now.

    Raises:
        ValueError: for a bad argument, by name and value; a name that is no module's; outputs that are no tensors, or
            of other shapes.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        pairs: Mapping[str, str],
        example_inputs: Inputs,
        *,
        weight: float = 1.0,
        decay: float = 1.0,
        dim: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight (={weight}) must not be negative")
        if not 0 < decay <= 1:
            raise ValueError(f"decay (={decay}) must be in (0, 1]")
        if not isinstance(pairs, Mapping) or not pairs:
            raise ValueError(f"pairs (={pairs!r}) must map names of the student's modules to the teacher's")
        self.pairs = dict(pairs)
        self.weight = weight
        self.decay = decay
        self.dim = dim
        mine = _features("student", student, list(self.pairs), example_inputs)
        theirs = _features("teacher", teacher, list(self.pairs.values()), example_inputs)
        for name, other in self.pairs.items():
            _check_shapes(name, other, mine[name].shape, theirs[other].shape, dim)
        with own_random_state(student):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(
                nn.Linear(mine[a].shape[dim], theirs[b].shape[dim], device=mine[a].device, dtype=mine[a].dtype)
                for a, b in self.pairs.items()
            )
        # Not as submodules, whose parameters would be this module's.
        self._run_teacher: Callable[[Inputs], Any] = lambda inputs: call(teacher, inputs)
        self._seen: dict[str, Tensor] = {}
        self._wanted: dict[str, Tensor] = {}
        self._handles = [
            *_hooks(student, list(self.pairs), self._seen),
            *_hooks(teacher, list(self.pairs.values()), self._wanted),
        ]

    def forward(self, inputs: Inputs) -> Tensor:
        """The weighted loss for what the student was run on last; call it after the student, with the same inputs.

        Returns:
            A scalar: `weight` times the mean over all pairs of the mean squared error.

        Raises:
            RuntimeError: if the hooks were removed, or the student was not run since the last call.
        """
        if not self._handles:
            raise RuntimeError("the hooks of this FeaturePrediction were removed")
        if missing := [name for name in self.pairs if name not in self._seen]:
            raise RuntimeError(f"run the student first: nothing has been seen of its {missing[0]}")
        seen = dict(self._seen)
        self._seen.clear()
        with torch.no_grad():
            self._run_teacher(inputs)
        losses = []
        for head, (name, other) in zip(self.heads, self.pairs.items(), strict=True):
            predicted = head(seen[name].movedim(self.dim, -1))
            losses.append(F.mse_loss(predicted, self._wanted[other].movedim(self.dim, -1)))
        self._wanted.clear()
        return self.weight * torch.stack(losses).mean()

    def step(self) -> None:
        """Decays the weight."""
        self.weight *= self.decay

    def remove(self) -> None:
        """Takes the hooks out of teacher and student, which are then as they were. To call it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()
        self._wanted.clear()

    def __enter__(self) -> FeaturePrediction:
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()


def _hooks(model: nn.Module, names: list[str], found: dict[str, Tensor]) -> list[Any]:
    """Hooks that put the modules' outputs into `found`."""

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            found[name] = out

        return hook

    return [model.get_submodule(name).register_forward_hook(keep(name)) for name in dict.fromkeys(names)]


def _features(what: str, model: nn.Module, names: list[str], inputs: Inputs) -> dict[str, Tensor]:
    """The outputs of these modules of a copy of `model`."""
    known = dict(model.named_modules())
    for name in names:
        if name not in known:
            raise ValueError(f"pairs: the {what} has no module {name!r}")
    copy = aside(model).eval()
    found: dict[str, Tensor] = {}
    _hooks(copy, names, found)
    with torch.no_grad(), own_random_state(model):
        call(copy, inputs)
    for name in names:
        if not isinstance(found.get(name), Tensor):
            why = "is not run" if name not in found else f"returns a {type(found[name]).__name__}, not a tensor"
            raise ValueError(f"pairs: the {what}'s {name} {why}")
    return found


def _check_shapes(name: str, other: str, mine: torch.Size, theirs: torch.Size, dim: int) -> None:
    same = len(mine) == len(theirs)
    if same and not -len(mine) <= dim < len(mine):
        raise ValueError(f"dim (={dim}) is no dimension of the output of {name}, whose shape is {tuple(mine)}")
    rest = [[n for d, n in enumerate(shape) if d != dim % len(shape)] for shape in (mine, theirs) if len(shape)]
    if not same or rest[:1] != rest[1:]:
        raise ValueError(
            f"pairs: {name} gives {tuple(mine)} and the teacher's {other} {tuple(theirs)}; only dimension {dim} may "
            "differ"
        )
