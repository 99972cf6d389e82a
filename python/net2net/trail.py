"""trail: what a forward did, operation by operation, so that another one can be told to do the same.

Of each operation: which it was, with which numbers, and on what. A tensor is known by where it came from (which
operation made it, or last wrote to it; which parameter or buffer it is; which input) and by how it lies in memory.
What train mode alone does to a forward that is else the same is left out: that batch norms average over the batch and
count batches, and that dropout multiplies by random numbers (whole samples, too, or channels).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from net2net.hashes import content
from net2net.rules.norms import args_but_mode
from net2net.rules.table import is_view, name_of, tensors
from net2net.running import written

#: Tensors of more elements than this, that nothing is known of, are not compared by their content.
_CONTENT = 2**22

#: What `Trail.saved` keeps: the steps, the numbers left out, whether it was complete, and what was known of tensors.
Saved = tuple[int, int, bool, tuple[dict[int, Any], dict[int, Any], dict[int, Any]]]

_EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}


class Trail:
    """The trail of one forward.

    Attributes:
        complete: whether all that was done is in it.
        left_out: the numbers in what was left out: how much is dropped, say. No width may tell them.
    """

    def __init__(self, named: Mapping[str, Tensor], inputs: object, training: bool) -> None:
        """
        Args:
            named: the model's tensors, by their names.
            inputs: what it is run on.
            training: the mode that it is in.
        """
        self.complete = True
        self.left_out: list[Any] = []
        self._training = training
        self._steps: list[tuple[Any, ...]] = []
        #: Where the contents of a storage came from, by its address.
        self._from: dict[int, tuple[StorageWeakRef, object]] = {}
        #: Random numbers, and memory that may become such, with the step that would tell of it.
        self._noise: dict[int, StorageWeakRef] = {}
        self._empty: dict[int, tuple[StorageWeakRef, tuple[Any, ...]]] = {}
        #: Counters of batches.
        self._counters = set[int]()
        for name, t in named.items():
            counts = not isinstance(t, nn.Parameter) and not t.is_floating_point()
            # Of indices, values count.
            self._is(t, (name, self._content(t)) if counts else name)
            if counts:
                self._counters.add(t.untyped_storage()._cdata)
        for i, t in enumerate(tensors(inputs)):
            self._is(t, i)

    def same(self, other: Trail) -> bool:
        """Whether both forwards did the same."""
        return self.complete and other.complete and self._steps == other._steps

    def saved(self) -> Saved:
        """How far it is."""
        known = dict(self._from), dict(self._noise), dict(self._empty)
        return len(self._steps), len(self.left_out), self.complete, known

    def restore(self, state: Saved) -> None:
        """What was done since then was undone."""
        steps, numbers, self.complete, known = state
        del self._steps[steps:], self.left_out[numbers:]
        self._from, self._noise, self._empty = map(dict, known)

    def event(self, what: str, *about: object) -> None:
        """Something that is no operation."""
        self._step((what, self._described(about)))

    def operation(
        self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], given: Sequence[Tensor], made: Sequence[Tensor]
    ) -> None:
        """An operation was run: `given` are the tensors among its arguments, and `made` those of its result."""
        name = name_of(func)
        if self._is_of_train_mode(func, name, args, given, made):
            return
        if name in _EMPTY:  # whether it is for random numbers, what comes next tells
            step = (func, self._described(args), self._described(kwargs))
            for t in made:
                self._forget(t)
                self._empty[t.untyped_storage()._cdata] = StorageWeakRef(t.untyped_storage()), step
            return
        for t in given:
            self._fill(t)
        named = args_but_mode(func, args, self._training) if "batch_norm" in name else args
        at = self._step((func, self._described(named), self._described(kwargs)))
        if not is_view(func):
            for i, t in enumerate(made):
                self._is(t, (at, i))
        for i in written(func):
            for t in tensors(args[i] if i < len(args) else kwargs.get(func._schema.arguments[i].name)):
                self._is(t, (at, "written", i))

    def _is_of_train_mode(
        self, func: Any, name: str, args: Sequence[Any], given: Sequence[Tensor], made: Sequence[Tensor]
    ) -> bool:
        """Whether an operation is part of what train mode alone does."""
        if func is torch.ops.aten.add_.Tensor and args[0].untyped_storage()._cdata in self._counters:
            if isinstance(args[1], Tensor):
                return False
            self.left_out.append(args[1])
            self._is(args[0], ("counted", self._described(args[0]), args[1]))
            return True
        if func is torch.ops.aten.bernoulli_.float and (place := self._empty_at(args[0])) is not None:
            del self._empty[place]
            self._noise[place] = StorageWeakRef(args[0].untyped_storage())
            self.left_out += [*args[1:], [n == 1 for n in args[0].shape]]
            return True
        if func is torch.ops.aten.native_dropout.default:
            self._noise[made[1].untyped_storage()._cdata] = StorageWeakRef(made[1].untyped_storage())
            self.left_out += args[1:]
            return self._take_over(made[0], given[0])
        noise = [self._is_noise(t) for t in given]
        if name == "div_" and noise[:1] == [True]:  # by a number
            if len(given) > 1 and (given[1].dim() or noise[1]):
                return False
            self.left_out.append(self._described(args[1]))
            return True
        if name == "mul_" and noise == [False, True]:
            return True
        if name == "mul" and sorted(noise) == [False, True] and made[0].shape == given[noise[0]].shape:
            return self._take_over(made[0], given[noise[0]])
        return False

    def _take_over(self, made: Tensor, of: Tensor) -> bool:
        """`made` is known as `of` is."""
        self._fill(of)
        source = self._described(of)
        whole = of.numel() * of.element_size() == of.untyped_storage().nbytes()
        self._is(made, source[0] if whole else source)
        return True

    def _empty_at(self, t: Tensor) -> int | None:
        place = t.untyped_storage()._cdata
        found = self._empty.get(place)
        return None if found is None or found[0].expired() else place

    def _fill(self, t: Tensor) -> None:
        """Memory that nothing was known of is used after all."""
        if self._empty and (place := self._empty_at(t)) is not None:
            self._is(t, (self._step(self._empty.pop(place)[1]), 0))

    def _is_noise(self, t: Tensor) -> bool:
        found = self._noise.get(t.untyped_storage()._cdata)
        return found is not None and not found.expired()

    def _is(self, t: Tensor, source: object) -> None:
        storage = t.untyped_storage()
        self._from[storage._cdata] = StorageWeakRef(storage), source

    def _forget(self, t: Tensor) -> None:
        place = t.untyped_storage()._cdata
        self._from.pop(place, None)
        self._noise.pop(place, None)

    def _described(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            if isinstance(x, (list, tuple)):
                return tuple([self._described(item) for item in x])
            if isinstance(x, dict):
                return tuple([(name, self._described(value)) for name, value in x.items()])
            return type(x), x
        alive, source = self._from.get(x.untyped_storage()._cdata, (None, None))
        if alive is None or alive.expired():
            source = self._content(x)
        return source, x.storage_offset(), tuple(x.shape), x.stride(), x.dtype

    def _content(self, t: Tensor) -> object:
        """What stands for a tensor that came from elsewhere (a constant in the code, say)."""
        if t.numel() > _CONTENT or t.is_meta or t.layout is not torch.strided or self._is_noise(t):
            self.complete = False
            return ()
        return hashlib.blake2b(content(t), digest_size=16).digest()

    def _step(self, what: tuple[Any, ...]) -> int:
        self._steps.append(what)
        return len(self._steps) - 1
