"""carriers: where the shares of units go that flow into a tied weight.

An embedding that is also the matrix of the output layer (as in most language models) reads the same units that it
makes, so its weights cannot be divided among replicas: as an embedding they are copied as they are. But what flows
into the output layer comes from a norm, most often, whose gain and bias nothing else takes part in. With the shares on
these,

    sum_i U[v, i] (n_i gain_g(i) + bias_g(i)) c_i = sum_u W[v, u] (n_u gain_u + bias_u),

the function is kept: the gain takes the place of the weight's "in" axis. Its gradient is then the teacher's own,
gathered, and that of the tied weight is scaled by `c` in both of its roles, as of any layer that makes units.

That needs certainty that nothing else sees the values in between, nor those parameters: every operation on them is
counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from net2net.parameters import Parameters

Axis = tuple[str, int]

_NORMS = {"native_layer_norm", "_fused_rms_norm", "rms_norm"}
#: What may take vectors of parameters.
_WITH_VECTORS = _NORMS | {"mul", "add"}
#: What is linear, and has no other operand: a share may stand before it as well as after it.
_LINEAR = {"_to_copy", "clone", "contiguous", "mul", "div", "neg", "native_dropout"}


@dataclass(eq=False)
class Carried:
    """Values that are linear, unit by unit, in these vectors: `storage` is read `reads` times."""

    alive: StorageWeakRef
    vectors: tuple[Axis, ...]
    of: Carried | None = None  # what it was made of, by nothing but a linear operation
    reads: int = 0

    def alone(self, reads: Counter[str]) -> bool:
        """Whether nothing sees these values, or their vectors, but what was made of them."""
        return (
            self.reads == 1
            and all(reads[name] == 1 for name, _ in self.vectors)
            and (self.of is None or self.of.alone(reads))
        )


class Carriers:
    """Follows the gains of one walk to the matrices that they flow into."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._carried: dict[int, Carried] = {}
        self._reads: Counter[str] = Counter()
        self._uses: dict[Axis, list[Carried | None]] = {}

    def begin(self) -> None:
        """A walk begins."""
        self._carried, self._uses = {}, {}
        self._reads = Counter()

    def saw(self, name: str, given: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """An operation, other than a view, was given these tensors, and made those."""
        known = [self._of(t) for t in given]
        for t, carried in zip(given, known, strict=True):
            if carried is not None:
                carried.reads += 1
            for owner, _ in self._parameters.owners(t):
                self._reads[owner] += 1
        if not results or not (name in _WITH_VECTORS or name in _LINEAR) or not results[0].is_floating_point():
            return
        vectors = [self._vector(t) for t in given] if name in _WITH_VECTORS else []
        made: Carried | None = None
        alive = StorageWeakRef(results[0].untyped_storage())
        if name in _NORMS:
            if len(given) > 1 and all(v is not None for v in vectors[1:]):
                made = Carried(alive, tuple(v for v in vectors[1:] if v is not None))
        elif name == "mul" and len(given) == 2 and (vectors[0] is None) != (vectors[1] is None):
            made = Carried(alive, tuple(v for v in vectors if v is not None))
        elif name == "add" and len(given) == 2:
            for value, vector in ((known[0], vectors[1]), (known[1], vectors[0])):
                if value is not None and vector is not None:
                    made = Carried(alive, (*value.vectors, vector), value)
        elif name in _LINEAR and len(given) == 1 and known[0] is not None:
            made = Carried(alive, known[0].vectors, known[0])
        if made is not None:
            self._carried[results[0].untyped_storage()._cdata] = made

    def used(self, x: Tensor, axis: Axis) -> None:
        """A sum of products ran over these values along this axis of a weight."""
        self._uses.setdefault(axis, []).append(self._of(x))

    def read(self) -> set[str]:
        """The parameters that took part in anything."""
        return set(self._reads)

    def settled(self) -> dict[Axis, tuple[Axis, ...] | None]:
        """For each axis that a sum ran over: the vectors that may have its shares; None if there are none."""
        found: dict[Axis, tuple[Axis, ...] | None] = {}
        for axis, uses in self._uses.items():
            alone = [use.vectors for use in uses if use is not None and use.alone(self._reads)]
            found[axis] = tuple(v for vectors in alone for v in vectors) if len(alone) == len(uses) else None
        return found

    def _of(self, t: Tensor) -> Carried | None:
        carried = self._carried.get(t.untyped_storage()._cdata)
        return None if carried is None or carried.alive.expired() else carried

    def _vector(self, t: Tensor) -> Axis | None:
        """The only axis of a parameter that is a vector."""
        handle = self._parameters.handle(t, whole=True)
        if handle is None or handle.tensor.dim() != 1 or not isinstance(handle.tensor, torch.nn.Parameter):
            return None
        return handle.name, 0
