"""Clocks, and a measurement's surroundings: cold caches, calls in turn, and what ran on the device.

On a GPU there are three times. `alone`: one call, from an idle device to an idle device, the host's part included; this
is what somebody waits for. `queued`: one of many calls that the host issues without waiting; this is what a call takes
of the device, or of the host if that is slower. `device_time`: the sum of the kernels' own times, by the profiler. On a
CPU they are one and the same.

Caches are cold. Each call takes the next of several sets of tensors, which together are four times the last cache. On
a GPU a flush precedes each call that is timed alone; it *writes*, since a cache that is full of what must still be
written to memory is what a call finds in practice, and leaves behind itself.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

#: More than the L2 of any GPU there is (60 MB on an H200).
FLUSH_BYTES = 256 * 2**20

#: How long the rounds of a measurement may take, and how many there are at least and at most.
SECONDS = {"cuda": 0.25, "cpu": 0.5}
ROUNDS = {"cuda": (5, 20), "cpu": (3, 20)}


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


def measure(
    benchmark: BenchmarkFixture,
    device: torch.device,
    contender: Iterator[Callable[[], Any]],
    info: dict[str, object],
    check: Callable[[Any], None] = lambda result: None,
) -> None:
    """Times a contender's calls in turn, after `check` has seen the first one's result, and keeps `info` beside it."""
    started = time.perf_counter()
    first = next(contender)
    result = first()
    _synchronize(device)
    until_first = time.perf_counter() - started
    check(result)
    del result
    calls = [first, *contender]
    _synchronize(device)
    started = time.perf_counter()
    for call in calls:  # which also warms up what is set up at a set's first call
        call()
    _synchronize(device)
    seconds = (time.perf_counter() - started) / len(calls)

    benchmark.extra_info.update(info, until_first=until_first, sets=len(calls))
    turn = itertools.cycle(calls)
    fewest, most = ROUNDS[device.type]
    rounds = min(max(int(SECONDS[device.type] / seconds), fewest), most)
    if device.type == "cpu":
        benchmark.pedantic(_call, setup=lambda: ((next(turn),), {}), rounds=rounds)
        return
    benchmark.extra_info.update(
        queued=_queued(calls, seconds), peak_memory=_peak_memory(first), **_on_device(calls[:3])
    )
    other = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def cold() -> tuple[tuple[Callable[[], Any]], dict[str, Any]]:
        other.zero_()
        return (next(turn),), {}

    benchmark.pedantic(_call, setup=cold, rounds=rounds)


def _call(call: Callable[[], Any]) -> None:
    """Nothing is returned, so that no two results exist at a time."""
    call()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _queued(calls: list[Callable[[], Any]], seconds: float) -> float:
    """Seconds per call when the host does not wait: the median of five queues."""
    count = min(max(int(SECONDS["cuda"] / 5 / seconds), 2), 500)
    times = []
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for call in itertools.islice(itertools.cycle(calls), count):
            call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / count)
    return statistics.median(times)


def _peak_memory(call: Callable[[], Any]) -> int:
    """Bytes on the device at the call's peak, beyond what there was before it."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - before


def _on_device(calls: list[Callable[[], Any]]) -> dict[str, float]:
    """Per call, the seconds of the kernels and copies on the device, and how many they are."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        for call in calls:
            call()
        torch.cuda.synchronize()
    kernels = [e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    if not kernels:  # a machine on which the profiler may not look
        return {}
    return {
        "device_time": sum(e.self_device_time_total for e in kernels) * 1e-6 / len(calls),
        "launches": sum(e.count for e in kernels) / len(calls),
    }
