"""Zoos of models: what `coverage.py` widens. Each is a function from nothing to {family: name of a model}, and one from
such a name to the model, with random weights, and an input that it takes."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: Models whose images are larger than this are built for smaller ones.
_LARGE = 512

#: An input as `net2net` takes it: a tensor, a tuple of positional arguments, a dict of keyword arguments.
Example = Any


class UnavailableError(Exception):
    """A library has a model of this name, but not in a size, or with an input, that would do here."""


class Zoo(NamedTuple):
    """What it holds, and how one of it is made."""

    names: Callable[[], dict[str, str]]
    build: Callable[[str], tuple[nn.Module, Example]]


# -- torchvision -------------------------------------------------------------------------------------------------------


def _torchvision_names() -> dict[str, str]:
    """Every classifier."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return {name: name for name in names}


def _torchvision(name: str) -> tuple[nn.Module, Tensor]:
    import torchvision

    fixed = {"vit": 224, "maxvit": 224, "inception": 299}
    size = next((s for prefix, s in fixed.items() if name.startswith(prefix)), 64)
    extra: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name == "vit_h_14":
        extra["image_size"] = size = 56
    return torchvision.models.get_model(name, weights=None, **extra), torch.randn(2, 3, size, size)


# -- timm --------------------------------------------------------------------------------------------------------------


def _timm_names() -> dict[str, str]:
    """One model of each module of architectures that timm has: the smallest, by its name."""
    import timm

    chosen = {}
    for module in timm.list_modules():
        models = [m for m in timm.list_models(module=module) if not m.startswith("test_")]
        if models:
            chosen[module] = min(models, key=_size_in_name)
    return chosen


def _size_in_name(name: str) -> tuple[int, int, str]:
    order = ["atto", "femto", "pico", "nano", "xxt", "xxs", "micro", "tiny", "mini", "xs", "small"]
    words = name.split("_")
    rank = next((i for i, word in enumerate(order) if any(w.startswith(word) for w in words)), len(order))
    return rank, len(name), name


def _timm(name: str) -> tuple[nn.Module, Tensor]:
    import timm

    model = timm.create_model(name)
    if model.num_classes == 0:  # its features are its outputs, and would have to stay as they are
        model = timm.create_model(name, num_classes=1000)
    config = model.default_cfg
    shape = tuple(config["input_size"])
    if config.get("fixed_input_size") and shape[1] > _LARGE:
        # It takes images of one size alone, but which one can be chosen.
        shape = (shape[0], 256, 256)
        model = timm.create_model(name, img_size=256)
    elif not config.get("fixed_input_size"):
        smallest = config.get("min_input_size") or (shape[0], min(shape[1], 128), min(shape[2], 128))
        for smaller in (tuple(smallest), shape):
            try:
                with torch.no_grad():
                    model.eval()(torch.randn(1, *smaller))
                shape = smaller
                break
            except Exception:  # some models only run at their own size
                continue
    return model, torch.randn(2, *shape)


# -- transformers ------------------------------------------------------------------------------------------------------

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


