"""Data: the handwritten digits, and the same digits written into the folder layouts that torchvision reads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from folders import Raw, raw_digits, write_fashion_mnist, write_image_folder
from net2net.data import Dataset, digits, folder
from net2net.extras import require

sklearn_datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")


@pytest.fixture(scope="module")
def raw() -> Raw:
    return raw_digits()


def check(data: Dataset) -> None:
    for x, y in ((data.train_x, data.train_y), (data.val_x, data.val_y)):
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert len(x) == len(y) > 0
        assert x.shape[1:] == (data.in_channels, *data.image_size)
        assert y.min() >= 0
        assert y.max() < data.num_classes
    mean, std = data.train_x.mean(dim=(0, 2, 3)), data.train_x.std(dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-3, rtol=0)


def test_digits_are_whole_and_normalised() -> None:
    data = digits()
    check(data)
    assert (len(data.train_x) + len(data.val_x), data.image_size) == (1797, (16, 16))
    assert (data.name, data.num_classes, data.in_channels) == ("digits", 10, 1)


def test_digits_split_is_stratified() -> None:
    data = digits()
    train, val = data.train_y.bincount(), data.val_y.bincount()
    assert ((val / (train + val) - 0.2).abs() < 0.004).all()


def test_digits_split_is_a_partition() -> None:
    data = digits(8)
    ours = torch.cat([data.train_x, data.val_x]).flatten(1)
    theirs = torch.from_numpy(sklearn_datasets.load_digits().images).float().flatten(1)
    # Normalising keeps the order of the images' mean brightness.
    a, b = ours.double().sum(dim=1).sort().values, theirs.double().sum(dim=1).sort().values
    torch.testing.assert_close((a - a.mean()) / a.std(), (b - b.mean()) / b.std(), atol=1e-4, rtol=1e-4)


def test_first_images_are_a_random_sample() -> None:
    data = digits()
    for y in (data.train_y, data.val_y):
        assert len(y[:100].unique()) == 10


def test_digits_split_is_fixed_by_its_seed() -> None:
    first, again, other = digits(), digits(), digits(seed=1)
    assert torch.equal(first.train_x, again.train_x)
    assert torch.equal(first.val_y, again.val_y)
    assert not torch.equal(first.train_y, other.train_y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, r"image_size \(=0\)"),
        ({"val_fraction": 0.0}, r"val_fraction \(=0.0\)"),
        ({"val_fraction": 1.0}, r"val_fraction \(=1.0\)"),
    ],
)
def test_digits_refuses(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits(**arguments)  # type: ignore[arg-type]


def test_to_keeps_everything_else() -> None:
    data = digits()
    moved = data.to("meta")
    assert moved.train_x.device.type == moved.val_y.device.type == "meta"
    assert (moved.name, moved.num_classes, moved.in_channels) == (data.name, data.num_classes, data.in_channels)


def test_image_folder(tmp_path: Path, raw: Raw) -> None:
    data = folder(write_image_folder(tmp_path / "pictures", raw))
    check(data)
    assert (data.name, data.num_classes, data.in_channels, data.image_size) == ("pictures", 10, 3, (20, 20))
    assert (len(data.train_x), len(data.val_x)) == (40, 20)


def test_image_folder_in_another_size(tmp_path: Path, raw: Raw) -> None:
    data = folder(write_image_folder(tmp_path, raw), image_size=16)
    check(data)
    assert data.image_size == (16, 16)


def test_large_images_become_64_pixels(tmp_path: Path, raw: Raw) -> None:
    assert folder(write_image_folder(tmp_path, raw, size=(90, 70))).image_size == (64, 64)


def test_fashion_mnist_layout(tmp_path: Path, raw: Raw) -> None:
    data = folder(write_fashion_mnist(tmp_path, raw))
    check(data)
    assert (data.name, data.in_channels, data.image_size) == ("FashionMNIST", 1, (28, 28))
    assert (len(data.train_x), len(data.val_x)) == (40, 20)
    assert torch.equal(data.val_y.bincount(), raw[1][40:].bincount())
    assert folder(tmp_path, image_size=16).image_size == (16, 16)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path \(='.*nowhere'\) does not exist"):
        folder(tmp_path / "nowhere")


def test_file_instead_of_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"path \(='.*file'\) is not a folder"):
        folder(tmp_path / "file")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold train/ and val/ .* it holds nothing"):
        folder(tmp_path)


def test_unknown_layout(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="it holds images"):
        folder(tmp_path)


def test_no_val(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has no folder val/"):
        folder(tmp_path)


def test_no_classes(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match="train/ has no class folders"):
        folder(tmp_path)


def test_classes_differ(tmp_path: Path) -> None:
    for place in ("train/cat", "train/dog", "val/cat", "val/cow"):
        (tmp_path / place).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"classes of train/ \(2\) and val/ \(2\) differ.* cow, dog"):
        folder(tmp_path)


def test_one_class(tmp_path: Path) -> None:
    for place in ("train/cat", "val/cat"):
        (tmp_path / place).mkdir(parents=True)
    with pytest.raises(ValueError, match="at least 2 classes"):
        folder(tmp_path)


def test_class_without_images(tmp_path: Path, raw: Raw) -> None:
    root = write_image_folder(tmp_path, raw)
    for image in (root / "val" / "digit3").iterdir():
        image.unlink()
    with pytest.raises(ValueError, match=r"no images in a class of val/.*digit3"):
        folder(root)


def test_broken_image(tmp_path: Path, raw: Raw) -> None:
    root = write_image_folder(tmp_path, raw)
    broken = sorted((root / "train" / "digit5").iterdir())[0]
    broken.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=f"cannot read the image .*{broken.name}"):
        folder(root)


def test_image_size_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image_size \(=-1\)"):
        folder(tmp_path, image_size=-1)


def test_fashion_mnist_files_missing(tmp_path: Path) -> None:
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="FashionMNIST/raw lacks train-images-idx3-ubyte"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda old: old[:-3000], "train files of FashionMNIST/raw are damaged: "),
        ("t10k-images-idx3-ubyte", lambda old: old[:6], "t10k files of FashionMNIST/raw are damaged: "),
        (
            "train-labels-idx1-ubyte",
            lambda old: old[:4] + bytes([0, 0, 0, 32]) + old[8:40],
            "train files of FashionMNIST/raw have 40 images and 32 labels",
        ),
        ("t10k-labels-idx1-ubyte", lambda old: old[:-1] + b"\x0b", "labels from 0 to 11, but there are 10 classes"),
    ],
)
def test_damaged_fashion_mnist(
    tmp_path: Path, raw: Raw, file: str, change: Callable[[bytes], bytes], message: str
) -> None:
    place = write_fashion_mnist(tmp_path, raw) / "FashionMNIST" / "raw" / file
    place.write_bytes(change(place.read_bytes()))
    with pytest.raises(ValueError, match=message):
        folder(tmp_path)


def test_missing_package_names_its_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'n2n-kernels\[demo\]'"):
        require("a_package_that_nobody_has")
