"""Copies of a model that share nothing with it: the one way in which this package makes one module tree of another."""

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from n2n_kernels import dtypes


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, each distinct tensor once, under the first of its names."""
    seen: set[int] = set()
    for name, t in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        if id(t) not in seen:
            seen.add(id(t))
            yield name, t


def movable(t: Tensor) -> bool:
    """Whether the kernels move this kind of tensor. (Counters and the like are copied with the module tree.)"""
    return t.dtype in dtypes.TABLE and t.dim() <= 5


@contextlib.contextmanager
def own_random_state(model: nn.Module) -> Iterator[None]:
    """Puts the random state back, on the CPU and on the devices of `model`."""
    devices = {t.device for _, t in named_tensors(model) if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield


def check_model(model: object) -> None:
    """Raises if `model` is not a module that can be grown, before anything is done with it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model (={type(model).__name__}) must be a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is a ScriptModule, whose classes cannot be rebuilt; grow the module it was made from")
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ValueError(
            f"model (={type(model).__name__}) is a wrapper: grow model.module, then wrap the student again"
        )
    for name, t in named_tensors(model):
        if isinstance(t, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise ValueError(f"{name} is not initialised yet: run the model once before growing it")
        if type(t) not in (Tensor, nn.Parameter, nn.Buffer):
            raise TypeError(
                f"{name} is a {type(t).__name__}: grow the model before it is sharded, quantised or otherwise wrapped"
            )


def rebuild(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A copy of `model`, of the same classes, in which the named parameters and buffers are these tensors.

    Tensors not named are copied. Sharing among parameters is kept, and `model` is not touched. No weight that is named
    is ever
    copied: the new tensors take the old ones' places while the tree is being copied.
    """
    memo: dict[int, object] = {}
    for name, old in named_tensors(model):
        if name in tensors:
            memo[id(old)] = _in_place_of(old, tensors[name])
    # Tensors with a history, kept as attributes (a computed weight, the last activation), cannot be deep-copied as
    # such.
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    return copy.deepcopy(model, memo)


def aside(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters of `model`, and nothing else: for running it without leaving traces in it."""
    return rebuild(model, {n: t.detach() for n, t in named_tensors(model) if isinstance(t, nn.Parameter)})


def _in_place_of(old: Tensor, new: Tensor) -> Tensor:
    if not isinstance(old, nn.Parameter):
        return new
    return nn.Parameter(new, requires_grad=old.requires_grad)


def skeleton(model: nn.Module, shape_of: Callable[[str, Tensor], torch.Size]) -> nn.Module:
    """A copy in evaluation mode with parameters of the given shapes, all zero, and buffers of the given shapes.

    It runs the user's own forward for its structure alone. Zeros cost no memory until they are written to. Buffers
    whose shape stays keep their values, since code may index with them.
    """
    zeros: dict[str, Tensor] = {}
    for name, t in named_tensors(model):
        shape = shape_of(name, t)
        if isinstance(t, nn.Parameter) or shape != t.shape:
            zeros[name] = torch.zeros(shape, dtype=t.dtype, device=t.device)
    return rebuild(model, zeros).eval()
