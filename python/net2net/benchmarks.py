"""Running the benchmarks, which lie in the source tree (`bench/`) and are not installed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from net2net.extras import require

#: `bench/` of the checkout that this file is part of, if it is part of one.
BENCH = Path(__file__).resolve().parents[2] / "bench"


def run(out: Path, size: str | None, only: str | None, threads: int | None, time_limit: float | None) -> int:
    """Measure, and write bench.json, bench.md and bench.png into the folder `out`, made if need be.

    Args:
        out: the folder.
        size: quick, check or full; None is full on a GPU, else quick.
        only: a regular expression for what to measure; None measures everything.
        threads: CPU threads; None leaves torch's own number.
        time_limit: seconds after which nothing more is begun; None has no limit.

    Returns:
        0: done; 1: something failed, and the results, if there are any, are of the rest; 2: `only` is wrong.

    Raises:
        FileNotFoundError: this is not a checkout of the source.
        ModuleNotFoundError: the extra `bench` is not installed.
        NotADirectoryError: `out` is a file.
    """
    if not (BENCH / "conftest.py").is_file():
        raise FileNotFoundError(
            "the benchmarks are not installed with the package: run this in a checkout of the source, "
            "after pip install --editable '.[bench]'"
        )
    for module in ("pytest", "pytest_benchmark"):
        require(module, "bench")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out (={str(out)!r}) is a file, not a folder")
    options = {"--size": size, "--only": only, "--threads": threads, "--time-limit": time_limit}
    given = [f"{option}={value}" for option, value in options.items() if value is not None]
    # A process of its own: the thread count and the compiler's caches are the benchmarks' alone.
    with tempfile.TemporaryDirectory() as scratch:
        measured = Path(scratch) / "run.json"
        pytest = [sys.executable, "-m", "pytest", str(BENCH), "-v", "--no-header", "-p", "no:cacheprovider"]
        status = subprocess.run([*pytest, "--benchmark-quiet", f"--benchmark-json={measured}", *given]).returncode
        if status == 4:  # pytest's word for wrong options, which it has explained
            return 2
        if not measured.is_file() or not measured.stat().st_size:
            return 1
        report = subprocess.run([sys.executable, str(BENCH / "report.py"), str(measured), str(out)])
    return min(1, status or report.returncode)
