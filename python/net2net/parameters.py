"""parameters: which parameter or buffer a tensor of a forward pass is, or is a view of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from net2net.computed_weights import Computed
from net2net.hashes import digest
from net2net.skeleton import named_tensors
from net2net.views import cuts


@dataclass(frozen=True)
class Handle:
    """A parameter or buffer, and which of its dimensions each dimension of the tensor at hand is (-1: none)."""

    name: str
    tensor: Tensor
    dims: tuple[int, ...]
    #: How the tensor is computed from it, and by which operations with which numbers.
    how: Computed | None = None
    formula: bytes = b""
    #: If the tensor at hand is (a view of) a copy: that copy, and how it was made.
    copy: tuple[Tensor, Made] | None = None

    def cuts(self, t: Tensor) -> tuple[tuple[int, ...], ...]:
        """How the tensor at hand is less than all of the parameter: see `views.cuts`."""
        if self.copy is None:
            return tuple(cuts(self.tensor, t, self.dims))
        whole, made = self.copy
        dims = made.dims or ()
        found = cuts(whole, t, [dims.index(d) if d >= 0 else -1 for d in self.dims])
        return *made.cuts, *((dims[d], *cut) for d, *cut in found)

    @property
    def straight(self) -> bool:
        """Whether all dimensions are in the parameter's order."""
        return self.dims == tuple(range(len(self.dims)))


@dataclass(frozen=True)
class Made:
    """A tensor that is computed from parameters.

    Attributes:
        sources: their names; the first is the weight that all is about.
        what: the tensor's part in standardising that weight (rules/weights.py).
        how: if it may take the weight's place in a layer: how it is computed.
        spreads: the corrections of the variances that went into it.
        dims: if it is a copy of that weight, or of a part of it: which of the weight's dimensions its own are.
        kernels: whether it is [out, in, ...] as that weight is, and linear in it, kernel by kernel (rules/kernels.py).
        cuts: how what was copied was less than all of that weight.
        formula: stands for all operations that made it, and for the numbers in them: what code takes for a number may
            be the size of something that grows.
        each: of a copy: stands for one of several that are the same, however many there are.
        alike: along which dimensions these are.
        function: of a copy: stands for what has been done with each of its elements, if anything has.
    """

    sources: tuple[str, ...]
    what: str = ""
    how: Computed | None = None
    spreads: frozenset[int] = frozenset()
    formula: bytes = b""
    kernels: bool = False
    dims: tuple[int, ...] | None = None
    cuts: tuple[tuple[int, ...], ...] = ()
    each: bytes = b""
    alike: frozenset[int] = frozenset()
    function: bytes = b""


