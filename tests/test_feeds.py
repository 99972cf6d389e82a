"""Feeds: which images come, and what is done to them, depends on (seed, epoch, image) and on nothing else."""

import pickle
from itertools import islice
from pathlib import Path

import pytest
import torch
from folders import raw_digits, real, write_fashion_mnist, write_image_folder
from net2net.data import Dataset, ImageSet, LoaderFeed, MemoryFeed, digits, folder, open_images
from net2net.data.augment import eval_transform, flip, margin, shift, train_transform
from net2net.data.order import Order, key, seeded
from torch import Tensor

pytest.importorskip("torchvision", reason="torchvision is not installed")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return open_images(write_image_folder(tmp_path_factory.mktemp("images"), raw_digits()))


def loader(
    images: ImageSet, kind: str = "inception", batch_size: int = 8, size: int = 16, **options: int
) -> LoaderFeed:
    return LoaderFeed(images, batch_size, train_transform(kind, size), eval_transform(kind, size), **options)


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def test_every_epoch_has_every_image_once() -> None:
    order = Order(images=13, batch_size=3, seed=5)
    assert order.batches_per_epoch == 4
    drawn = list(islice(order.batches(0, 0), 12))
    assert [epoch for epoch, _ in drawn] == [0] * 4 + [1] * 4 + [2] * 4
    epochs = [torch.cat([chosen for e, chosen in drawn if e == epoch]).tolist() for epoch in range(3)]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_order_from_anywhere_is_the_same() -> None:
    order = Order(images=13, batch_size=3, seed=5)
    whole = [(epoch, chosen.tolist()) for epoch, chosen in islice(order.batches(0, 0), 12)]
    for start in range(12):
        rest = islice(order.batches(*divmod(start, 4)), 12 - start)
        assert [(epoch, chosen.tolist()) for epoch, chosen in rest] == whole[start:]


def test_processes_share_every_mini_batch() -> None:
    alone = Order(images=40, batch_size=12, seed=1)
    parts = [Order(images=40, batch_size=12, seed=1, rank=rank, ranks=3) for rank in range(3)]
    shares = zip(*(islice(part.batches(0, 0), 7) for part in parts), strict=True)
    for (_, chosen), share in zip(islice(alone.batches(0, 0), 7), shares, strict=True):
        assert torch.equal(chosen, torch.cat([mine for _, mine in share]))


def test_order_refuses() -> None:
    for arguments, message in (
        ((10, 0), r"batch_size \(=0\) must be at least 1"),
        ((10, 11), r"batch_size \(=11\) must be at most the training set's 10 images"),
        ((10, 5, 0, 0, 2), r"batch_size \(=5\) must be a multiple of the 2 processes"),
    ):
        with pytest.raises(ValueError, match=message):
            Order(*arguments)


def test_keys_are_fixed_for_ever() -> None:
    assert key(0, "order", 1) == key(0, "order", 1) != key(0, "order", 2)
    assert key(1, 23) != key(12, 3)
    assert 0 <= key(7) < 2**63
    assert key(0, "image", 3, 4) == 3260429757985933636  # another hash would change every run


def test_seeded_puts_the_generator_back() -> None:
    before = torch.get_rng_state()
    with seeded(1, 2):
        first = torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
    with seeded(1, 2):
        assert torch.equal(first, torch.rand(3))


@pytest.mark.parametrize("kind", ["inception", "small", "none"])
def test_workers_make_no_difference(images: ImageSet, kind: str) -> None:
    alone = list(islice(loader(images, kind).batches(0, 0), 8))
    assert same(alone, list(islice(loader(images, kind, workers=2).batches(0, 0), 8)))
    torch.manual_seed(3)
    torch.rand(5)
    assert same(alone[6:], list(islice(loader(images, kind, workers=1).batches(1, 1), 2)))


def test_augmentation_changes_with_epoch_image_and_seed(images: ImageSet) -> None:
    feed = loader(images, batch_size=40)
    (x, y), (x2, y2) = islice(feed.batches(0, 0), 2)
    assert torch.equal(y.sort().values, y2.sort().values)
    assert not torch.equal(x.sum(dim=(1, 2, 3)).sort().values, x2.sum(dim=(1, 2, 3)).sort().values)
    other = next(loader(images, batch_size=40, seed=1).batches(0, 0))[0]
    assert not torch.equal(x.sum(dim=(1, 2, 3)).sort().values, other.sum(dim=(1, 2, 3)).sort().values)


