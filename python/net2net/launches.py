"""Prepared launches of a growth plan, made when they are first needed and kept for the next time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from n2n_kernels import GatherScalePlan


class Entry(NamedTuple):
    """What is moved: a parameter or buffer by its teacher's name (power None), or state that an optimizer keeps of it
    and that goes with this power of the output split."""

    name: str
    power: int | None


class Law(NamedTuple):
    """What becomes of the first two axes, as `gather_scale` takes it; or, if `late` is not 0, of that axis (as
    `in_map`)."""

    out_map: Tensor | None = None
    in_map: Tensor | None = None
    out_scale: Tensor | None = None
    in_scale: Tensor | None = None
    late: int = 0


@dataclass(frozen=True, eq=False)
class Prepared:
    """A launch, where in it a tensor of a name and dtype is, and which axis behind the second one of each tensor grows
    (0: none). `plain`: the kernels take all of its tensors as they are."""

    launch: GatherScalePlan
    places: dict[tuple[str, torch.dtype], int]
    late: list[int]
    plain: bool

    def serves(self, device: torch.device, wanted: list[tuple[str, torch.dtype]]) -> bool:
        return self.launch.device == device and all(w in self.places for w in wanted)


class Launches:
    """The launches of one growth plan, by what they move.

    A cache: it is no part of what the plan says, so a copied or unpickled plan starts with none. Threads may share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._prepared: dict[object, Prepared] = {}

    def __reduce__(self) -> tuple[type[Launches], tuple[()]]:
        return Launches, ()

    def get(
        self,
        entries: Sequence[Entry],
        tensors: Sequence[Tensor],
        law: Callable[[Entry], Law],
        noise: str,
        tensor_ids: dict[str, int],
    ) -> Prepared:
        """The launch for these entries (at least one). Of the tensors, one per entry, shapes, dtypes and the device
        count.

        Raises:
            ValueError, TypeError: if tensors are on several devices, or sparse.
        """
        dtypes = list(map(attrgetter("dtype"), tensors))
        device = tensors[0].device
        if {*map(attrgetter("device", "layout"), tensors)} != {(device, torch.strided)}:
            for entry, t in zip(entries, tensors, strict=True):
                if t.device != device:
                    raise ValueError(f"{entry.name} is on {t.device}, but {entries[0].name} on {device}")
                if t.layout is not torch.strided:
                    raise TypeError(f"{entry.name} has the layout {t.layout}, which cannot be grown")
        key = device, tuple(entries), tuple(dtypes)
        with self._lock:
            if key not in self._prepared:
                wanted = [(e.name, dtype) for e, dtype in zip(entries, dtypes, strict=True)]
                out_maps, in_maps, out_scales, in_scales, late = zip(*map(law, entries), strict=True)
                # What has been prepared for the weights has the maps for their optimizer's state, and for a part of
                # them.
                base = next((p for p in self._prepared.values() if p.serves(device, wanted)), None)
                if base is not None:
                    places = [base.places[w] for w in wanted]
                    launch = base.launch.derive(places, out_scales=out_scales, in_scales=in_scales)
                else:
                    ids = [tensor_ids[e.name] for e in entries]
                    launch = GatherScalePlan(
                        flattened(tensors, late), out_maps, in_maps, out_scales=out_scales, in_scales=in_scales,
                        noise=noise, tensor_ids=ids,
                    )  # fmt: skip
                plain = not any(late) and all(map(Tensor.dim, tensors))
                self._prepared[key] = Prepared(launch, {w: i for i, w in enumerate(wanted)}, list(late), plain)
            return self._prepared[key]


def run(prepared: Prepared, tensors: Sequence[Tensor], noise_std: Tensor | float = 0.0, seed: int = 0) -> list[Tensor]:
    """The grown tensors. On the meta device there is nothing to launch."""
    launch = prepared.launch
    flat = list(tensors) if prepared.plain else flattened(tensors, prepared.late)
    if launch.device.type == "meta":
        grown = launch.bind(flat, noise_std=noise_std, seed=seed).out
    else:
        grown = launch(flat, noise_std=noise_std, seed=seed)
    if prepared.plain:
        return grown
    return [
        new if old.dim() and not late else _as(old, late, new)
        for old, late, new in zip(tensors, prepared.late, grown, strict=True)
    ]


def flattened(tensors: Sequence[Tensor], late: Sequence[int]) -> list[Tensor]:
    """The kernels take no tensor without dimensions, and move the first two axes. A tensor that grows along a later one
    (an embedding of positions) is seen as [all before it, that axis, all behind it]."""
    return [
        t if t.dim() and not axis else t.view(1) if not axis else t.flatten(axis + 1).flatten(0, axis - 1)
        if t.dim() > axis + 1 else t.flatten(0, axis - 1)
        for t, axis in zip(tensors, late, strict=True)
    ]  # fmt: skip


def _as(old: Tensor, late: int, new: Tensor) -> Tensor:
    """`new` with the dimensions of `old`, but for the one that grew."""
    return new.view([new.shape[1] if late and d == late else n for d, n in enumerate(old.shape)])
