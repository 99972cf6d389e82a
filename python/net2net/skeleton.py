"""Copies of a model that share nothing with it: the one way in which this package makes one module tree of another."""

import contextlib
import math
import mmap
import random
import sys
from collections.abc import Callable, Collection, ItemsView, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from n2n_kernels import dtypes
from net2net.spent import check_not_spent
from net2net.tree import deepcopy
from net2net.views import Geometry, geometry_of


@dataclass(frozen=True, eq=False)
class Tensors:
    """A model's parameters and buffers, and tensors that modules keep as plain attributes.

    Attributes:
        by_name: each distinct tensor once, under the first of its names; parameters come first, plain attributes last.
        aliases: the other names of tensors that are shared -> the first.
        parameters: name -> parameter, by all of their names.
    """

    by_name: dict[str, Tensor]
    aliases: dict[str, str]
    parameters: dict[str, nn.Parameter]

    @staticmethod
    def of(model: nn.Module, plain: Collection[str] = ()) -> "Tensors":
        """Those of a model; of plain attributes (a table of positions, say) only those with the names `plain`."""
        return Tensors._of(model, [(name, t) for name, t in _plain(model) if name in plain] if plain else [])

    @staticmethod
    def all_of(model: nn.Module) -> "Tensors":
        """With all plain attributes, which a plan may turn out to grow."""
        registered = Tensors.of(model)
        memory = {t.untyped_storage()._cdata for t in registered.by_name.values()}
        # What is computed is none, nor is a view of what is registered.
        own = [
            (name, t) for name, t in _plain(model)
            if t.is_leaf and name not in registered.by_name and t.untyped_storage()._cdata not in memory
        ]  # fmt: skip
        return Tensors._of(model, own) if own else registered

    @staticmethod
    def _of(model: nn.Module, plain: list[tuple[str, Tensor]]) -> "Tensors":
        parameters, buffers = _members(model)
        by_name: dict[str, Tensor] = {}
        aliases: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, t in [*parameters.items(), *buffers, *plain]:
            known = first.setdefault(id(t), name)
            if known is name:
                by_name[name] = t
            elif known != name:
                aliases[name] = known
        return Tensors(by_name, aliases, parameters)


