"""The networks that come with the package."""

from net2net.models.inception import InceptionBN, inception_bn

__all__ = ["InceptionBN", "inception_bn"]