class Parameters:
    """A model's parameters and buffers, by the memory that they are in."""

    def __init__(self, model: nn.Module) -> None:
        self._owners: dict[int, list[tuple[str, Tensor]]] = {}
        # Weights that are computed, by the memory that they are in: as tensors, which keeps that memory theirs.
        self._computed: dict[int, tuple[Tensor, Made]] = {}
        for name, t in named_tensors(model):
            self._owners.setdefault(t.untyped_storage()._cdata, []).append((name, t))

    def begin(self) -> None:
        """A walk begins: what was computed in the last one is forgotten."""
        self._computed = {}

    def compute(self, t: Tensor, made: Made) -> None:
        """`t` is computed from parameters alone."""
        self._computed[t.untyped_storage()._cdata] = t, made

    def forget(self, t: Tensor) -> None:
        """`t` is written to: it is not what it was made as any more."""
        self._computed.pop(t.untyped_storage()._cdata, None)

    def made(self, t: Tensor) -> Made | None:
        """How a tensor is computed from parameters, if it is (or is a part of one, or a view of it)."""
        known = self._computed.get(t.untyped_storage()._cdata)
        return None if known is None else known[1]

    def weight(self, t: Tensor) -> Handle | None:
        """The parameter or buffer that `t` is, as a whole or a part of each kernel, or whose place it takes; None if
        there is none. A transposed view counts."""
        known = self._computed.get(t.untyped_storage()._cdata)
        if known is None:
            return self.handle(t, whole=True) or self._kernels_of(t)
        whole, made = known
        parameter = self.named(made.sources[:1])[0][1]
        if made.kernels:
            if (view := _kernels(whole, t)) is None:
                return None
            return Handle(made.sources[0], parameter, view[0], None, digest(made.formula, view[1]))
        if made.how is None or whole.shape != parameter.shape:
            return None
        if t.dim() != whole.dim() or t.storage_offset() != whole.storage_offset() or t.dtype != whole.dtype:
            return None
        dims = _dims(whole, t, whole=True)
        return None if -1 in dims else Handle(made.sources[0], parameter, dims, made.how, made.formula)

    def _kernels_of(self, t: Tensor) -> Handle | None:
        for name, p in self.owners(t):
            if (view := _kernels(p, t)) is not None:
                return Handle(name, p, view[0], None, view[1])
        return None

    def named(self, names: Sequence[str]) -> list[tuple[str, Tensor]]:
        """Parameters and buffers by their names."""
        return [owner for owners in self._owners.values() for owner in owners if owner[0] in names] if names else []

    def __contains__(self, t: Tensor) -> bool:
        """Whether `t` is a parameter or buffer, or shares memory with one."""
        return t.untyped_storage()._cdata in self._owners

    def in_memory(self, storage: int) -> bool:
        """Whether a parameter or buffer is in the storage with this address."""
        return storage in self._owners

    def within(self, module: str) -> list[Tensor]:
        """Those of a module and its children; of all, if it is the model itself (`""`)."""
        under = f"{module}." if module else ""
        return [t for owners in self._owners.values() for name, t in owners if name.startswith(under)]

    def owners(self, t: Tensor) -> list[tuple[str, Tensor]]:
        """The parameters and buffers whose memory `t` is in, by name."""
        return self._owners.get(t.untyped_storage()._cdata, [])

    def rows(self, t: Tensor) -> tuple[str, int, int] | None:
        """If the matrix `t`, transposed, is consecutive rows of one (the queries of attention's joint weight): its
        name, the number of its rows, and the first of these."""
        for name, p in self.owners(t):
            if p.dtype == t.dtype and p.dim() == t.dim() == 2 and p.is_contiguous() and p.shape[1]:
                first, rest = divmod(int(t.storage_offset() - p.storage_offset()), p.shape[1])
                if t.stride() == (1, p.shape[1]) and t.shape[0] == p.shape[1] and not rest:
                    return name, p.shape[0], first
        return None

    def handle(self, t: Tensor, whole: bool = False) -> Handle | None:
        """The parameter or buffer that `t` is, or a view of, or (unless `whole`) of a copy; None if it is neither.

        Args:
            whole: only one that `t` is as a whole. A transposed view counts; a slice or a reshaped view does not.
        """
        known = None if whole else self._computed.get(t.untyped_storage()._cdata)
        if known is not None and known[1].dims is not None and known[0].dtype == t.dtype:
            copy, made = known
            assert made.dims is not None
            dims = tuple(made.dims[d] if d >= 0 else -1 for d in _dims(copy, t, whole=False))
            return Handle(*self.named(made.sources[:1])[0], dims, None, made.formula, (copy, made))
        for name, p in self.owners(t):
            if p.dtype != t.dtype:
                continue
            if whole and (p.storage_offset() != t.storage_offset() or p.dim() != t.dim()):
                continue
            dims = _dims(p, t, whole)
            if not whole or -1 not in dims:
                return Handle(name, p, dims)
        return None


def _dims(p: Tensor, t: Tensor, whole: bool) -> tuple[int, ...]:
    """For each dimension of `t`, a view of `p`, the dimension of `p` that it is, or is a part of unless `whole`."""
    dims: list[int] = []
    for size, stride in zip(t.shape, t.stride(), strict=True):
        matching = [
            d for d, (n, s) in enumerate(zip(p.shape, p.stride(), strict=True))
            if s == stride and d not in dims and (n == size or (n > size > 1 and not whole))
        ]  # fmt: skip
        # A dimension of size 1 has an arbitrary stride, and sizes may repeat: prefer the same position.
        at = len(dims)
        certain = matching and (whole or (stride and size > 1))
        dims.append(at if at in matching else matching[0] if certain else -1)
    return tuple(dims)


def _kernels(p: Tensor, t: Tensor) -> tuple[tuple[int, ...], bytes] | None:
    """If `t` is a view of `p`, [out, in, ...], with the same of each kernel behind the first two dimensions (in another
    shape, or a part of it), perhaps with these exchanged: its dimensions, as a `Handle` has them, and what stands for
    the view."""
    if p.dim() < 2 or t.dim() < 2 or p.dtype != t.dtype or not (p.numel() and t.numel()):
        return None
    size = p[0, 0].numel()
    strides = p.shape[1] * size, size
    first = int(t.storage_offset() - p.storage_offset())
    if _reach(p) != size - 1 or not 0 <= first <= first + _reach(t) < size:
        return None
    for order in ((0, 1), (1, 0)):
        # (How far apart they are does not matter where there is only one.)
        theirs = [(p.shape[at], p.stride(at), t.shape[d], t.stride(d)) for d, at in enumerate(order)]
        steps = [strides[at] for at in order]
        if all(n == m and (n == 1 or a == b == step) for (n, a, m, b), step in zip(theirs, steps, strict=True)):
            return (*order, *range(2, t.dim())), digest(first, tuple(t.shape[2:]), t.stride()[2:])
    return None


def _reach(t: Tensor) -> int:
    """How far the last element of a kernel is from its first."""
    return sum((n - 1) * step for n, step in zip(t.shape[2:], t.stride()[2:], strict=True))
