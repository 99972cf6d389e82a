"""Which device to use."""

from __future__ import annotations

import torch


def device(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one. ValueError if there is none of this name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device (={name!r}) is no device: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device (={name!r}): there are {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device (={name!r}) must be auto, cpu, cuda or cuda:N")
    return device
