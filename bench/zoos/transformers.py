"""Transformers of all kinds: the library of that name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoos.kinds import Example, UnavailableError

#: A small configuration: each kind of model takes of it what it knows.
_SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99,
    "max_position_embeddings": 64, "num_key_value_heads": 2, "head_dim": 8, "use_cache": False, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "d_kv": 8,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "d_ff": 48, "num_layers": 2, "num_heads": 4, "image_size": 32, "patch_size": 8, "num_experts": 4,
    "num_local_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2, "embedding_size": 16,
    "conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}  # fmt: skip

#: More parameters than this has none that took the small configuration.
_SMALLEST = 4_000_000


def names() -> dict[str, str]:
    """Every type of model that the library knows, but for those that do not become small."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return {name: name for name in sorted(MODEL_MAPPING_NAMES)}


def build(name: str) -> tuple[nn.Module, Example]:
    """With a head for three classes where there is one, else what it is without a head."""
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        model = _small(name)
    except UnavailableError:
        raise
    except Exception as error:
        raise UnavailableError(f"it does not take the small configuration: {error}") from error
    for inputs in _inputs():
        try:
            with torch.no_grad():
                model(**inputs)
            return model, inputs
        except Exception as error:
            last = error
    raise UnavailableError(f"no input was found that it takes: {last}")


def _small(name: str) -> nn.Module:
    import transformers

    usual = transformers.AutoConfig.for_model(name)
    small = {k: v for k, v in _SMALL.items() if hasattr(usual, k)}
    for k in ("patch_size", "image_size"):
        if k in small and not isinstance(getattr(usual, k), int):
            del small[k]
    config = transformers.AutoConfig.for_model(name, **small)
    with torch.device("meta"):
        size = sum(p.numel() for p in transformers.AutoModel.from_config(config).parameters())
    if size > _SMALLEST:
        raise UnavailableError(f"no small configuration: {size} parameters")
    # The usual one is for float32 alone.
    config._experts_implementation = "eager"
    model: nn.Module = transformers.AutoModel.from_config(config).eval()
    return model


def _inputs() -> list[dict[str, Tensor]]:
    tokens, image = torch.randint(3, 99, (2, 8)), torch.randn(2, 3, 32, 32)
    return [
        {"input_ids": tokens}, {"input_ids": tokens, "decoder_input_ids": tokens[:, :6]}, {"pixel_values": image},
        {"input_values": torch.randn(2, 800)}, {"input_ids": tokens, "pixel_values": image},
    ]  # fmt: skip
