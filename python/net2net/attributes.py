"""Attributes that modules keep beside their parameters, brought in line with grown parameters."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
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
    weight = _tensor(module)
    if weight is None:
        return
    first, second = weight.shape[:2]
    groups = module.groups
    if groups > 1:
        # Groups are replicated as a whole: as wide as before, there are more of them.
        groups = groups * first // (module.in_channels if module.transposed else module.out_channels)
    out, into = (second * groups, first) if module.transposed else (first, second * groups)
    if out == module.out_channels and into == module.in_channels:
        return
    _set(module, "groups", groups)
    _set(module, "out_channels", out)
    _set(module, "in_channels", into)


def _update_linear(module: nn.Linear) -> None:
    weight = _tensor(module)
    if weight is not None and weight.dim() == 2:
        for name, size in zip(("out_features", "in_features"), weight.shape, strict=True):
            _set(module, name, size)


def _update_norm(module: _NormBase) -> None:
    for t in (_tensor(module, "running_mean"), _tensor(module)):
        if t is not None:
            _set(module, "num_features", t.shape[0])
            return


def _update_prelu(module: nn.PReLU) -> None:
    if (weight := _tensor(module)) is not None:
        _set(module, "num_parameters", weight.shape[0])


def _update_layer_norm(module: Any) -> None:
    if (weight := _tensor(module)) is not None:
        _set(module, "normalized_shape", tuple(weight.shape))


def _update_group_norm(module: nn.GroupNorm) -> None:
    weight = _tensor(module)
    if weight is not None and (channels := weight.shape[0]) != module.num_channels:
        if module.num_groups > 1:  # groups are replicated as a whole
            _set(module, "num_groups", module.num_groups * channels // module.num_channels)
        _set(module, "num_channels", channels)


def _update_attention(module: nn.MultiheadAttention) -> None:
    weight = _tensor(module.__dict__["_modules"]["out_proj"])
    if weight is not None and (before := module.embed_dim) != (after := weight.shape[0]):
        for name in ("kdim", "vdim") if module._qkv_same_embed_dim else ():
            _set(module, name, after)
        _set(module, "num_heads", module.num_heads * after // before)
        _set(module, "embed_dim", after)


def _update_transformer(module: nn.Transformer) -> None:
    attention = next((m for m in module.modules() if isinstance(m, nn.MultiheadAttention)), None)
    if attention is not None:
        _update_attention(attention)
        _set(module, "d_model", attention.embed_dim)
        _set(module, "nhead", attention.num_heads)


def _update_embedding(module: Any) -> None:
    if (weight := _tensor(module)) is not None:
        for name, size in zip(("num_embeddings", "embedding_dim"), weight.shape, strict=True):
            _set(module, name, size)


def _tensor(module: nn.Module, name: str = "weight") -> Tensor | None:
    """A parameter or buffer. A weight that is computed is neither: it is as wide as what weight normalisation computes
    it from, or as it was. (It is not computed here, which may change what it is computed from: spectral normalisation,
    in train mode.)"""
    held = module.__dict__
    found = held["_parameters"].get(name)
    if found is None:
        found = held["_buffers"].get(name)
    if found is None and name == "weight":
        found = held["_parameters"].get("weight_v")
        made = held["_modules"].get("parametrizations")
        if made is not None and name in made and type(made[name][0]).__name__ == "_WeightNorm":
            found = made[name].original1
    return found


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
    nn.Transformer: _update_transformer,
    nn.Embedding: _update_embedding,
    nn.EmbeddingBag: _update_embedding,
}