def _transformers_names() -> dict[str, str]:
    """Every type of model that the library knows, but for those that do not become small."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return {name: name for name in sorted(MODEL_MAPPING_NAMES)}


def _transformers(name: str) -> tuple[nn.Module, Example]:
    """With a head for three classes where there is one, else what it is without a head."""
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        model = _small(name)
    except UnavailableError:
        raise
    except Exception as error:
        raise UnavailableError(f"it does not take the small configuration: {error}") from error
    for inputs in _transformers_inputs():
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


def _transformers_inputs() -> list[dict[str, Tensor]]:
    tokens, image = torch.randint(3, 99, (2, 8)), torch.randn(2, 3, 32, 32)
    return [
        {"input_ids": tokens}, {"input_ids": tokens, "decoder_input_ids": tokens[:, :6]}, {"pixel_values": image},
        {"input_values": torch.randn(2, 800)}, {"input_ids": tokens, "pixel_values": image},
    ]  # fmt: skip


# -- segmentation, medical images, detection ---------------------------------------------------------------------------


def _smp_names() -> dict[str, str]:
    """Each decoder, with three kinds of encoder."""
    decoders = ["Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN",
                "UPerNet", "Segformer"]  # fmt: skip
    encoders = ["resnet18", "efficientnet-b0", "mobilenet_v2"]
    return {f"{d}.{e}": f"{d}.{e}" for d in decoders for e in encoders}


def _smp(name: str) -> tuple[nn.Module, Tensor]:
    smp = importlib.import_module("segmentation_models_pytorch")
    decoder, encoder = name.split(".")
    return getattr(smp, decoder)(encoder, encoder_weights=None, classes=3), torch.randn(2, 3, 128, 128)


_MONAI: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "UNet": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2),
              "num_res_units": 2}, (1, 32, 32)),
    "BasicUNet": ({"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "features": (8, 8, 16, 32, 64, 8)},
                  (1, 32, 32, 32)),
    "AttentionUnet": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (8, 16, 32),
                       "strides": (2, 2)}, (1, 32, 32)),
    "SegResNet": ({"spatial_dims": 2, "init_filters": 8, "in_channels": 1, "out_channels": 2}, (1, 32, 32)),
    "DynUNet": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "kernel_size": (3, 3, 3), "strides": (1, 2, 2),
                 "upsample_kernel_size": (2, 2), "filters": (8, 16, 32)}, (1, 32, 32)),
    "VNet": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, (1, 32, 32)),
    "UNETR": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "img_size": 32, "feature_size": 8,
               "hidden_size": 24, "mlp_dim": 32, "num_heads": 4}, (1, 32, 32)),
    "SwinUNETR": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "feature_size": 12}, (1, 64, 64)),
    "HighResNet": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, (1, 32, 32)),
    "FlexibleUNet": ({"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"}, (3, 64, 64)),
    "AutoEncoder": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (8, 16), "strides": (2, 2)},
                    (1, 32, 32)),
    "Generator": ({"latent_shape": (16,), "start_shape": (8, 4, 4), "channels": (8, 4, 1), "strides": (2, 2, 1)},
                  (16,)),
    "Discriminator": ({"in_shape": (1, 32, 32), "channels": (8, 16), "strides": (2, 2)}, (1, 32, 32)),
    "DenseNet121": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 3}, (1, 64, 64)),
    "SENet154": ({"spatial_dims": 2, "in_channels": 1, "num_classes": 3}, (1, 64, 64)),
    "EfficientNetBN": ({"model_name": "efficientnet-b0", "pretrained": False, "spatial_dims": 2, "in_channels": 1,
                        "num_classes": 3},
                       (1, 64, 64)),
    "ViT": ({"in_channels": 1, "img_size": 32, "patch_size": 8, "spatial_dims": 2, "hidden_size": 24, "mlp_dim": 32,
             "num_layers": 2, "num_heads": 4, "classification": True}, (1, 32, 32)),
}  # fmt: skip


def _monai(name: str) -> tuple[nn.Module, Tensor]:
    nets = importlib.import_module("monai.networks.nets")
    options, shape = _MONAI[name]
    return getattr(nets, name)(**options), torch.randn(2, *shape)


def _ultralytics_names() -> dict[str, str]:
    names = ["yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-cls", "yolov8n-seg", "yolov8n-pose", "yolov9t",
             "yolov10n", "yolo11n", "yolo11n-cls", "yolo11n-seg", "yolo12n"]  # fmt: skip
    return {name: name for name in names}


def _ultralytics(name: str) -> tuple[nn.Module, Tensor]:
    from ultralytics import YOLO

    return YOLO(f"{name}.yaml").model.float(), torch.rand(2, 3, 64, 64)


# -- audio -------------------------------------------------------------------------------------------------------------

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


def _audio_names() -> dict[str, str]:
    return {name: name for name in [*_AUDIO, "Conformer", "EncodecModel"]}


def _audio(name: str) -> tuple[nn.Module, Example]:
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


ZOOS: dict[str, Zoo] = {
    "torchvision": Zoo(_torchvision_names, _torchvision),
    "timm": Zoo(_timm_names, _timm),
    "transformers": Zoo(_transformers_names, _transformers),
    "segmentation_models_pytorch": Zoo(_smp_names, _smp),
    "monai": Zoo(lambda: {name: name for name in _MONAI}, _monai),
    "ultralytics": Zoo(_ultralytics_names, _ultralytics),
    "audio": Zoo(_audio_names, _audio),
}


def build(library: str, name: str) -> tuple[nn.Module, Example]:
    """A model, and an input for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ZOOS[library].build(name)
