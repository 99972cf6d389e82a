"""identity_ in plain torch."""

import torch
from torch import Tensor


def run(tensors: list[Tensor], groups: list[int]) -> None:
    for t, g in zip(tensors, groups, strict=True):
        per_group = t.shape[0] // g
        t.zero_()
        if t.numel() == 0:
            continue
        centre = t
        for n in t.shape[2:]:
            centre = centre.select(2, n // 2)
        units = torch.arange(min(per_group, t.shape[1]), device=t.device)
        for first in range(0, t.shape[0], per_group):
            centre[first + units, units] = 1
