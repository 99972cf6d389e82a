"""sites: where in a network activations are used, and what stands around them.

A new layer is made of a linear part, perhaps batch normalisation, and an activation, and goes where the network has
such a layer already. A site is one use of an activation in the user's forward, however it was written: as a module, a
function, or a reused module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from net2net.activations import Activation, recognise
from net2net.running import Inputs, call, computed
from net2net.skeleton import check_model, own_random_state, skeleton


@dataclass
class Site:
    """One use of an activation.

    Attributes:
        activation: None if no layer can be made with it.
        operation: the ATen operation's name.
        after: modules, innermost first, that are run once and whose output is the activation's output: an identity
            layer may be appended to any of them.
        before: modules, innermost first, that are run once and whose output goes into the activation and nowhere else:
            the activation and an identity layer may be appended to any of them.
        shape: of the activation's input.
        layer: the name of the last convolution or linear layer run before.
        norm: the name of the batch normalisation run after that layer, if any.
        once: that layer is run once.
    """

    activation: Activation | None
    operation: str
    after: list[str]
    before: list[str]
    shape: torch.Size
    layer: str | None
    norm: str | None
    once: bool

    @property
    def names(self) -> list[str]:
        return [*self.after, *self.before]


@dataclass(eq=False)
class _Value:
    """A tensor as some modules returned it, until it is overwritten."""

    alive: StorageWeakRef
    modules: list[str] = field(default_factory=list)
    uses: int = 0
    site: _Open | None = None  # the activation that made it


@dataclass(eq=False)
class _Open:
    """A site while the forward still runs."""

    activation: Activation | None
    operation: str
    source: _Value | None
    shape: torch.Size
    layer: str | None
    norm: str | None
    result: _Value | None = None


Key = tuple[int, int | torch.SymInt, torch.Size, tuple[int, ...]]


def _key(t: Tensor) -> Key:
    return t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride()


class _Watch(TorchDispatchMode):
    """Follows which module's output each activation takes, and which modules return what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[Key, _Value] = {}
        self.opened: list[_Open] = []
        self.layer: str | None = None
        self.norm: str | None = None

    def value(self, t: Tensor) -> _Value | None:
        value = self.values.get(_key(t))
        return value if value is not None and not value.alive.expired() else None

    def produced(self, t: Tensor) -> _Value:
        value = _Value(StorageWeakRef(t.untyped_storage()))
        self.values[_key(t)] = value
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        for t in inputs:
            if (value := self.value(t)) is not None:
                value.uses += 1
        opened = self._open(func, args, kwargs)
        out = computed(func, args, kwargs)
        written = {t.untyped_storage()._cdata for t in _written(func, args, kwargs)}
        if written:
            self.values = {k: v for k, v in self.values.items() if k[0] not in written}
        result = out[0] if isinstance(out, tuple | list) and out else out  # the largest, and where it was
        if opened is not None and isinstance(result, Tensor):
            opened.result = self.produced(result)
            opened.result.site = opened
            self.opened.append(opened)
        return out

    def _open(self, func: Any, args: Any, kwargs: Any) -> _Open | None:
        recognised = recognise(func, args, kwargs)
        if recognised is None:
            return None
        name, activation = recognised
        x = args[0]
        return _Open(activation, name, self.value(x), x.shape, self.layer, self.norm)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    written = []
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return written + [t for t in tree_leaves(kwargs.get("out")) if isinstance(t, Tensor)]


def find_sites(model: nn.Module, example_inputs: Inputs) -> list[Site]:
    """All uses of activations in the forward of `model`, in order. `model` is not touched; an empty copy of it is
    run."""
    check_model(model)
    copy = skeleton(model, lambda _name, t: t.shape)
    watch = _Watch()
    calls: dict[str, int] = {}
    for name, module in copy.named_modules():

        def leave(module: nn.Module, _args: Any, out: Any, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(module, _ConvNd | nn.Linear):
                watch.layer, watch.norm = name, None
            elif isinstance(module, _BatchNorm):
                watch.norm = name
            # In eval mode dropout hands on the very tensor that it is given; a layer behind it would not stand next to
            # the activation in train mode.
            if isinstance(out, Tensor) and not isinstance(module, _DropoutNd):
                (watch.value(out) or watch.produced(out)).modules.append(name)

        module.register_forward_hook(leave)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), own_random_state(copy), watch:
            out = call(copy, example_inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    for t in tree_leaves(out):
        if isinstance(t, Tensor) and (value := watch.value(t)) is not None:
            value.uses += 1
    return [_close(site, calls) for site in watch.opened]


def _close(site: _Open, calls: dict[str, int]) -> Site:
    def once(value: _Value | None) -> list[str]:
        # The root module cannot be wrapped: the student is of the user's own class.
        return [m for m in value.modules if m and calls[m] == 1] if value is not None else []

    exclusive = site.source is not None and site.source.uses == 1
    before = once(site.source) if exclusive else []
    single = site.layer is not None and calls[site.layer] == 1
    return Site(site.activation, site.operation, once(site.result), before, site.shape, site.layer, site.norm, single)
