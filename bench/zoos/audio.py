"""Audio."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from zoos.kinds import Example

_AUDIO: dict[str, tuple[dict[str, Any], tuple[tuple[int, ...], ...]]] = {
    "ConvTasNet": ({"num_sources": 2, "enc_kernel_size": 16, "enc_num_feats": 16, "msk_num_feats": 8,
                    "msk_num_hidden_feats": 16, "msk_num_layers": 2, "msk_num_stacks": 2}, ((1, 400),)),
    "Wav2Letter": ({"num_classes": 5, "input_type": "waveform"}, ((1, 1600),)),
    "WaveRNN": ({"upsample_scales": [2, 2, 3], "n_classes": 16, "hop_length": 12, "n_res_block": 2, "n_rnn": 16,
                 "n_fc": 16, "n_freq": 8, "n_hidden": 16, "n_output": 16}, ((1, 60), (1, 8, 9))),
    "DeepSpeech": ({"n_feature": 16, "n_hidden": 32, "n_class": 5}, ((1, 10, 16),)),
    "wav2vec2_model": ({"extractor_mode": "group_norm", "extractor_conv_layer_config": [(16, 10, 5), (16, 3, 2)],
                        "extractor_conv_bias": False, "encoder_embed_dim": 32, "encoder_projection_dropout": 0.0,
                        "encoder_pos_conv_kernel": 9, "encoder_pos_conv_groups": 4, "encoder_num_layers": 2,
                        "encoder_num_heads": 4, "encoder_attention_dropout": 0.0, "encoder_ff_interm_features": 48,
                        "encoder_ff_interm_dropout": 0.0, "encoder_dropout": 0.0, "encoder_layer_norm_first": False,
                        "encoder_layer_drop": 0.0, "aux_num_out": 5}, ((1600,),)),
}  # fmt: skip


def names() -> dict[str, str]:
    return {name: name for name in [*_AUDIO, "Conformer", "EncodecModel"]}


def build(name: str) -> tuple[nn.Module, Example]:
    """torchaudio, and Encodec's encoder and decoder without what quantises between them."""
    if name == "EncodecModel":
        modules = importlib.import_module("encodec.modules")
        options = {"dimension": 16, "n_filters": 4, "ratios": [4, 2], "lstm": 1}
        net = nn.Sequential(modules.SEANetEncoder(channels=1, **options), modules.SEANetDecoder(channels=1, **options))
        return net, torch.randn(2, 1, 320)
    models = importlib.import_module("torchaudio.models")
    if name == "Conformer":
        net = models.Conformer(input_dim=16, num_heads=4, ffn_dim=32, num_layers=2, depthwise_conv_kernel_size=7)
        return net, (torch.randn(2, 12, 16), torch.tensor([12, 9]))
    options, shapes = _AUDIO[name]
    inputs = tuple(torch.randn(2, *shape) for shape in shapes)
    return getattr(models, name)(**options), inputs
