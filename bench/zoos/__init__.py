"""Zoos of models: what `coverage.py` widens."""

from __future__ import annotations

import warnings

from torch import nn

from zoos import audio, classifiers, dense, diffusers, transformers, vit_pytorch
from zoos.kinds import Example, UnavailableError, Zoo

__all__ = ["ZOOS", "UnavailableError", "build"]

ZOOS: dict[str, Zoo] = {
    "torchvision": Zoo(classifiers.torchvision_names, classifiers.torchvision),
    "torchvision_dense": Zoo(dense.torchvision_names, dense.torchvision),
    "timm": Zoo(classifiers.timm_names, classifiers.timm),
    "transformers": Zoo(transformers.names, transformers.build),
    "diffusers": Zoo(diffusers.names, diffusers.build),
    "vit_pytorch": Zoo(vit_pytorch.names, vit_pytorch.build),
    "segmentation_models_pytorch": Zoo(dense.smp_names, dense.smp),
    "monai": Zoo(lambda: {name: name for name in dense.MONAI}, dense.monai),
    "ultralytics": Zoo(dense.ultralytics_names, dense.ultralytics),
    "audio": Zoo(audio.names, audio.build),
}


def build(library: str, name: str) -> tuple[nn.Module, Example]:
    """A model, and an input for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ZOOS[library].build(name)
