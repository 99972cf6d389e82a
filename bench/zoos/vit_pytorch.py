"""Vision transformers of many kinds: the library `vit_pytorch`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import torch
from torch import nn

from zoos.kinds import Example, UnavailableError

#: What a small one is asked for; each kind takes of it what it knows.
_SMALL: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 24, "depth": 2, "heads": 3, "mlp_dim": 40,
    "dim_head": 8, "channels": 3, "cls_depth": 1, "num_register_tokens": 2, "seq_len": 32, "frames": 4,
    "frame_patch_size": 2, "image_patch_size": 8, "spatial_depth": 1, "temporal_depth": 1,
    "max_tokens_per_depth": (4, 3),
    "embedding_dim": 24, "num_layers": 2, "num_heads": 3, "window_size": 4, "num_frames": 4, "max_seq_len": 64,
    "mlp_mult": 2, "num_hierarchies": 2, "block_repeats": (1, 1), "reduction_factor": (2, 2), "freq_patch_size": 8,
    "num_residual_streams": 2, "num_slots": 4, "sm_dim": 24, "lg_dim": 32, "sm_patch_size": 8, "sm_enc_depth": 1,
    "sm_enc_heads": 3, "sm_enc_mlp_dim": 40, "lg_patch_size": 16, "lg_enc_depth": 1, "lg_enc_heads": 4,
    "lg_enc_mlp_dim": 40, "lg_enc_dim_head": 8, "cross_attn_depth": 1, "cross_attn_heads": 3, "depths": (1, 1),
    "ndim": 2, "input_shape": (32, 32), "num_hyperconn_streams": 2, "local_patch_size": 4, "global_k": 2,
}  # fmt: skip


def names() -> dict[str, str]:
    """The class of each file that takes an image and is no wrapper around another network."""
    library = importlib.import_module("vit_pytorch")
    found = {}
    for file in pkgutil.iter_modules(library.__path__):
        try:
            module = importlib.import_module(f"vit_pytorch.{file.name}")
        except Exception:  # some need other libraries
            continue
        kinds = [
            k for k, v in vars(module).items()
            if inspect.isclass(v) and issubclass(v, nn.Module) and v.__module__ == module.__name__
        ]  # fmt: skip
        if kinds:
            found[file.name] = f"{file.name}.{kinds[-1]}"
    return found


def build(name: str) -> tuple[nn.Module, Example]:
    file, kind = name.split(".")
    made = getattr(importlib.import_module(f"vit_pytorch.{file}"), kind)
    known = inspect.signature(made).parameters
    try:
        model: nn.Module = made(**{k: v for k, v in _SMALL.items() if k in known}).eval()
    except Exception as error:
        raise UnavailableError(f"it does not take the small configuration: {error}") from error
    inputs = [(2, 3, 32, 32), (2, 3, 4, 32, 32), (2, 3, 32), (2, 3, 64, 64)]
    for shape in inputs:
        try:
            with torch.no_grad():
                model(torch.randn(shape))
            return model, torch.randn(shape)
        except Exception as error:
            last = error
    raise UnavailableError(f"no input was found that it takes: {last}")
