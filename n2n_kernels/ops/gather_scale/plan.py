"""GatherScalePlan: a prepared gather_scale. What can be done before the tensors are there is done once."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from n2n_kernels import rng
from n2n_kernels.backends import choose, implementation
from n2n_kernels.layout import Layout, layout_of, memory_format
from n2n_kernels.ops import checks
from n2n_kernels.ops.gather_scale import request as requests
from n2n_kernels.ops.gather_scale.request import Axis, Kind
from n2n_kernels.ops.gather_scale.tasks import POINTERS, Column, Launch, launches
from n2n_kernels.table import Arena, upload

#: Outputs of more bytes than this pass the caches by: half of the last-level cache of a large GPU, and of a processor.
_STREAMED_BYTES = {"cuda": 32 * 2**20, "cpu": 8 * 2**20}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A launch whose tables are on the device."""

    launch: Launch
    tasks: np.ndarray  # int64 [tasks, words]; addresses of tables are in place, those of tensors are not
    tiles: Tensor  # int32 [tiles, 4]
    streaming: bool


@dataclass(frozen=True, eq=False)
class Form:
    """How a source lies in memory (None: not as the kernels read it), and how the student tensor will that is made like
    it."""

    source: Layout | None
    memory_format: torch.memory_format
    target: Layout


@dataclass(frozen=True, eq=False)
class Part:
    """A prepared launch with tensors."""

    prepared: Prepared
    tasks: Tensor  # int64 [tasks, words]


@dataclass(frozen=True, eq=False)
class Item:
    """One tensor's part, for backends that do not read tables."""

    src: Tensor
    out: Tensor
    kind: Kind
    sigma: float
    tensor_id: int


