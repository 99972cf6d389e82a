"""choices: what the caller of a widening wants, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from net2net import mapping as maps
from net2net.plan_fields import whole
from net2net.widen_plan import NOISES, check_noise

Width = float | Mapping[str, float | int]

#: How replicas are chosen; or, for some layers, which they are.
How = str | Mapping[str, Sequence[int] | np.ndarray | Tensor]


@dataclass(frozen=True, eq=False)
class Choices:
    """The arguments of `plan_widen`, which says what they mean."""

    width: Width
    layers: str | Sequence[str] | None = None
    mapping: How = "random"
    split: str = "uniform"
    noise: str = "cancelling"
    noise_scale: float | None = None
    multiple_of: int = 1
    seed: int = 0
    strict: bool = False

    @property
    def targets(self) -> dict[str, float | int] | None:
        """Width by layer; None where it is a factor."""
        return dict(self.width) if isinstance(self.width, Mapping) else None

    @property
    def factor(self) -> float | None:
        return None if isinstance(self.width, Mapping) else float(self.width)

    @property
    def wanted(self) -> list[str] | None:
        """The layers to widen, or None for all."""
        return [self.layers] if isinstance(self.layers, str) else None if self.layers is None else list(self.layers)

    @property
    def scale(self) -> float:
        return NOISES[self.noise] if self.noise_scale is None else float(self.noise_scale)

    @property
    def how(self) -> str:
        """Of the layers for which no map is given."""
        return self.mapping if isinstance(self.mapping, str) else "random"

    @property
    def given(self) -> dict[str, np.ndarray]:
        """Layer -> map, int64."""
        if isinstance(self.mapping, str):
            return {}
        return {name: _map(name, values) for name, values in self.mapping.items()}

    def check(self) -> None:
        """TypeError or ValueError for a bad argument, by name and value."""
        if self.layers is not None and not isinstance(self.layers, str | Sequence):
            raise TypeError(f"layers (={self.layers!r}) must be a name or a list of names")
        for name, value in self.width.items() if isinstance(self.width, Mapping) else [("", self.width)]:
            what = f"width[{name!r}]" if name else "width"
            if not isinstance(name, str):
                raise TypeError(f"width has a key (={name!r}) that is not the name of a layer")
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{what} (={value!r}) must be a finite number")
            if value < 1:
                raise ValueError(f"{what} (={value!r}) must be at least 1: every unit must be kept")
        if isinstance(self.width, Mapping) and not self.width:
            raise ValueError("width (={}) names no layers")
        if self.layers is not None and not self.layers:
            raise ValueError(f"layers (={self.layers!r}) names no layers")
        if self.targets is not None and self.layers is not None:
            raise ValueError("layers must be None where width is a mapping, which names the layers itself")
        if isinstance(self.mapping, str):
            if self.mapping not in maps.MAPPINGS:
                raise ValueError(f"mapping (={self.mapping!r}) must be one of {', '.join(map(repr, maps.MAPPINGS))}")
        elif not isinstance(self.mapping, Mapping) or not all(isinstance(name, str) for name in self.mapping):
            raise TypeError(f"mapping (={type(self.mapping).__name__}) must be a name, or maps by names of layers")
        for name, values in self.given.items():
            units = int(values.max(initial=-1)) + 1
            maps.check_map(f"mapping[{name!r}]", values, units)
            if (values[:units] != np.arange(units)).any():
                raise ValueError(f"mapping[{name!r}] must begin with all {units} units in order")
        if self.split not in maps.SPLITS:
            raise ValueError(f"split (={self.split!r}) must be one of {', '.join(map(repr, maps.SPLITS))}")
        check_noise(self.noise, self.noise_scale)
        whole("multiple_of", self.multiple_of, 1)
        whole("seed", self.seed)


def _map(name: str, values: Any) -> np.ndarray:
    try:
        found = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"mapping[{name!r}] (={type(values).__name__}) must be a list of units: {error}") from error
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise TypeError(f"mapping[{name!r}] must be a list of units, not {found.ndim}-D of {found.dtype}")
    return found.astype(np.int64)