def test_the_global_generator_is_left_alone(images: ImageSet) -> None:
    before = torch.get_rng_state()
    feed = loader(images)
    next(feed.batches(0, 0))
    list(feed.sample("val"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("kind", "size"), [("inception", 32), ("small", 32), ("shift", 20), ("none", 24)])
def test_transforms(images: ImageSet, kind: str, size: int) -> None:
    image, _ = images.train[0]
    for transform in (train_transform(kind, size), eval_transform(kind, size)):
        x = transform(image)
        assert (x.shape, x.dtype) == ((3, size, size), torch.float32)
        assert x.min() >= -1
        assert x.max() <= 1
    evaluated = eval_transform(kind, size)
    assert torch.equal(evaluated(image), evaluated(image))
    pickle.dumps(train_transform(kind, size))  # for readers that are not forked


def test_inception_crops_8_to_100_percent_of_the_area() -> None:
    crop, mirror, colours = train_transform("inception", 64).transforms[1:4]  # type: ignore[attr-defined]
    assert (crop.scale, crop.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert (type(mirror).__name__, type(colours).__name__) == ("RandomHorizontalFlip", "ColorJitter")


def test_small_images_are_moved_and_mirrored_as_in_memory(images: ImageSet) -> None:
    """What the transforms make of an image is one of the shifts, mirrored or not, that memory has."""
    image, _ = images.train[0]
    whole = eval_transform("small", 16)(image)[None]
    m = margin(16)
    offsets = torch.cartesian_prod(torch.arange(2 * m + 1), torch.arange(2 * m + 1))
    moved = shift(whole.expand(len(offsets), -1, -1, -1), offsets, m)
    known = torch.cat([moved, flip(moved, torch.ones(len(moved), dtype=torch.bool))])
    for seed in range(20):
        with seeded(seed):
            x = train_transform("small", 16)(image)
        assert (x == known).all(dim=(1, 2, 3)).any()


def test_flip() -> None:
    x = torch.arange(24.0).reshape(2, 1, 3, 4)
    out = flip(x, torch.tensor([True, False]))
    assert torch.equal(out[0], x[0].flip(2))
    assert torch.equal(out[1], x[1])


def test_shift() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    assert torch.equal(shift(x, torch.tensor([[1, 1], [1, 1]]), 1), x)
    moved = shift(x, torch.tensor([[0, 1], [1, 2]]), 1)
    assert torch.equal(moved[0, :, 1:], x[0, :, :-1])  # down by one, the edge repeated
    assert torch.equal(moved[0, :, 0], x[0, :, 0])
    assert torch.equal(moved[1, :, :, :-1], x[1, :, :, 1:])  # left by one
    assert torch.equal(moved[1, :, :, -1], x[1, :, :, -1])
    assert moved.shape == x.shape


def test_memory_from_anywhere_is_the_same() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    data = digits(8)
    feed = MemoryFeed(data, 500, max_shift=1, flips=True)
    whole = list(islice(feed.batches(0, 0), 5))
    assert same(whole[3:], list(islice(feed.batches(1, 1), 2)))
    plain = MemoryFeed(data, 500)
    assert not torch.equal(next(plain.batches(0, 0))[0], whole[0][0])
    assert torch.equal(next(plain.batches(0, 0))[1], whole[0][1])


def samples(feed: MemoryFeed | LoaderFeed, split: str) -> tuple[Tensor, Tensor]:
    xs, ys = zip(*feed.sample(split), strict=True)  # type: ignore[arg-type]
    return torch.cat(xs), torch.cat(ys)


def test_samples_are_shared_out(images: ImageSet) -> None:
    data: Dataset = digits(8)
    for whole, parts in (
        (MemoryFeed(data, 2), [MemoryFeed(data, 2, rank=r, ranks=2) for r in range(2)]),
        (loader(images), [loader(images, rank=r, ranks=2) for r in range(2)]),
    ):
        for split in ("train", "val"):
            x, y = samples(whole, split)
            shares = [samples(part, split) for part in parts]
            assert len(x) == len(samples(whole, "val")[0]) == sum(len(share[0]) for share in shares)
            for rank, (x_share, y_share) in enumerate(shares):
                assert torch.equal(x[rank::2], x_share)
                assert torch.equal(y[rank::2], y_share)
    assert len(samples(loader(images, eval_images=7), "val")[0]) == 7
    assert len(samples(MemoryFeed(data, 2, eval_images=7), "train")[0]) == 7


def test_feeds_refuse(images: ImageSet) -> None:
    with pytest.raises(ValueError, match=r"workers \(=-1\) must be at least 0"):
        loader(images, workers=-1)
    with pytest.raises(ValueError, match=r"max_shift \(=-1\) must be at least 0"):
        MemoryFeed(digits(8), 2, max_shift=-1)
    with pytest.raises(ValueError, match=r"augment \(='large'\) must be one of inception"):
        train_transform("large", 16)


def test_broken_image_is_named_also_by_a_worker(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, raw_digits())
    broken = sorted((root / "train" / "digit5").iterdir())[0]
    broken.write_bytes(b"not a picture")
    feed = loader(open_images(root), batch_size=40, workers=1)
    with pytest.raises(ValueError, match=rf"^cannot read the image [^\n]*{broken.name}[^\n]*$"):  # and no traceback
        next(feed.batches(0, 0))


def test_grey_images_are_fed(tmp_path: Path) -> None:
    images = open_images(write_fashion_mnist(tmp_path, raw_digits()))
    assert (images.num_classes, images.in_channels, images.image_size) == (10, 1, 28)
    x, _ = next(loader(images, "inception", 8, 32).batches(0, 0))
    assert x.shape == (8, 1, 32, 32)


def test_cifar10_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real files are larger; here torchvision does not compare their checksums."""
    datasets = pytest.importorskip("torchvision.datasets")
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    with pytest.raises(ValueError, match="is incomplete or damaged: a file is missing, or its checksum is not"):
        open_images(tmp_path)
    pixels, labels = raw_digits(20)
    rows = pixels[:, None].repeat(1, 3, 4, 4).flatten(1).numpy()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (place / name).write_bytes(pickle.dumps({"data": rows, "labels": labels.tolist()}))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    images = open_images(tmp_path)
    assert (images.name, len(images.train), len(images.val), images.image_size) == ("CIFAR10", 100, 20, 32)
    assert folder(tmp_path).train_x.shape == (100, 3, 32, 32)


# -- the real sets ---------------------------------------------------------------------------------------------------


def test_real_fashion_mnist(tmp_path: Path) -> None:
    images = open_images(real("fashion_mnist", tmp_path))
    assert (len(images.train), len(images.val), images.num_classes, images.image_size) == (60000, 10000, 10, 28)
    x, y = next(loader(images, "small", 64, 28).batches(3, 100))
    assert x.shape == (64, 1, 28, 28)
    assert len(y.unique()) > 5


@pytest.mark.parametrize(
    ("name", "classes", "size", "kind"), [("cifar10", 10, 32, "small"), ("tinyimagenet50", 50, 64, "inception")]
)
def test_real_folders(tmp_path: Path, name: str, classes: int, size: int, kind: str) -> None:
    root = real(name, tmp_path, limit=4)
    images = open_images(root)
    assert (images.num_classes, images.in_channels, images.image_size) == (classes, 3, size)
    assert (len(images.train), len(images.val)) == (4 * classes, 4 * classes)
    feed = loader(images, kind, 20, size, workers=2)
    batches = list(islice(feed.batches(0, 0), 3))
    assert same(batches[1:], list(islice(loader(images, kind, 20, size).batches(0, 1), 2)))
    assert all(x.shape == (20, 3, size, size) and x.std() > 0.2 for x, _ in batches)
    x, y = samples(feed, "val")
    assert torch.equal(y.bincount(), torch.full((classes,), 4))
    assert folder(root).val_x.shape == x.shape
