"""Networks of diffusion models: the library `diffusers`."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from zoos.kinds import Example


def _image(channels: int = 4, size: int = 16) -> Tensor:
    return torch.randn(2, channels, size, size)


_TIME = torch.tensor([3, 7])
_TEXT = torch.randn(2, 5, 24)
_UNET: dict[str, Any] = {"sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
                         "block_out_channels": (16, 32), "norm_num_groups": 4, "attention_head_dim": 8}  # fmt: skip
_CROSS: dict[str, Any] = {**_UNET, "cross_attention_dim": 24}
_VAE: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16), "norm_num_groups": 4,
                        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
                        "latent_channels": 4, "layers_per_block": 1}  # fmt: skip
_TOKENS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}

#: The options of a small one, and what it is given.
_MODELS: dict[str, tuple[dict[str, Any], Example]] = {
    "UNet2DModel": ({**_UNET, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                     "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}, (_image(), _TIME)),
    "UNet2DConditionModel": ({**_CROSS, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                              "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}, (_image(), _TIME, _TEXT)),
    "ControlNetModel": ({"in_channels": 4, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 4,
                         "attention_head_dim": 8, "cross_attention_dim": 24,
                         "conditioning_embedding_out_channels": (8, 16),
                         "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")},
                        {"sample": _image(), "timestep": _TIME, "encoder_hidden_states": _TEXT,
                         "controlnet_cond": _image(3, 32)}),
    "UNet3DConditionModel": ({"sample_size": 16, "layers_per_block": 1, "block_out_channels": (16, 32),
                              "norm_num_groups": 4, "attention_head_dim": 8, "cross_attention_dim": 24,
                              "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
                              "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
                             (torch.randn(1, 4, 3, 16, 16), torch.tensor([3]), _TEXT[:1])),
    "UNet1DModel": ({"block_out_channels": (8, 16), "in_channels": 6, "out_channels": 6, "act_fn": "swish",
                     "time_embedding_type": "positional", "use_timestep_embedding": True, "flip_sin_to_cos": False,
                     "freq_shift": 1.0, "out_block_type": "OutConv1DBlock", "mid_block_type": "MidResTemporalBlock1D",
                     "down_block_types": ("DownResnetBlock1D",) * 2, "up_block_types": ("UpResnetBlock1D",)},
                    (torch.randn(2, 6, 16), _TIME)),
    "AutoencoderKL": (_VAE, _image(3, 32)),
    "AsymmetricAutoencoderKL": ({"down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4,
                                 "up_block_types": ("UpDecoderBlock2D",) * 2, "down_block_out_channels": (8, 16),
                                 "up_block_out_channels": (8, 16), "layers_per_down_block": 1,
                                 "layers_per_up_block": 1}, _image(3, 32)),
    "VQModel": ({"block_out_channels": (8, 16), "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
                 "up_block_types": ("UpDecoderBlock2D",) * 2}, _image(3, 32)),
    "AutoencoderKLTemporalDecoder": ({"block_out_channels": (32, 32), "layers_per_block": 1,
                                      "down_block_types": ("DownEncoderBlock2D",) * 2},
                                     {"sample": _image(3, 32), "num_frames": 2}),
    "AutoencoderOobleck": ({"encoder_hidden_size": 16, "downsampling_ratios": [2, 4], "channel_multiples": [1, 2],
                            "decoder_channels": 8, "decoder_input_channels": 8, "audio_channels": 1},
                           torch.randn(2, 1, 64)),
    "AutoencoderDC": ({"latent_channels": 4, "encoder_block_out_channels": (8, 16), "attention_head_dim": 8,
                       "decoder_block_out_channels": (8, 16), "encoder_layers_per_block": (1, 1),
                       "decoder_layers_per_block": (1, 1), "encoder_qkv_multiscales": ((), (5,)),
                       "decoder_qkv_multiscales": ((), (5,)), "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
                       "decoder_block_types": ("ResBlock", "EfficientViTBlock")}, _image(3, 32)),
    "DiTTransformer2DModel": ({**_TOKENS, "in_channels": 4, "out_channels": 8, "sample_size": 16,
                               "num_embeds_ada_norm": 10},
                              {"hidden_states": _image(), "timestep": _TIME, "class_labels": torch.tensor([1, 2])}),
    "PixArtTransformer2DModel": ({**_TOKENS, "in_channels": 4, "out_channels": 8, "sample_size": 16,
                                  "cross_attention_dim": 32, "caption_channels": 24},
                                 {"hidden_states": _image(), "encoder_hidden_states": _TEXT, "timestep": _TIME,
                                  "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}),
    "SD3Transformer2DModel": ({**_TOKENS, "sample_size": 16, "in_channels": 4, "out_channels": 4, "patch_size": 2,
                               "joint_attention_dim": 24, "caption_projection_dim": 32, "pooled_projection_dim": 20,
                               "pos_embed_max_size": 16},
                              {"hidden_states": _image(), "encoder_hidden_states": _TEXT,
                               "pooled_projections": torch.randn(2, 20), "timestep": _TIME}),
    "FluxTransformer2DModel": ({"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
                                "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 20,
                                "axes_dims_rope": (4, 4, 8), "guidance_embeds": True},
                               {"hidden_states": torch.randn(2, 16, 4), "encoder_hidden_states": _TEXT,
                                "pooled_projections": torch.randn(2, 20), "timestep": torch.tensor([0.3, 0.7]),
                                "img_ids": torch.rand(16, 3), "txt_ids": torch.zeros(5, 3),
                                "guidance": torch.tensor([1.0, 2.0])}),
    "UVit2DModel": ({"hidden_size": 32, "cond_embed_dim": 24, "encoder_hidden_size": 24, "num_hidden_layers": 2,
                     "num_attention_heads": 2, "intermediate_size": 48, "in_channels": 32, "block_out_channels": 32,
                     "micro_cond_encode_dim": 8, "micro_cond_embed_dim": 40, "vocab_size": 50, "codebook_size": 40},
                    {"input_ids": torch.randint(0, 40, (2, 8, 8)), "encoder_hidden_states": _TEXT,
                     "pooled_text_emb": torch.randn(2, 24), "micro_conds": torch.rand(2, 5)}),
    "PriorTransformer": ({**_TOKENS, "embedding_dim": 24, "num_embeddings": 5, "additional_embeddings": 4},
                         {"hidden_states": torch.randn(2, 24), "timestep": _TIME,
                          "proj_embedding": torch.randn(2, 24), "encoder_hidden_states": _TEXT}),
    "AuraFlowTransformer2DModel": ({"sample_size": 16, "in_channels": 4, "num_mmdit_layers": 1,
                                    "num_single_dit_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
                                    "joint_attention_dim": 24, "caption_projection_dim": 32, "out_channels": 4,
                                    "pos_embed_max_size": 64},
                                   {"hidden_states": _image(), "encoder_hidden_states": _TEXT,
                                    "timestep": torch.tensor([0.3, 0.7])}),
    "SanaTransformer2DModel": ({**_TOKENS, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2,
                                "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 24,
                                "sample_size": 16},
                               {"hidden_states": _image(), "encoder_hidden_states": _TEXT, "timestep": _TIME}),
    "CogVideoXTransformer3DModel": ({**_TOKENS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 24,
                                     "text_embed_dim": 24, "sample_width": 16, "sample_height": 16, "sample_frames": 5,
                                     "max_text_seq_length": 5},
                                    {"hidden_states": torch.randn(2, 2, 4, 16, 16), "encoder_hidden_states": _TEXT,
                                     "timestep": _TIME}),
    "LTXVideoTransformer3DModel": ({**_TOKENS, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32,
                                    "caption_channels": 24},
                                   {"hidden_states": torch.randn(2, 32, 4), "encoder_hidden_states": _TEXT,
                                    "timestep": _TIME, "encoder_attention_mask": torch.ones(2, 5), "num_frames": 2,
                                    "height": 4, "width": 4}),
    "WanTransformer3DModel": ({**_TOKENS, "in_channels": 4, "out_channels": 4, "text_dim": 24, "freq_dim": 16,
                               "ffn_dim": 48, "cross_attn_norm": True},
                              {"hidden_states": torch.randn(2, 4, 2, 16, 16), "timestep": _TIME,
                               "encoder_hidden_states": _TEXT}),
    "T2IAdapter": ({"in_channels": 3, "channels": [8, 16], "num_res_blocks": 1, "downscale_factor": 4},
                   _image(3, 32)),
    "StableCascadeUNet": ({"in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 16, "patch_size": 1,
                           "conditioning_dim": 16, "block_out_channels": (16, 32), "num_attention_heads": (0, 2),
                           "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1),
                           "down_blocks_repeat_mappers": (1, 1), "up_blocks_repeat_mappers": (1, 1),
                           "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                                                     ("SDCascadeResBlock", "SDCascadeTimestepBlock",
                                                      "SDCascadeAttnBlock")),
                           "clip_text_in_channels": 24, "clip_text_pooled_in_channels": 20,
                           "clip_image_in_channels": 20, "clip_seq": 2, "self_attn": True,
                           "switch_level": [False], "dropout": (0.0, 0.0)},
                          {"sample": _image(), "timestep_ratio": torch.tensor([0.3, 0.7]),
                           "clip_text_pooled": torch.randn(2, 1, 20), "clip_text": _TEXT,
                           "clip_img": torch.randn(2, 1, 20)}),
}  # fmt: skip


def names() -> dict[str, str]:
    return {name: name for name in _MODELS}


def build(name: str) -> tuple[nn.Module, Example]:
    options, example = _MODELS[name]
    return getattr(importlib.import_module("diffusers"), name)(**options), example