def _walk(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """`named_modules(remove_duplicate=False)` in its order, with the dot that follows a name. (Torch's own goes through
    a generator per level for each module.)"""
    found = []
    stack = [("", model)]
    while stack:
        prefix, module = entry = stack.pop()
        found.append(entry)
        if children := module._modules:
            stack += [(f"{prefix}{name}.", child) for name, child in reversed(children.items()) if child is not None]
    return found


def each_module(model: nn.Module) -> Iterator[nn.Module]:
    """`modules`, with none twice."""
    seen: set[int] = set()
    stack = [model]
    while stack:
        module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield module
        if children := module._modules:
            stack += [child for child in reversed(children.values()) if child is not None]


def _members(model: nn.Module) -> tuple[dict[str, nn.Parameter], list[tuple[str, Tensor]]]:
    """`named_parameters` and `named_buffers`, duplicates too, in one walk over the modules."""
    kind = type(model)
    for method in ("named_parameters", "named_buffers", "_named_members"):
        if getattr(kind, method) is not getattr(nn.Module, method):
            parameters = dict(model.named_parameters(remove_duplicate=False))
            return parameters, list(model.named_buffers(remove_duplicate=False))
    parameters, buffers = {}, []
    for prefix, module in _walk(model):
        if own := module._parameters:
            for name, p in own.items():
                if p is not None:
                    parameters[prefix + name] = p
        if held := module._buffers:
            buffers += [(prefix + name, b) for name, b in held.items() if b is not None]
    return parameters, buffers


def _plain(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors that modules keep as plain attributes."""
    found = []
    for prefix, module in _walk(model):
        held = module.__dict__
        if Tensor in map(type, held.values()):  # few modules have one
            found += [(prefix + name, t) for name, t in held.items() if type(t) is Tensor]
    return found


def named_tensors(model: nn.Module) -> ItemsView[str, Tensor]:
    """Parameters, buffers and plain attributes by name, each distinct tensor once, under the first of its names."""
    return Tensors.all_of(model).by_name.items()


def memory(model: nn.Module) -> dict[str, tuple[int, Geometry]]:
    """In which memory a model's tensors are, and how they lie in it, by their names."""
    return {name: (t.untyped_storage()._cdata, geometry_of(t)) for name, t in named_tensors(model)}


def movable(t: Tensor) -> bool:
    """Whether the kernels move this kind of tensor. (Counters and the like are copied with the module tree.)"""
    return t.dtype in dtypes.TABLE and t.dim() <= 5


@contextlib.contextmanager
def own_random_state(model: nn.Module) -> Iterator[None]:
    """Puts the random state back, on the CPU and on the devices of `model`, and Python's and NumPy's: code may draw
    from these (what to mask in training, which layers to leave out), and teacher and student then draw the same."""
    tensors = named_tensors(model) if torch.cuda.is_initialized() else ()
    devices = {t.device for _, t in tensors if t.device.type == "cuda"}
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 -- the global one
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


_WRAPPERS = nn.parallel.DistributedDataParallel, nn.DataParallel


def _is_sharded(kind: type) -> bool:
    # Where nobody has imported FSDP, nothing is sharded by it; to import it takes a while.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and issubclass(kind, (fsdp.FSDPModule, fsdp.FullyShardedDataParallel))


def _refused(kind: type) -> bool:
    """Whether modules of this class cannot be grown."""
    return issubclass(kind, (torch.jit.ScriptModule, *_WRAPPERS)) or _is_sharded(kind)


def _error(where: str, module: nn.Module) -> Exception:
    """Why `module` cannot be grown, and what to do instead."""
    kind = type(module)
    if issubclass(kind, torch.jit.ScriptModule):
        return TypeError(
            f"{where} is a ScriptModule, whose classes cannot be rebuilt; grow the module it was made from"
        )
    if issubclass(kind, _WRAPPERS):
        return ValueError(f"{where} (={kind.__name__}) is a wrapper: grow model.module, then wrap the student again")
    return ValueError(
        f"{where} (={kind.__name__}) is sharded by FSDP: grow a live one by net2net.grow_sharded (FSDP2; its plan is "
        "made for the unsharded model, which may be on the meta device), or grow before sharding"
    )


def check_model(model: object, plain: Collection[str] = ()) -> Tensors:
    """Raises if `model` is not a module that can be grown, before anything is done with it. Its tensors (`plain`: as of
    `Tensors.of`)."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model (={type(model).__name__}) must be a torch.nn.Module")
    # Of the many modules, their few classes tell.
    if any(map(_refused, set(map(type, each_module(model))))):
        prefix, module = next((prefix, module) for prefix, module in _walk(model) if _refused(type(module)))
        where = f"{prefix[:-1]} in model" if prefix else "model"
        raise _error(where, module)
    check_not_spent("model", model)
    tensors = Tensors.of(model, plain)
    for name, t in tensors.by_name.items():
        if type(t) in (Tensor, nn.Parameter, nn.Buffer):
            continue
        if isinstance(t, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise ValueError(f"{name} is not initialised yet: run the model once before growing it")
        raise TypeError(
            f"{name} is a {type(t).__name__}: grow the model before it is sharded, quantised or otherwise wrapped"
        )
    return tensors


def rebuild(model: nn.Module, tensors: dict[str, Tensor], given: Tensors | None = None) -> nn.Module:
    """A copy of `model`, of the same classes, in which the named parameters, buffers and plain attributes are these
    tensors.

    Tensors not named are copied. Sharing among parameters is kept, and `model` is not touched. No weight that is named
    is ever copied: the new tensors take the old ones' places while the tree is being copied.

    Args:
        given: the tensors of `model`, if they are at hand.
    """
    memo: dict[int, object] = {}
    for name, old in (given or Tensors.all_of(model)).by_name.items():
        if name in tensors:
            memo[id(old)] = in_place_of(old, tensors[name])
    student: nn.Module = deepcopy(model, memo)
    return student


def in_mode(model: nn.Module, training: bool) -> nn.Module:
    """`model`, in train or eval mode. (A `train` of its own, which freezes some of it, may return nothing.)"""
    model.train(training)
    return model


def aside(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters of `model`, and nothing else: for running it without leaving traces in it."""
    return rebuild(model, {n: t.detach() for n, t in named_tensors(model) if isinstance(t, nn.Parameter)})


def in_place_of(old: Tensor, new: Tensor) -> Tensor:
    """`new` as what `old` is: a parameter or a buffer."""
    # For most tensors their types tell, without the search that `isinstance` takes for a parameter.
    if type(old) is Tensor:  # a plain attribute may be trained, too
        return new.requires_grad_() if old.requires_grad and not new.requires_grad else new
    if type(new) is nn.Parameter:
        return new
    if type(old) is not nn.Parameter and not isinstance(old, nn.Parameter):
        return new
    return nn.Parameter(new, requires_grad=old.requires_grad)


#: From so many bytes on it is quicker to ask the system for fresh pages than to fill used ones with zeros.
_FRESH_PAGES = 2**18

#: Pages of our own, where the system tells these from pages shared with other processes.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.zeros`, but on the CPU without touching the memory: the pages come when they are read or written."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _FRESH_PAGES:
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, **_PRIVATE)
    return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(torch.Size(shape))


def skeleton(model: nn.Module, shape_of: Callable[[str, Tensor], torch.Size]) -> nn.Module:
    """A copy in evaluation mode with parameters of the given shapes, all zero, and buffers and plain attributes of the
    given shapes.

    It runs the user's own forward for its structure alone. Zeros cost no memory until they are written to. Buffers and
    plain attributes whose shape stays keep their values, since code may index with them.
    """
    zeros: dict[str, Tensor] = {}
    for name, t in named_tensors(model):
        shape = shape_of(name, t)
        # Code may ask a single number for its value.
        if shape != t.shape or (isinstance(t, nn.Parameter) and t.numel() != 1):
            zeros[name] = lazy_zeros(shape, t.dtype, t.device)
    return in_mode(rebuild(model, zeros), False)
