"""Clocks, and a measurement's surroundings: a cold cache before each round, and what ran on the device."""

import time
from collections.abc import Callable

import torch
from pytest_benchmark.fixture import BenchmarkFixture

#: More than the L2 of any GPU there is (60 MB on an H200).
FLUSH_BYTES = 256 * 2**20


class EventClock:
    """Seconds on the device's time line, by CUDA events. Each reading waits until the device is idle, so host time in
    which the device has nothing to do counts, as it does for users."""

    __name__ = "cuda_events"

    def __init__(self) -> None:
        self._last: torch.cuda.Event | None = None
        self._seconds = 0.0

    def __call__(self) -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        if self._last is not None:
            self._seconds += self._last.elapsed_time(event) / 1e3
        self._last = event
        return self._seconds


def clock() -> Callable[[], float]:
    return EventClock() if torch.cuda.is_available() else time.perf_counter


def measure(benchmark: BenchmarkFixture, device: torch.device, run: Callable[[], object], **info: object) -> None:
    """Times `run` and keeps `info` beside the result; on CUDA also the time of its kernels alone, and their number."""
    benchmark.extra_info.update(info, device=device.type)
    if device.type == "cpu":
        benchmark.pedantic(run, rounds=5, warmup_rounds=1)
        return
    other = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def cool() -> None:
        other.zero_()

    benchmark.pedantic(run, setup=cool, rounds=20, warmup_rounds=3)
    benchmark.extra_info.update(on_device(run))


def on_device(run: Callable[[], object]) -> dict[str, object]:
    """The seconds of the kernels and copies that one call puts on the device, and how many they are."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        run()
        torch.cuda.synchronize()
    kernels = [e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    if not kernels:  # a machine on which the profiler may not look
        return {}
    return {
        "device_time": sum(e.self_device_time_total for e in kernels) * 1e-6,
        "launches": sum(e.count for e in kernels),
    }