class GatherScalePlan:
    """A `gather_scale` that is prepared once and run many times: on the weights, on each buffer of the optimizer, on a
    moving average.

    Maps and scales are checked and moved to the device here; tables for the tensors' layouts are made when they are
    first seen, and kept. What is left for a call is in `bind` (allocate, put the tensors' addresses into the table) and
    in `BoundGatherScale.run` (launch).

    A plan may be used from several threads at once, and its launches go to the current stream. It serves one device:
    make one for each.

    Args:
        srcs, out_maps, in_maps, out_scales, in_scales, tensor_ids, backend: as for `gather_scale`. Of `srcs` only
            shapes, dtypes and the device count; the plan keeps no reference to them.
        noise: the kind of noise that calls may ask for.

    Raises:
        ValueError, TypeError: as `gather_scale`.
    """

    def __init__(
        self,
        srcs: Sequence[Tensor],
        out_maps: Axis | None,
        in_maps: Axis | None,
        *,
        out_scales: Axis | None = None,
        in_scales: Axis | None = None,
        noise: str = "replicas",
        tensor_ids: Sequence[int] | None = None,
        backend: str | None = None,
    ) -> None:
        call = requests.as_call(srcs, out_maps, in_maps, out_scales, in_scales)
        ids = requests.as_tensor_ids(tensor_ids, len(call.srcs))
        requests.check_noise_name(noise)
        requests.check_tensor_ids(ids, len(call.srcs))
        device = call.srcs[0].device if call.srcs else torch.device("cpu")
        self._set(requests.kinds(call), noise, ids, device, choose(backend, device), None)

    def _set(
        self, kinds: list[Kind], noise: str, ids: list[int], device: torch.device, backend: str, base: Arena | None
    ) -> None:
        self._kinds, self._noise, self._ids = kinds, noise, ids
        self._device, self._backend, self._base = device, backend, base
        self._module = implementation("gather_scale", backend, device)
        self._lock = threading.Lock()
        self._prepared: dict[object, tuple[list[Prepared], Arena]] = {}
        self._forms: dict[tuple[Kind, tuple[int, ...]], Form] = {}
        self._largest_sigma: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> "GatherScalePlan":
        return self  # nothing that a caller sees of it ever changes

    def __reduce__(self) -> Any:
        raise TypeError("a GatherScalePlan holds addresses of a device's memory and cannot be pickled; make it anew")

    @property
    def device(self) -> torch.device:
        """Where the tensors must be."""
        return self._device

    @property
    def backend(self) -> str:
        """The name of the backend that runs it."""
        return self._backend

    def derive(
        self, entries: Sequence[int], *, out_scales: Axis | None = None, in_scales: Axis | None = None
    ) -> "GatherScalePlan":
        """A plan for other tensors with the same maps but other scales, such as the optimizer's state of the weights.

        It uses the maps that this plan has on the device.

        Args:
            entries: per tensor of the new plan, which tensor of this one it is like (shape, dtype and maps); in any
                order, any number of times.
            out_scales, in_scales: as for `gather_scale`, one per entry.
        """
        n = len(entries)
        for i, entry in enumerate(entries):
            checks.check_integer(f"entries[{i}]", entry)
            if not 0 <= entry < len(self._kinds):
                raise ValueError(f"entries[{i}] (={entry}) must be in [0, {len(self._kinds)})")
        scales = [requests.as_axis("out_scales", out_scales, n), requests.as_axis("in_scales", in_scales, n)]
        kinds = requests.rescaled([self._kinds[e] for e in entries], *scales)
        plan = object.__new__(GatherScalePlan)
        arena = next(iter(self._prepared.values()))[1] if self._prepared else self._base
        plan._set(kinds, self._noise, [self._ids[e] for e in entries], self._device, self._backend, arena)
        return plan

    def bind(
        self,
        srcs: Sequence[Tensor],
        out: Sequence[Tensor] | None = None,
        *,
        noise_std: float | Sequence[float] | Tensor = 0.0,
        seed: int = 0,
    ) -> "BoundGatherScale":
        """The plan with tensors: everything but the launch. It allocates, where `out` is None, and uploads the table.

        The table holds the tensors' addresses as they are now, and the result keeps that memory alive. A tensor that is
        given other memory later (`t.data = ...`, `module.to()`) has to be bound again.

        Args:
            srcs: tensors of the shapes and dtypes that the plan was made for, on its device, in any layout.
            out: as for `gather_scale`.
            noise_std: as for `gather_scale`; or a float64 tensor `[len(srcs)]` on the plan's device, which is not read
                back: there, what is not finite, negative or too large for the tensor's dtype gives no noise.
            seed: of the noise, in [0, 2**63).

        Raises:
            ValueError, TypeError: naming the argument and its value, before anything is written.
        """
        sources = checks.tensor_list("srcs", srcs)
        self._check_sources(sources)
        checks.check_integer("seed", seed)
        requests.check_seed(seed)
        sigma = self._sigma(noise_std, sources)
        forms = self._forms_of(sources)
        if out is None:
            targets = [
                torch.empty(kind.student_shape, dtype=kind.dtype, device=self._device, memory_format=form.memory_format)
                for kind, form in zip(self._kinds, forms, strict=True)
            ]
            layouts = [form.target for form in forms]
        else:
            targets = checks.tensor_list("out", out)
            requests.check_targets(sources, [kind.student_shape for kind in self._kinds], targets)
            for i, target in enumerate(targets):
                checks.check_memory(f"out[{i}]", target)
            checks.check_writable("out", targets)
            checks.check_disjoint("out", targets, "srcs", sources)
            layouts = [_layout(target) for target in targets]
        return BoundGatherScale(self, sources, targets, sigma, seed, [form.source for form in forms], layouts)

    def __call__(
        self,
        srcs: Sequence[Tensor],
        out: Sequence[Tensor] | None = None,
        *,
        noise_std: float | Sequence[float] | Tensor = 0.0,
        seed: int = 0,
    ) -> list[Tensor]:
        """`bind`, then `run`: the student tensors (`out`, if given)."""
        with torch.no_grad():
            return self.bind(srcs, out, noise_std=noise_std, seed=seed).run()

    def _check_sources(self, srcs: list[Tensor]) -> None:
        checks.check_length("srcs", srcs, len(self._kinds), "the plan")
        device = self._device
        for i, (src, kind) in enumerate(zip(srcs, self._kinds, strict=True)):
            if src.shape != kind.shape or src.dtype != kind.dtype or src.device != device:
                raise ValueError(
                    f"srcs[{i}] ({src.dtype}, shape {tuple(src.shape)}, on {src.device}) is not what the plan was made "
                    f"for ({kind.dtype}, shape {tuple(kind.shape)}, on {self._device})"
                )
            if type(src) is not Tensor or src.is_neg() or not src.data_ptr():
                checks.check_memory(f"srcs[{i}]", src)

    def _forms_of(self, srcs: list[Tensor]) -> list[Form]:
        """How the sources and their students lie. Tensors of a kind lie in few ways."""
        known = self._forms
        result = []
        for src, kind in zip(srcs, self._kinds, strict=True):
            key = kind, src.stride()
            form = known.get(key)
            if form is None:
                lies = memory_format(src)
                student = torch.empty(kind.student_shape, device="meta", memory_format=lies)
                form = known[key] = Form(layout_of(src), lies, _layout(student))
            result.append(form)
        return result

    def _sigma(self, noise_std: float | Sequence[float] | Tensor, srcs: list[Tensor]) -> np.ndarray | Tensor | None:
        """The factor on the integer noise, float64 [n], on the host or on the device; None where all are zero."""
        if isinstance(noise_std, Tensor):
            for what, given, expected in (
                ("dtype", noise_std.dtype, torch.float64),
                ("shape", tuple(noise_std.shape), (len(srcs),)),
                ("device", noise_std.device, self._device),
            ):
                if given != expected:
                    raise ValueError(f"noise_std.{what} (={given}) must be {expected}")
            sigma = rng.sigma(noise_std, self._noise)
            if self._largest_sigma is None:
                largest = [torch.finfo(kind.dtype).max / rng.LARGEST[self._noise] for kind in self._kinds]
                self._largest_sigma = torch.tensor(largest, dtype=torch.float64, device=self._device)
            return torch.where((sigma >= 0) & (sigma <= self._largest_sigma), sigma, 0.0)
        stds = requests.as_stds(noise_std, len(srcs))
        requests.check_noise_stds(stds, self._noise, srcs)
        return rng.sigma(np.array(stds), self._noise) if any(stds) else None  # type: ignore[type-var]

    def _prepare(self, sources: list[Layout], targets: list[Layout]) -> list[Prepared]:
        """The launches for tensors of these layouts, made when they are first asked for."""
        key = tuple(sources), tuple(targets)
        with self._lock:
            if key not in self._prepared:
                base = next(iter(self._prepared.values()))[1] if self._prepared else self._base
                arena = Arena(self._device, base)
                made = launches(self._kinds, sources, targets, self._noise, self._ids, arena)
                addresses = arena.seal()
                prepared = []
                for launch in made:
                    tasks = launch.tasks.copy()
                    tasks[:, POINTERS] = addresses[tasks[:, POINTERS]]
                    tiles = upload(launch.tiles, self._device).view(torch.int32).view(-1, 4)
                    streaming = launch.output_bytes > _STREAMED_BYTES.get(self._device.type, math.inf)
                    prepared.append(Prepared(launch, tasks, tiles, streaming))
                self._prepared[key] = prepared, arena
            return self._prepared[key][0]


