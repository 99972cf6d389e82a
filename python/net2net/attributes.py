"""Attributes that modules keep beside their parameters, brought in line with grown parameters."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from net2net.skeleton import each_module


def update(model: nn.Module) -> None:
    """Sets `out_channels`, `num_features` and the like from the shapes of the parameters, for torch's own modules."""
    updaters: dict[type, Callable[[Any], None] | None] = {}
    for module in each_module(model):
        kind = type(module)
        if kind not in updaters:
            updaters[kind] = next((update for base, update in _UPDATERS.items() if issubclass(kind, base)), None)
        if (updater := updaters[kind]) is not None:
            updater(module)


def _update_convolution(module: _ConvNd) -> None:
    first, second = _own(module, "_parameters", "weight").shape[:2]
    groups = module.groups
    out, into = (second * groups, first) if module.transposed else (first, second * groups)
    if out == module.out_channels and into == module.in_channels:
        return
    if groups > 1 and not module.transposed:
        # Groups are replicated as a whole: as wide as before, there are more of them.
        groups = groups * out // module.out_channels
        into = second * groups
        _set(module, "groups", groups)
    _set(module, "out_channels", out)
    _set(module, "in_channels", into)


def _update_linear(module: nn.Linear) -> None:
    if module.weight.dim() == 2:
        for name, size in zip(("out_features", "in_features"), module.weight.shape, strict=True):
            _set(module, name, size)


def _update_norm(module: _NormBase) -> None:
    for t in (_own(module, "_buffers", "running_mean"), _own(module, "_parameters", "weight")):
        if t is not None:
            _set(module, "num_features", t.shape[0])
            return


def _update_prelu(module: nn.PReLU) -> None:
    _set(module, "num_parameters", module.weight.shape[0])


def _update_layer_norm(module: Any) -> None:
    if (weight := _own(module, "_parameters", "weight")) is not None:
        _set(module, "normalized_shape", tuple(weight.shape))


def _update_group_norm(module: nn.GroupNorm) -> None:
    weight = _own(module, "_parameters", "weight")
    if weight is not None and (channels := weight.shape[0]) != module.num_channels:
        if module.num_groups > 1:  # groups are replicated as a whole
            _set(module, "num_groups", module.num_groups * channels // module.num_channels)
        _set(module, "num_channels", channels)


def _update_attention(module: nn.MultiheadAttention) -> None:
    before, after = module.embed_dim, _own(module, "_modules", "out_proj").weight.shape[0]
    if before != after:
        for name in ("kdim", "vdim") if module._qkv_same_embed_dim else ():
            _set(module, name, after)
        _set(module, "num_heads", module.num_heads * after // before)
        _set(module, "embed_dim", after)


def _update_embedding(module: Any) -> None:
    for name, size in zip(("num_embeddings", "embedding_dim"), module.weight.shape, strict=True):
        _set(module, name, size)


def _own(module: nn.Module, kind: str, name: str) -> Any:
    """`getattr`, without the search of `nn.Module.__getattr__` where the tensor is where it usually is."""
    tensors = module.__dict__[kind]
    return tensors[name] if name in tensors else getattr(module, name)


def _set(module: nn.Module, name: str, value: int | tuple[int, ...]) -> None:
    """`setattr`, without the search of `nn.Module.__setattr__` for parameters, buffers and children of that name."""
    if type(module).__setattr__ is nn.Module.__setattr__:
        object.__setattr__(module, name, value)
    else:
        setattr(module, name, value)


_UPDATERS: dict[type[nn.Module], Callable[[Any], None]] = {
    _ConvNd: _update_convolution,
    nn.Linear: _update_linear,
    _NormBase: _update_norm,
    nn.PReLU: _update_prelu,
    nn.LayerNorm: _update_layer_norm,
    nn.RMSNorm: _update_layer_norm,
    nn.GroupNorm: _update_group_norm,
    nn.MultiheadAttention: _update_attention,
    nn.Embedding: _update_embedding,
    nn.EmbeddingBag: _update_embedding,
}
