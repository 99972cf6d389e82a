"""Classifiers of images: torchvision, timm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: Models whose images are larger than this are built for smaller ones.
_LARGE = 512


def torchvision_names() -> dict[str, str]:
    """Every classifier."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return {name: name for name in names}


def torchvision(name: str) -> tuple[nn.Module, Tensor]:
    import torchvision

    fixed = {"vit": 224, "maxvit": 224, "inception": 299}
    size = next((s for prefix, s in fixed.items() if name.startswith(prefix)), 64)
    extra: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name == "vit_h_14":
        extra["image_size"] = size = 56
    return torchvision.models.get_model(name, weights=None, **extra), torch.randn(2, 3, size, size)


def timm_names() -> dict[str, str]:
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


def timm(name: str) -> tuple[nn.Module, Tensor]:
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
