"""derived: which tensors are made of weights, and what is done by their values.

While a growth is planned weights are zeros (skeleton.py), so what is made of them has other values than it will have. A
rule asks for none. But a mask of activations selects places by them, and Python may read them (`if y.max() > 1`,
`int(n)`, `y.numpy()`) and go another way for what it finds. A selection is taken whole here. What Python has read
cannot be followed, nor anything that it can reach from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from net2net.rules.elementwise import constant
from net2net.rules.table import is_mask, name_of, rule_for, tensors

#: Code that asks this often how many there are, or for values, waits for something that does not happen.
MOST_READS = 1000


class Derived:
    """The tensors made of weights, by the memory that they are in. A single number that is a parameter or buffer keeps
    its value (skeleton.py), and so do buffers."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """
        Args:
            tensors: a model's parameters, and whatever else it holds.
        """
        weights = (t for t in tensors if isinstance(t, nn.Parameter) and t.numel() != 1)
        self._weights = {t.untyped_storage()._cdata for t in weights}
        self._made: dict[int, StorageWeakRef] = {}
        self._sized: dict[int, tuple[StorageWeakRef, int]] = {}

    def __contains__(self, t: Tensor) -> bool:
        key = _one_by_one(t).untyped_storage()._cdata
        return key in self._weights or ((made := self._made.get(key)) is not None and not made.expired())

    def add(self, made: Iterable[Tensor]) -> None:
        for t in made:
            storage = t.untyped_storage()
            if storage._cdata in self._made and self._made[storage._cdata].expired():
                del self._made[storage._cdata]
            self._made.setdefault(storage._cdata, StorageWeakRef(storage))
            if len(self._made) % 4096 == 0:
                self._made = {key: alive for key, alive in self._made.items() if not alive.expired()}

    def add_sized(self, made: Iterable[Tensor]) -> None:
        """How long the first dimension of these is depends on weights, too."""
        for t in made:
            self._sized[t.untyped_storage()._cdata] = StorageWeakRef(t.untyped_storage()), t.shape[0]

    def is_sized(self, t: Tensor) -> bool:
        """Whether its first dimension is as long as values have it (as far as can be told by that length)."""
        if is_batchedtensor(t):
            return False
        found = self._sized.get(t.untyped_storage()._cdata)
        return found is not None and not found[0].expired() and t.dim() > 0 and t.shape[0] == found[1]

    def discard(self, made: Tensor) -> None:
        """The values of `made` are known after all."""
        self._made.pop(_one_by_one(made).untyped_storage()._cdata, None)

    def any(self, given: Iterable[Tensor]) -> bool:
        return any(t in self for t in given)


def _one_by_one(t: Tensor) -> Tensor:
    """Of what a function sees that `torch.vmap` maps, the tensor that holds all of it."""
    while is_batchedtensor(t):
        t = get_unwrapped(t)
    return t


def passes_values(func: Any) -> bool:
    """Whether the values of what an operation gives depend on those that it is given: a constant takes no more than a
    shape and a dtype."""
    return rule_for(func) is not constant


def reads(func: Any) -> bool:
    """Whether an operation gives Python a number that depends on values."""
    return torch.Tag.data_dependent_output in func.tags


def sizes_by_value(func: Any, args: Any, derived: Derived) -> bool:
    """Whether the size of what an operation gives depends on values made of weights."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    if name_of(func) == "index":
        return any(i is not None and is_mask(i) and i in derived for i in args[1])
    return True


#: Operations that select by a mask, by number of the argument that is one, or a list of them.
_SELECTING = {
    "index": 1, "_unsafe_index": 1, "index_put": 1, "index_put_": 1, "_index_put_impl_": 1, "_unsafe_index_put": 1,
    "masked_select": 1, "nonzero": 0, "nonzero_numpy": 0, "nonzero_static": 0, "repeat_interleave": 0,
}  # fmt: skip


#: So many places are enough: what they are put through may take time (the suppression of overlapping boxes, say).
_PLACES = 2**12


def whole_selection(func: Any, args: Any, derived: Derived, shadow: Callable[[Tensor, Tensor], None]) -> Any:
    """The arguments of an operation, with masks made of weights replaced by such that select all: of all zeros they
    would select nothing, and nothing could be followed.

    Args:
        shadow: is called with each mask that is replaced, and what replaces it.
    """
    at = _SELECTING.get(name_of(func))
    if at is None:
        return args
    # Of `nonzero` the operand is the mask, whatever its dtype; how often `repeat_interleave` repeats are integers.
    any_dtype = at == 0

    def whole(mask: Any) -> Any:
        if not isinstance(mask, Tensor) or mask not in derived:
            return mask
        if not any_dtype and not is_mask(mask):
            return mask
        with _disable_current_modes():
            ones = torch.ones_like(mask, memory_format=torch.contiguous_format)
            ones.view(-1)[_PLACES:] = 0
        shadow(mask, ones)
        return ones

    given = args[at]
    replaced = [whole(m) for m in given] if isinstance(given, (list, tuple)) else whole(given)
    return (*args[:at], replaced, *args[at + 1 :])


