"""Segmentation, medical images, detection."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from zoos.kinds import Example

#: Detectors scale their images to a size of their own, unless told another.
_DETECTION: dict[str, Any] = {"weights_backbone": None, "min_size": 96, "max_size": 96}

_DENSE: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "segmentation.fcn_resnet50": ({"weights_backbone": None}, (2, 3, 64, 64)),
    "segmentation.deeplabv3_resnet50": ({"weights_backbone": None}, (2, 3, 64, 64)),
    "segmentation.deeplabv3_mobilenet_v3_large": ({"weights_backbone": None}, (2, 3, 64, 64)),
    "segmentation.lraspp_mobilenet_v3_large": ({"weights_backbone": None}, (2, 3, 64, 64)),
    "video.r3d_18": ({}, (1, 3, 8, 48, 48)),
    "video.mc3_18": ({}, (1, 3, 8, 48, 48)),
    "video.r2plus1d_18": ({}, (1, 3, 8, 48, 48)),
    "video.s3d": ({}, (1, 3, 16, 224, 224)),
    "video.mvit_v1_b": ({}, (1, 3, 16, 224, 224)),
    "video.mvit_v2_s": ({}, (1, 3, 16, 224, 224)),
    "video.swin3d_t": ({}, (1, 3, 8, 64, 64)),
    "detection.retinanet_resnet50_fpn": (_DETECTION, (1, 3, 96, 96)),
    "detection.retinanet_resnet50_fpn_v2": (_DETECTION, (1, 3, 96, 96)),
    "detection.fcos_resnet50_fpn": (_DETECTION, (1, 3, 96, 96)),
    "detection.ssd300_vgg16": ({"weights_backbone": None}, (1, 3, 300, 300)),
    "detection.ssdlite320_mobilenet_v3_large": ({"weights_backbone": None}, (1, 3, 320, 320)),
    "detection.fasterrcnn_resnet50_fpn": (_DETECTION, (1, 3, 96, 96)),
    "detection.fasterrcnn_mobilenet_v3_large_fpn": (_DETECTION, (1, 3, 96, 96)),
    "detection.maskrcnn_resnet50_fpn": (_DETECTION, (1, 3, 96, 96)),
    "detection.keypointrcnn_resnet50_fpn": (_DETECTION, (1, 3, 96, 96)),
    "optical_flow.raft_small": ({}, (1, 3, 128, 128)),
    "optical_flow.raft_large": ({}, (1, 3, 128, 128)),
}  # fmt: skip


def torchvision_names() -> dict[str, str]:
    """Segmentation, video, detection and optical flow."""
    return {name: name for name in _DENSE}


def torchvision(name: str) -> tuple[nn.Module, Example]:
    """Detectors take lists of images, and optical flow takes two."""
    kind, model = name.split(".")
    options, shape = _DENSE[name]
    models = importlib.import_module(f"torchvision.models.{kind}")
    made = getattr(models, model)(weights=None, **options)
    if kind == "detection":
        return made, ([torch.rand(shape[1:])],)
    return made, (torch.randn(shape), torch.randn(shape)) if kind == "optical_flow" else torch.randn(shape)


def smp_names() -> dict[str, str]:
    """Each decoder, with three kinds of encoder."""
    decoders = ["Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN",
                "UPerNet", "Segformer"]  # fmt: skip
    encoders = ["resnet18", "efficientnet-b0", "mobilenet_v2"]
    return {f"{d}.{e}": f"{d}.{e}" for d in decoders for e in encoders}


def smp(name: str) -> tuple[nn.Module, Tensor]:
    smp = importlib.import_module("segmentation_models_pytorch")
    decoder, encoder = name.split(".")
    return getattr(smp, decoder)(encoder, encoder_weights=None, classes=3), torch.randn(2, 3, 128, 128)


MONAI: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
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


def monai(name: str) -> tuple[nn.Module, Tensor]:
    nets = importlib.import_module("monai.networks.nets")
    options, shape = MONAI[name]
    return getattr(nets, name)(**options), torch.randn(2, *shape)


def ultralytics_names() -> dict[str, str]:
    names = ["yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-cls", "yolov8n-seg", "yolov8n-pose", "yolov9t",
             "yolov10n", "yolo11n", "yolo11n-cls", "yolo11n-seg", "yolo12n"]  # fmt: skip
    return {name: name for name in names}


def ultralytics(name: str) -> tuple[nn.Module, Tensor]:
    from ultralytics import YOLO

    return YOLO(f"{name}.yaml").model.float(), torch.rand(2, 3, 64, 64)
