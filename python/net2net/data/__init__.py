"""Images to train on: in memory (`memory`) or read from disk (`sources`), in a fixed order (`order`), changed at random
(`augment`), and fed to the training loop (`feeds`)."""

from net2net.data.feeds import Feed, LoaderFeed, MemoryFeed
from net2net.data.memory import Dataset, digits, folder
from net2net.data.sources import ImageSet, open_images

__all__ = ["Dataset", "Feed", "ImageSet", "LoaderFeed", "MemoryFeed", "digits", "folder", "open_images"]
