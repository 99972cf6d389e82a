"""Filters: a kernel that is the same for all channels (a blur before subsampling, a Gaussian window, the gradients of
an image), of which code makes as many copies as there are channels. It stays as it is, and what it makes of a channel
is replicated with the channel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from net2net.context import Context
from net2net.hashes import content
from net2net.shadows import compact
from net2net.views import geometry_of

_WHY = "it is a filter, the same for all channels"


def one_kernel(context: Context, weight: Tensor) -> Any:
    """What stands for the kernel, if the weight of a depthwise convolution is copies of one; None, if it is not known
    to be."""
    handle, sizes = context.parameters.handle(weight), tuple(weight.shape[1:])
    made, whole = None, weight
    if handle is not None and handle.copy is not None:
        whole, made = handle.copy
    elif (computed := context.parameters.made(weight)) is not None:
        if weight.stride(0):
            return None
        context.pin_tensor(weight, _WHY)
        return computed.sources, computed.formula, sizes, weight.storage_offset(), weight.stride()[1:]
    copies = context.expanded.copies(weight, 0)
    known_to_be = made is not None and 0 in made.alike and geometry_of(whole) == geometry_of(weight)
    if weight.shape[0] > 1 and weight.stride(0) and not known_to_be and (copies is None or copies.any()):
        return None
    known = context.shadows.get(weight)
    if known is not None and not context.is_parameter(weight):
        few = compact(known).numpy()
        return None if few.shape[0] > 1 or context.has_units(few) else ("codes", sizes, few.shape, few.tobytes())
    context.pin_tensor(weight, _WHY)
    where = sizes, weight.storage_offset(), weight.stride()[1:]
    if made is not None:
        return made.sources, made.each, *where
    if handle is not None:
        return handle.name, *where
    return content(weight[:1]), *where
