"""GatherScalePlan: a prepared gather_scale. What can be done before the tensors are there is done once."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from n2n_kernels import rng
from n2n_kernels.backends import choose, implementation
from n2n_kernels.ops import checks
from n2n_kernels.ops.gather_scale import request as requests
from n2n_kernels.ops.gather_scale import rows
from n2n_kernels.ops.gather_scale.bound import NO_MEMORY, BoundGatherScale, Prepared
from n2n_kernels.ops.gather_scale.forms import Forms, KnownForms
from n2n_kernels.ops.gather_scale.request import Axis, Kind
from n2n_kernels.ops.gather_scale.sources import Expected
from n2n_kernels.ops.gather_scale.tasks import POINTERS, launches
from n2n_kernels.ops.memory import Memory
from n2n_kernels.table import Arena, upload

#: Outputs of more bytes than this pass the caches by: half of the last-level cache of a large GPU, and of a processor.
_STREAMED_BYTES = {"cuda": 32 * 2**20, "cpu": 8 * 2**20}

Deviations = float | Sequence[float] | Tensor


class GatherScalePlan:
    """A `gather_scale` that is prepared once and run many times: on the weights, on each buffer of the optimizer, on a
    moving average.

    Maps and scales are checked and moved to the device here; tables for the tensors' layouts are made when they are
    first seen, and kept. What is left for a call is in `bind` (allocate, put the tensors' addresses into the table) and
    in `BoundGatherScale.run` (launch).

    A plan may be used from several threads at once, and its launches go to the current stream. It serves one device:
    make one for each. It is no operator: what records operators (`make_fx`) does not see its launches, and fake tensors
    and functionalization are refused; `gather_scale` is for these.

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
        self._prepared: dict[Forms, tuple[list[Prepared], Arena]] = {}
        self._forms = KnownForms(kinds, device)
        self._largest_sigma: Tensor | None = None
        self._expected = Expected(kinds, device)

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
        entries = checks.integer_list("entries", entries)
        n = len(entries)
        for i, entry in enumerate(entries):
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
        noise_std: Deviations = 0.0,
        seed: int = 0,
    ) -> "BoundGatherScale":
        """The plan with tensors: everything but the launch. It allocates, where `out` is None, and uploads the table.

        The table holds the tensors' addresses as they are now, and the result keeps that memory alive. A tensor that is
        given other memory later (`t.data = ...`, `module.to()`) has to be bound again; so has one whose storage itself
        is resized, which frees that memory.

        Args:
            srcs: tensors of the shapes and dtypes that the plan was made for, on its device, in any layout.
            out: as for `gather_scale`.
            noise_std: as for `gather_scale`; or a float64 tensor `[len(srcs)]` on the plan's device, which is not read
                back: there, what is not finite, negative or too large for the tensor's dtype gives no noise.
            seed: of the noise, in [0, 2**63).

        Raises:
            ValueError, TypeError: naming the argument and its value, before anything is written.
        """
        bound = self._bind(srcs, out, noise_std, seed)
        bound.keep_outputs()
        return bound

    def __call__(
        self,
        srcs: Sequence[Tensor],
        out: Sequence[Tensor] | None = None,
        *,
        noise_std: Deviations = 0.0,
        seed: int = 0,
    ) -> list[Tensor]:
        """`bind`, then `run`: the student tensors (`out`, if given)."""
        bound = self._bind(srcs, out, noise_std, seed)
        return bound.run() if out is not None else bound.first_run()

    def rows(self, src: Tensor, begin: int, end: int, *, noise_std: Deviations = 0.0, seed: int = 0) -> Tensor:
        """Rows `begin` to `end` (not included) of the student, with the bits that they have in the whole.

        For a tensor that is read from a file, and whose student does not fit into memory. Only on the CPU.

        Args:
            src: the teacher's tensor, contiguous; the plan must be for this one alone. Only the teacher rows that are
                copied are read.
            begin, end: 0 <= begin <= end <= the student's first extent.
            noise_std, seed: as for `bind`.

        Returns:
            `[end - begin, *rest of the student's shape]`.

        Raises:
            ValueError, TypeError: naming the argument and its value.
        """
        return rows.run(self, src, begin, end, noise_std, seed)

    def _bind(
        self, srcs: Sequence[Tensor], out: Sequence[Tensor] | None, noise_std: Deviations, seed: int
    ) -> BoundGatherScale:
        if is_in_torch_dispatch_mode() and type(torch.empty(0, device=self._device)) is not Tensor:
            raise RuntimeError(NO_MEMORY)
        sources = self._expected.check(checks.tensor_list("srcs", srcs))
        seed = checks.integer("seed", seed)
        requests.check_seed(seed)
        sigma = self._sigma(noise_std, sources.tensors)
        targets = None if out is None else self._checked_targets(checks.tensor_list("out", out), sources.tensors)
        forms = self._forms.of(sources, targets)
        made = _students(forms) if targets is None else targets.tensors
        return BoundGatherScale(self, sources, made, forms, sigma, seed)

    def _checked_targets(self, out: list[Tensor], srcs: list[Tensor]) -> Memory:
        requests.check_targets(srcs, [kind.student_shape for kind in self._kinds], out)
        memory = Memory(out)
        memory.check("out")
        memory.check_writable("out")
        memory.check_disjoint("out", "srcs", srcs)
        return memory

    def _sigma(self, noise_std: Deviations, srcs: list[Tensor]) -> np.ndarray | Tensor | None:
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
                largest = [torch.finfo(kind.dtype).max / rng.LARGEST for kind in self._kinds]
                self._largest_sigma = torch.tensor(largest, dtype=torch.float64, device=self._device)
            return torch.where((sigma >= 0) & (sigma <= self._largest_sigma), sigma, 0.0)
        stds = requests.as_stds(noise_std, len(srcs))
        requests.check_noise_stds(stds, self._noise, srcs)
        return rng.sigma(np.array(stds), self._noise) if any(stds) else None  # type: ignore[type-var]

    def _prepare(self, forms: Forms) -> list[Prepared]:
        """The launches for tensors of these forms, made when they are first asked for."""
        with self._lock:
            if forms not in self._prepared:
                base = next(iter(self._prepared.values()))[1] if self._prepared else self._base
                arena = Arena(self._device, base)
                made = launches(forms.each, self._noise, self._ids, arena)
                addresses = arena.seal()
                prepared = []
                for launch in made:
                    tasks = launch.tasks.copy()
                    tasks[:, POINTERS] = addresses[tasks[:, POINTERS]]
                    tiles = upload(launch.tiles, self._device).view(torch.int32).view(-1, 4)
                    streaming = launch.output_bytes > _STREAMED_BYTES.get(self._device.type, math.inf)
                    prepared.append(Prepared(launch, tasks, tiles, streaming))
                self._prepared[forms] = prepared, arena
            return self._prepared[forms][0]

    def _buffers(self) -> list[Tensor]:
        """What the addresses in prepared tasks lead to."""
        return [buffer for _, arena in list(self._prepared.values()) for buffer in arena.buffers()]


def _students(forms: Forms) -> list[Tensor]:
    """Uninitialised."""
    if not is_in_torch_dispatch_mode():
        return list(map(torch.empty_like, forms.like))
    # A mode may look at the values of what it is given, and these have none.
    return [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in forms.like]
