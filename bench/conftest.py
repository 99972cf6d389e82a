"""The options of a run, its fixtures, and what is kept beside its results."""

import gc
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import SIZES
from measurements import Measurement, left_out, measurements
from net2net.environment import environment
from timing import clock

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STARTED = time.monotonic()
LOAD = os.getloadavg()[0]
MEASUREMENTS = pytest.StashKey[list[Measurement]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("n2n-kernels")
    group.addoption("--size", choices=SIZES, help="how much is measured (default: full on a GPU, else quick)")
    group.addoption("--only", default="", metavar="PATTERN", help="what to measure, a regular expression")
    group.addoption("--threads", type=int, metavar="N", help="CPU threads (default: torch's own)")
    group.addoption("--time-limit", type=float, metavar="SECONDS", help="skip what has not begun by then")


def pytest_configure(config: pytest.Config) -> None:
    # Compile times are reported, so what earlier runs have compiled must not be found.
    compiled = tempfile.TemporaryDirectory(prefix="n2n-bench-")
    config.add_cleanup(compiled.cleanup)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(compiled.name, "inductor")
    os.environ["TRITON_CACHE_DIR"] = os.path.join(compiled.name, "triton")
    if (threads := config.getoption("--threads")) is not None:
        torch.set_num_threads(threads)
    try:
        config.stash[MEASUREMENTS] = measurements(size_of(config), config.getoption("--only"), DEVICE)
    except ValueError as error:
        raise pytest.UsageError(f"--{error}") from error


def size_of(config: pytest.Config) -> str:
    return str(config.getoption("--size") or ("full" if DEVICE.type == "cuda" else "quick"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("measurement", metafunc.config.stash[MEASUREMENTS], ids=lambda m: m.id)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    timer = clock()
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=timer, disable_gc=True))


_skipped: list[dict[str, str]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        what = report.nodeid.partition("[")[2].removesuffix("]")
        _skipped.append({"what": what, "reason": report.longrepr[2].removeprefix("Skipped: ")})


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["environment"] = environment()
    machine_info.pop("node")  # the machine's name is nobody's business


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    if commit := os.environ.get("N2N_COMMIT"):  # of a tree that is no repository
        commit_info.update(id=commit, dirty=False)


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    output_json["settings"] = {
        "size": size_of(config),
        "only": config.getoption("--only"),
        "device": DEVICE.type,
        "threads": torch.get_num_threads(),
        "load": LOAD,  # of the machine before the run: above 1 or so, something else disturbed it
    }
    absent = left_out(size_of(config), DEVICE)
    output_json["skipped"] = [{"what": name, "reason": reason} for name, reason in absent.items()] + _skipped


@pytest.fixture
def device() -> torch.device:
    return DEVICE


@pytest.fixture(autouse=True)
def in_time(request: pytest.FixtureRequest) -> None:
    limit = request.config.getoption("--time-limit")
    if limit is not None and time.monotonic() - STARTED > limit:
        pytest.skip(f"--time-limit (={limit:g}) has passed")


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """Gives memory back between measurements, which need most of it."""
    yield
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
