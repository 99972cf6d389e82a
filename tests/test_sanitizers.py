"""The CPU kernels under compilers' sanitizers, driven by a program without Python (tests/native)."""

import concurrent.futures
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def compile_and_run(folder: Path, sanitizers: str, rounds: int, optimisation: str) -> str:
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    flags = [
        "-std=c++17",
        optimisation,
        f"-fsanitize={sanitizers}",
        "-DN2N_SANITIZED",
        "-fno-sanitize-recover=all",
        "-ffp-contract=off",
        "-pthread",
    ]
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    if subprocess.run([compiler, *flags, str(probe), "-o", str(folder / "probe")], capture_output=True).returncode:
        pytest.skip(f"{compiler} cannot build with -fsanitize={sanitizers}")
    kernels = [path for pattern in ("*_cpu.cpp", "*_blocks.cpp") for path in sorted((ROOT / "csrc").glob(pattern))]
    assert len(kernels) >= 4
    sources = [*sorted((ROOT / "tests" / "native").glob("*.cpp")), *kernels]
    program = folder / "fuzz_kernels"
    objects = [str(folder / f"{source.stem}.o") for source in sources]

    def compile_one(source: Path, to: str) -> None:
        subprocess.run([compiler, *flags, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", to], check=True)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    subprocess.run([compiler, *flags, *objects, "-o", str(program)], check=True)
    done = subprocess.run([str(program), str(rounds), "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_address_and_no_undefined_behaviour(tmp_path: Path) -> None:
    # These sanitizers' checks take a compiler that optimises longer than the program runs.
    assert compile_and_run(tmp_path, "address,undefined", 15, "-O0").endswith("ok\n")


@pytest.mark.slow
def test_no_data_race(tmp_path: Path) -> None:
    assert compile_and_run(tmp_path, "thread", 40, "-O1").endswith("ok\n")