class BoundGatherScale:
    """A `GatherScalePlan` with tensors: what `GatherScalePlan.bind` returns.

    Attributes:
        out: the student tensors, which `run` writes.
    """

    def __init__(
        self,
        plan: GatherScalePlan,
        srcs: list[Tensor],
        out: list[Tensor],
        sigma: np.ndarray | Tensor | None,
        seed: int,
        sources: list[Layout | None],
        targets: list[Layout],
    ) -> None:
        self.out = out
        self.noise, self.seed = plan._noise, seed
        self._plan, self._srcs, self._sigma = plan, srcs, sigma
        self._copies: list[tuple[Tensor, Tensor]] = []
        self.parts: list[Part] = []
        self._kept: list[Tensor] = []
        # Of the tensors' memory, which they may lose before `run`.
        self._storages = [t.untyped_storage() for tensors in (srcs, out) for t in tensors]
        self._stream = torch.cuda.current_stream(plan.device) if plan.device.type == "cuda" else None
        if plan.backend != "reference":
            self._build(sources, targets)

    def _build(self, layouts: list[Layout | None], targets: list[Layout]) -> None:
        plan, device = self._plan, self._plan.device
        from_, to = ([t.data_ptr() for t in tensors] for tensors in (self._srcs, self.out))
        sources = []
        for i, (src, layout) in enumerate(zip(self._srcs, layouts, strict=True)):
            if layout is None or from_[i] % src.dtype.itemsize:
                # The kernels cannot read it as it lies (kernel dimensions that do not fold, an address that is no
                # multiple of the element's size): they read a copy, which `run` fills.
                copy = torch.empty(src.shape, dtype=src.dtype, device=src.device)
                self._copies.append((copy, src))
                layout, from_[i] = _layout(copy), copy.data_ptr()
            sources.append(layout)
        addresses = np.array([from_, to], dtype=np.int64).reshape(2, -1)
        sigmas = self._sigma
        if isinstance(sigmas, np.ndarray):
            sigmas = upload(sigmas, device).view(torch.float64)
        if sigmas is not None:
            self._kept.append(sigmas)
        for prepared in plan._prepare(sources, targets):
            members = prepared.launch.members
            tasks = prepared.tasks.copy()
            tasks[:, Column.SRC], tasks[:, Column.DST] = addresses[:, members]
            if sigmas is not None:
                tasks[:, Column.SIGMA] = sigmas.data_ptr() + 8 * members
            table = upload(tasks, device).view(torch.int64).view(tasks.shape)
            self.parts.append(Part(prepared, table))
            self._kept += [table, prepared.tiles]
        self._kept += [buffer for _, arena in list(plan._prepared.values()) for buffer in arena.buffers()]

    @property
    def has_noise(self) -> bool:
        return self._sigma is not None

    def items(self) -> list[Item]:
        """What the parts say, tensor by tensor."""
        plan = self._plan
        sigma = [0.0] * len(self.out) if self._sigma is None else self._sigma.tolist()
        parts = zip(self._srcs, self.out, plan._kinds, sigma, plan._ids, strict=True)
        return [Item(*part) for part in parts]

    def run(self) -> list[Tensor]:
        """Reads the sources as they are now and writes `out`, which it returns. One launch per dtype on the current
        stream: nothing is allocated or uploaded, so it may be captured into a CUDA graph, which must not outlive this
        object. (Sources that the kernels cannot read in place are first copied, by one launch each.)"""
        if not self.out:
            return self.out
        with torch.no_grad():
            for copy, src in self._copies:
                copy.copy_(src)
            checks.mark_written(self.out)
            if self._plan.device.type == "cuda":
                stream = torch.cuda.current_stream(self._plan.device)
                if stream != self._stream:  # the allocator knows of the stream that it allocated for
                    for buffer in self._kept:
                        buffer.record_stream(stream)
            self._plan._module.run(self)
        return self.out


def _layout(t: Tensor) -> Layout:
    """Of a tensor that is known to have one."""
    layout = layout_of(t)
    assert layout is not None
    return layout
