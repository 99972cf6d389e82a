"""A case's tensors, made once and used by all of its contenders: as many sets of them as a cold cache needs."""

from pathlib import Path
from typing import NamedTuple

import torch
from cases import Case, Growth
from torch import Tensor


class Job(NamedTuple):
    """One tensor's growth, with all that the peers need ready on its device: a scale of the shape they multiply by."""

    weight: Tensor
    out_map: Tensor
    in_map: Tensor | None
    scale: Tensor | None
    student: tuple[int, ...]


def cache_bytes(device: torch.device) -> int:
    """The size of the last cache before memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 32 * 2**20


class Inputs:
    """The tensors of a case: `sets[n][i]` is tensor i of copy n."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        self.device = device
        first = case.tensors(device)
        # Only the places in memory differ: the same results serve to check every set.
        self.sets = [first] + [[t.clone() for t in first] for _ in range(case.sets(cache_bytes(device)) - 1)]


class GrowthInputs(Inputs):
    """With maps and scales, on the host as a plan has them; `jobs[n]` is the same for the peers."""

    def __init__(self, case: Growth, device: torch.device) -> None:
        super().__init__(case, device)
        self.growth = case
        shapes = case.all_shapes
        # Shared between the axes of one size, as between the layers of a network.
        maps = {units: case.axis_map(units) for shape in case.shapes for units in shape[:2]}
        power = 1 if case.state_power is None else case.state_power
        scales = {units: (1.0 / g.bincount()[g]) ** power for units, g in maps.items()}
        on_inputs = case.state_power is None
        self.out_maps = [maps[shape[0]] for shape in shapes]
        self.in_maps = [maps[shape[1]] if len(shape) > 1 else None for shape in shapes]
        self.in_scales = [scales[shape[1]] if on_inputs and len(shape) > 1 else None for shape in shapes]
        self.out_scales = [None if on_inputs else scales[shape[0]] for shape in shapes]

        maps_there = {units: g.to(device) for units, g in maps.items()}
        scales_there = {units: c.to(device, case.dtype) for units, c in scales.items()}

        def job(weight: Tensor) -> Job:
            rows, columns = weight.shape[0], weight.shape[1] if weight.dim() > 1 else None
            kernel = [1] * (weight.dim() - 2)
            scale = None
            if not on_inputs:
                scale = scales_there[rows].view([-1, *[1] * (weight.dim() - 1)])
            elif columns is not None:
                scale = scales_there[columns].view(1, -1, *kernel)
            in_map = None if columns is None else maps_there[columns]
            return Job(weight, maps_there[rows], in_map, scale, case.student(tuple(weight.shape)))

        self.jobs = [[job(weight) for weight in srcs] for srcs in self.sets]


def inputs_of(case: Case, device: torch.device) -> Inputs:
    return GrowthInputs(case, device) if isinstance(case, Growth) else Inputs(case, device)
