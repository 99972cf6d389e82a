"""Fixtures of the benchmarks, and the machine's description beside their results."""

from typing import Any

import pytest
import torch
from net2net.environment import environment
from timing import clock


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["environment"] = environment()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    timer = clock()
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=timer, disable_gc=True))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
