"""inference: collects the units of a teacher, and what must be replicated alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from net2net.caches import Place
from net2net.context import Context
from net2net.hashes import expression, mix, seed, total
from net2net.shadows import codes, ids_of
from net2net.units import CONSTANT, FIXED, Axis, Units


def row_keys(rows: np.ndarray) -> np.ndarray:
    """int64 [n]: for each column of the codes [rows, n], one number for its values."""
    return expression("rows", ids_of(rows)).astype(np.int64)


class Left(NamedTuple):
    """The codes of what a forward left in a tensor (of size 1 along dimensions along which they are all the same; None:
    it is what it was), and its shape."""

    values: np.ndarray | None
    shape: tuple[int, ...]


class Run(NamedTuple):
    """What a forward returned, and what it left in tensors that it wrote to, by their names."""

    training: bool
    returned: list[np.ndarray]
    left: dict[str, Left]


class Inference(Context):
    """Collects the units of a teacher."""

    def __init__(self, model: nn.Module, units: Units, caches: Sequence[Place] = ()) -> None:
        super().__init__(model, units, caches)
        self.places = list(caches)
        self.made = units.made
        self.runs: list[Run] = []  # in eval mode, and in train mode if that could be walked too
        self._left: dict[str, Left] = {}
        # What it notes down in what modules hold, if it does, in each of its modes (echo.tallied).
        self.tallies: list[dict[str, str | None]] = []  # None: it is another each time
        # The numbers in what train mode does beside what eval mode does; None: it does something else (echo.py).
        self.left_out: list[Any] | None = None
        # What was decided by what was not joined at that time: pairs of ids, and what `crossing` was asked.
        self.written = False  # whether the forward writes to dicts or records that modules hold
        self.not_run: list[str] = []  # the parameters that are not used
        self._used = set[int]()
        self._apart: list[tuple[int, int]] = []
        self._crossing: dict[tuple[str, str], np.ndarray] = {}
        self._beside: list[tuple[np.ndarray, str, int]] = []
        self._along: dict[tuple[str, int, str, int], int] = {}  # with the size of the axis

    def settled(self) -> bool:
        """Whether all would be decided as it was, now that more is joined."""
        a, b = np.array(self._apart, dtype=np.int64).reshape(-1, 2).T
        return not (self.units.places.roots(a) == self.units.places.roots(b)).any() and all(
            self.units.crossing(ids) == self.units.decisions[key] for key, ids in self._crossing.items()
        )

    @property
    def modes(self) -> list[bool]:
        """The modes that it runs in: whether it is train mode."""
        return [False, True] if self.left_out is not None else [run.training for run in self.runs]

    def finished(self, training: bool) -> None:
        self.runs.append(Run(training, self.outputs, self._left))
        self.outputs, self._left = [], {}
        for values, name, dim in self._beside:
            if (axis := self.units.axes.get((name, dim))) is not None:
                self.join(values, codes(axis.ids()))
            else:
                self.pin(values, f"{name} is not used as a weight")
        self._beside = []
        for (name, dim, weight, of), size in reversed(self._along.items()):  # a multiplier may be a product itself
            self.units.multiply(name, dim, size, weight, of)
        self.units.settle_computed()
        self.units.carry(self.carriers.settled(), self.carriers.read())

    def leave(self, name: str, values: np.ndarray | None, shape: tuple[int, ...], like_before: bool) -> None:
        self._left[name] = Left(values, shape)
        if values is None:
            return
        places = np.where(self.roots(values) > FIXED, self.units.places.roots(ids_of(values)), FIXED)
        along = [d for d in range(values.ndim) if (places != places.take([0], axis=d)).any()]
        known = {d: axis for d in range(values.ndim) if (axis := self.units.axes.get((name, d))) and axis.roles}
        if len(along) == 1 and not known and like_before:
            known = {along[0]: self._axis(name, along[0], values.shape[along[0]], "each")}
        # What a forward leaves along an axis, the next one finds there.
        for dim, axis in known.items():
            if along == [dim] and axis.size == values.shape[dim]:
                self.join(np.moveaxis(values, dim, -1), codes(axis.ids()))
            elif along:
                why = f"other units are left in {name} than are read from there"
                self.pin(values, why)
                self.pin(codes(axis.ids()), why)

    def beside(self, values: np.ndarray, name: str, dim: int) -> None:
        self._beside.append((values, name, dim))

    def along(self, name: str, dim: int, size: int, weight: str, of: int) -> None:
        self._along[name, dim, weight, of] = size

    def _axis(self, name: str, dim: int, size: int, role: str) -> Axis:
        axis = self.units.axis(name, dim, size)
        axis.roles.add(role)
        return axis

    def produce(self, name: str, dim: int, size: int, role: str = "out") -> np.ndarray:
        return codes(self._axis(name, dim, size, role).ids())

    def meet(self, name: str, dim: int, size: int, role: str, rows: np.ndarray, why: str) -> np.ndarray:
        new = (name, dim) not in self.units.axes
        axis = self._axis(name, dim, size, role)
        ids = axis.ids()
        if new and len(rows):
            self.units.begin(axis, ids_of(rows[0]))
        for row in np.unique(rows, axis=0) if len(rows) > 1 else rows:
            self._meeting(ids, row, why)
        if axis.met is None:
            axis.met = row_keys(rows)
        return codes(ids)

    def _meeting(self, ids: np.ndarray, row: np.ndarray, why: str) -> None:
        self.units.join(ids, ids_of(row))
        if (stuck := self.roots(row) == FIXED).any():
            self.units.pin(ids[stuck], why + self.where())

    def tie(self, made: np.ndarray, operands: Sequence[np.ndarray]) -> np.ndarray:
        for operand in operands:
            self.units.join(made, ids_of(operand))
        return codes(made)

    def fuse(self, rows: np.ndarray) -> np.ndarray:
        self.units.fuse(ids_of(rows))
        return np.zeros(len(rows), dtype=np.int64)

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        a, b = np.broadcast_arrays(a, b)
        self.units.join(ids_of(a), ids_of(b))

    def pin(self, values: np.ndarray, why: str) -> None:
        self.units.pin(ids_of(values).ravel(), why + self.where())

    def signature(self, hashes: np.ndarray, about: np.ndarray) -> np.ndarray:
        ids = self.units.intern(hashes)
        self.units.adopt(ids, CONSTANT)
        return ids

    def grow_with(self, made: np.ndarray, units: np.ndarray) -> None:
        self.units.blocks.join(made, units)

    def take_part(self, tensors: Iterable[Tensor]) -> None:
        self._used.update(t.untyped_storage()._cdata for t in tensors)

    def idle(self, model: nn.Module) -> list[str]:
        """The parameters of what was walked that no operation was given, and the statistics of norms without any: those
        of what the example does not run."""
        norms = [(k, m) for k, m in model.named_modules() if isinstance(m, _NormBase) and not m.affine]
        statistics = ((f"{k}.running_mean" if k else "running_mean", m.running_mean) for k, m in norms)
        held = itertools.chain(model.named_parameters(), statistics)
        return [k for k, t in held if t is not None and t.untyped_storage()._cdata not in self._used]

    def cut(self, end: int) -> None:
        self.units.cuts.add((self.module, end))

    def crossing(self, rows: np.ndarray, what: str) -> bool:
        key = self.module, what
        if key not in self.units.decisions:
            self._crossing[key] = ids_of(rows)
            self.units.decisions[key] = self.units.crossing(self._crossing[key])
        return self.units.decisions[key]

    def apart(self, a: int, b: int) -> None:
        self._apart.append((a, b))

    def read(self, values: np.ndarray) -> None:
        self.units.read(ids_of(values))

    def contracted(self, axis: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
        self.read(rows)
        return total(mix(mix(seed("term"), ids_of(axis)), ids_of(rows)))