#: What hands Python the values of a tensor without any operation.
_HANDING_OUT = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.apply_, Tensor.map_}
#: What tells Python how many elements there are.
_SIZES = {Tensor.shape.__get__, Tensor.size, Tensor.numel, Tensor.nelement, Tensor.__len__, torch.numel}  # type: ignore[attr-defined]
_SPLITTING = {torch.tensor_split, Tensor.tensor_split}
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
#: What takes parts of some length, the last of which may be shorter, or so many of them.
_BY_LENGTH = {torch.split, Tensor.split, torch.chunk, Tensor.chunk, torch.tensor_split, Tensor.tensor_split}
#: What gives the same for all finite numbers, as sound activations are: code makes sure of it and goes on.
_OF_FINITE = {torch.isnan, torch.isinf, torch.isfinite, Tensor.isnan, Tensor.isinf, Tensor.isfinite}
#: What reads values only to check or print them, and gives back none.
_LOOKING = {Tensor.__repr__, Tensor.__format__}


class Watch(TorchFunctionMode):
    """Calls `read` when values of tensors made of weights are handed out, or with `sizes` when how many there are is
    asked for and depends on such values; and `cut` with the number at which a slice begins or ends, or a part, if that
    is beyond the end (which no operation is told).

    Attributes:
        looking: whether what is read now is only looked at.
    """

    def __init__(
        self,
        derived: Derived,
        read: Callable[..., None],
        handed_out: Callable[[Tensor], None],
        cut: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._derived, self._read, self._handed_out, self._cut = derived, read, handed_out, cut
        self.looking = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKING:
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func in _INDEXING or func in _BY_LENGTH:
            for end in _ends_beyond(*args[:2]) if func in _INDEXING else _longer(*args, **kwargs):
                self._cut(end)
        if func in _SIZES and self._asks_for_a_size(func, *args, **kwargs):
            self._read("a size", sizes=True)
        if func in _HANDING_OUT or func in _SPLITTING:
            given = tensors(args[:1] if func in _HANDING_OUT else (args[1:], kwargs))
            if self._derived.any(given):
                self._read(func.__name__)
            for t in given:
                self._handed_out(t)
        if func in _OF_FINITE:
            found = func(*args, **kwargs)
            self._derived.discard(found)
            return found
        if func is not torch.nn.functional.one_hot or _classes(*args, **kwargs) < 0:
            return func(*args, **kwargs)
        self.looking = True  # it checks that no index is too large
        try:
            return func(*args, **kwargs)
        finally:
            self.looking = False

    def _asks_for_a_size(self, func: Any, t: Tensor, *args: Any, **kwargs: Any) -> bool:
        if not self._derived.is_sized(t):
            return False
        dim = args[0] if args else kwargs.get("dim", 0)
        return func is not Tensor.size or dim in (0, -t.dim(), None)


def _ends_beyond(t: Tensor, index: Any) -> Iterator[int]:
    """Where slices begin or end, or go on, that would elsewhere, were the tensor larger."""
    items = [i for i in (index if isinstance(index, tuple) else (index,)) if i is not None]
    dim = 0
    for i, item in enumerate(items):
        if item is Ellipsis:
            dim = t.dim() - sum(map(_dims_of, items[i + 1 :]))
            continue
        places = (item.start, item.stop, item.step) if isinstance(item, slice) else ()
        if 0 <= dim < t.dim():
            yield from (at for at in places if isinstance(at, int) and abs(at) > t.shape[dim])
        dim += _dims_of(item)


def _longer(tensor: Tensor, *args: Any, **kwargs: Any) -> Iterator[int]:
    """The length, or number, of parts, if that is more than there is."""
    dim = kwargs.pop("dim", args[1] if len(args) > 1 else 0)
    parts = (*args, *kwargs.values())[0]
    if isinstance(parts, int) and -tensor.dim() <= dim < tensor.dim() and parts > tensor.shape[dim]:
        yield parts


def _dims_of(item: Any) -> int:
    """How many dimensions an index is for."""
    return item.dim() if isinstance(item, Tensor) and is_mask(item) else 1


def _classes(*args: Any, **kwargs: Any) -> int:
    return int(kwargs.get("num_classes", args[1] if len(args) > 1 else -1))
