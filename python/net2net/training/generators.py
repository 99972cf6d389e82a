"""Random generators: a training run has its own, and leaves the process's as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def states() -> dict[str, Any]:
    """The states of the global generators of torch (the CPU's and the GPUs'), numpy and Python, as JSON holds them."""
    name, words, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (models may draw from the global one)
    version, internal, following = random.getstate()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in gpus],
        "numpy": [name, np.asarray(words).tolist(), position, has_gauss, gauss],
        "python": [version, list(internal), following],
    }


def set_states(saved: dict[str, Any]) -> None:
    """Put back what `states` returned."""
    torch.set_rng_state(_bytes(saved["torch"]))
    for device, state in enumerate(saved["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_bytes(state), device)
    name, words, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((name, np.array(words, dtype=np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, following = saved["python"]
    random.setstate((version, tuple(internal), following))


@contextmanager
def own(seed: int, saved: dict[str, Any] | None) -> Iterator[None]:
    """The generators are seeded, or go on from what was `saved`, and are put back at the end."""
    before = states()
    try:
        if saved is None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
        else:
            set_states(saved)
        yield
    finally:
        set_states(before)


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
