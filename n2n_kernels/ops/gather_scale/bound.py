"""BoundGatherScale: a plan with tensors, of which only the launch is left to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from n2n_kernels.ops.gather_scale.forms import Forms
from n2n_kernels.ops.gather_scale.request import Kind
from n2n_kernels.ops.gather_scale.tasks import Column, Launch
from n2n_kernels.ops.memory import Memory, mark_written
from n2n_kernels.table import upload

if TYPE_CHECKING:
    from n2n_kernels.ops.gather_scale.plan import GatherScalePlan


NO_MEMORY = (
    "a plan makes tensors with memory, and torch would make others: fake tensors and functionalization know operators "
    "only, such as n2n_kernels.gather_scale"
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A launch whose tables are on the device."""

    launch: Launch
    tasks: np.ndarray  # int64 [tasks, words]; addresses of tables are in place, those of tensors are not
    tiles: Tensor  # int32 [tiles, 4]
    streaming: bool


@dataclass(frozen=True, eq=False)
class Part:
    """A prepared launch with tensors."""

    prepared: Prepared
    tasks: Tensor  # int64 [tasks, words]


@dataclass(frozen=True, eq=False)
class Item:
    """One tensor's part, for backends that do not read tables: of the student, the rows from `begin` to `end` (None: to
    the last one)."""

    src: Tensor
    out: Tensor
    kind: Kind
    sigma: float
    tensor_id: int
    begin: int = 0
    end: int | None = None

    @property
    def rows(self) -> slice:
        return slice(self.begin, self.end)


class BoundGatherScale:
    """A `GatherScalePlan` with tensors: what `GatherScalePlan.bind` returns.

    Attributes:
        out: the student tensors, which `run` writes.
    """

    def __init__(
        self,
        plan: GatherScalePlan,
        sources: Memory,
        out: list[Tensor],
        forms: Forms,
        sigma: np.ndarray | Tensor | None,
        seed: int,
    ) -> None:
        self.out = out
        self.noise, self.seed = plan._noise, seed
        self._plan, self._sources, self._sigma = plan, sources, sigma
        self._copies: list[tuple[Tensor, Tensor]] = []
        self.parts: list[Part] = []
        self._kept: list[Tensor] = []
        self._stream = torch.cuda.current_stream(plan.device) if plan.device.type == "cuda" else None
        if plan.backend != "reference":
            self._build(forms)

    def _build(self, forms: Forms) -> None:
        plan, device = self._plan, self._plan.device
        to = np.fromiter(map(Tensor.data_ptr, self.out), np.int64, len(self.out))
        if device.type != "meta" and any(self.out[i].numel() for i in np.flatnonzero(to == 0).tolist()):
            raise RuntimeError(NO_MEMORY)
        from_ = self._sources.addresses.copy()
        for i in forms.copied:  # `run` fills the copies
            src = self._sources.tensors[i]
            copy = torch.empty(src.shape, dtype=src.dtype, device=device)
            self._copies.append((copy, src.detach()))  # which keeps the memory, whatever becomes of `src`
            from_[i] = copy.data_ptr()
        sigmas = self._sigma
        if isinstance(sigmas, np.ndarray):
            sigmas = upload(sigmas, device).view(torch.float64)
        if sigmas is not None:
            self._kept.append(sigmas)
        for prepared in plan._prepare(forms):
            members = prepared.launch.members
            tasks = prepared.tasks.copy()
            tasks[:, Column.SRC], tasks[:, Column.DST] = from_[members], to[members]
            if sigmas is not None:
                tasks[:, Column.SIGMA] = sigmas.data_ptr() + 8 * members
            table = upload(tasks, device).view(torch.int64).view(tasks.shape)
            self.parts.append(Part(prepared, table))
            self._kept += [table, prepared.tiles]
        self._kept += plan._buffers()

    def keep_outputs(self) -> None:
        """Keeps the memory that the outputs have now, which they may lose before `run`. (That of the sources is kept
        in any case.)"""
        self._out_storages = list(map(Tensor.untyped_storage, self.out))

    @property
    def has_noise(self) -> bool:
        return self._sigma is not None

    def items(self) -> list[Item]:
        """What the parts say, tensor by tensor."""
        plan = self._plan
        sigma = [0.0] * len(self.out) if self._sigma is None else self._sigma.tolist()
        parts = zip(self._sources.tensors, self.out, plan._kinds, sigma, plan._ids, strict=True)
        return [Item(*part) for part in parts]

    def run(self) -> list[Tensor]:
        """Reads the sources as they are now and writes `out`, which it returns. One launch per dtype on the current
        stream: nothing is allocated or uploaded, so it may be captured into a CUDA graph, which must not outlive this
        object. (Sources that the kernels cannot read in place are first copied, by one launch each.)"""
        mark_written(self.out)
        return self.first_run()

    def first_run(self) -> list[Tensor]:
        """The same, for outputs that nobody has seen yet: no backward pass can have saved them."""
        if not self.out:
            return self.out
        with torch.no_grad():
            for copy, src in self._copies:
                copy.copy_(src)
            if self._plan.device.type == "cuda":
                stream = torch.cuda.current_stream(self._plan.device)
                if stream != self._stream:  # the allocator knows of the stream that it allocated for
                    for buffer in self._kept:
                        buffer.record_stream(stream)
            self._plan._module.run(self)
        return self.out
