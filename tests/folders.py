"""Real images in the folder layouts that torchvision reads: the handwritten digits, and the sets in `shared/data`."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

Raw = tuple[torch.Tensor, torch.Tensor]


def raw_digits(count: int = 60) -> Raw:
    """Handwritten digits: uint8 images `[count, 8, 8]`, and labels."""
    sklearn_datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    loaded = sklearn_datasets.load_digits()
    return torch.from_numpy(loaded.images[:count] * 15).to(torch.uint8), torch.from_numpy(loaded.target[:count])


def write_image_folder(root: Path, raw: Raw, size: tuple[int, int] = (20, 24)) -> Path:
    """Every third digit into val/, the others into train/, as PNG files of `size` (height, width)."""
    io = pytest.importorskip("torchvision.io", reason="torchvision is not installed")
    for i, (image, label) in enumerate(zip(*raw, strict=True)):
        place = root / ("val" if i % 3 == 0 else "train") / f"digit{label}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.nn.functional.interpolate(image[None, None].float(), size=size).to(torch.uint8)[0]
        io.write_png(pixels, str(place / f"{i:03d}.png"))
    return root


def write_fashion_mnist(root: Path, raw: Raw) -> Path:
    """40 digits as the training set, the rest as the test set, in Fashion-MNIST's files."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    place = root / "FashionMNIST" / "raw"
    place.mkdir(parents=True)
    images = torch.nn.functional.interpolate(raw[0][:, None].float(), size=(28, 28))[:, 0].to(torch.uint8).numpy()
    labels = raw[1].to(torch.uint8).numpy()
    for name, part in (("train", slice(0, 40)), ("t10k", slice(40, None))):
        count = len(labels[part])
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (place / f"{name}-images-idx3-ubyte").write_bytes(header + images[part].tobytes())
        (place / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels[part].tobytes())
    return root


def real(name: str, dest: Path, limit: int | None = None) -> Path:
    """One of the sets that are kept beside a checkout, unpacked into `dest`; skips the test where they are not.

    They are looked for in the folder that N2N_DATA names, or in `../shared/data`.
    """
    place = Path(os.environ.get("N2N_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (place / "unpack.py").is_file():
        pytest.skip(f"no real images: there is no unpack.py in {place} (N2N_DATA names the folder)")
    limited = [] if limit is None else ["--limit", str(limit)]
    subprocess.run([sys.executable, place / "unpack.py", name, dest, *limited], check=True, capture_output=True)
    return dest
