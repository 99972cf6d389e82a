"""Triton's kernels compile to machine code for each architecture, on a machine without a GPU too."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools import check_counts

import n2n_kernels as nk

HERE = Path(__file__).resolve().parent


def compile_all(folder: Path, *arguments: str) -> list[dict[str, object]]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(folder),  # an empty cache: else the last run's code would be found again
    }
    command = [sys.executable, str(HERE / "compile_triton.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(folder: Path, kernels: int, *arguments: str) -> list[dict[str, object]]:
    if (reason := nk.backends()["triton"]) is not None and "not installed" in reason:
        pytest.skip(reason)
    compiled = compile_all(folder, *arguments)
    assert len(compiled) == kernels
    for kernel in compiled:
        assert kernel["target"], kernel["kernel"]
        if (used := kernel["opcodes"]) is not None:
            assert isinstance(used, list)
            assert "STG" in used, f"{kernel['kernel']}: no stores found: is the disassembly being read?"
            name = str(kernel["kernel"])
            # No spills to local memory, and no product fused with a sum, which would round once instead of twice, but
            # where a quotient is made of them.
            assert not {"LDL", "STL"} & set(used), f"{name} spills registers to local memory"
            assert name.startswith("finish") or not {"FFMA", "DFMA"} & set(used), f"{name} fuses a product with a sum"
            # What should be at memory speed moves sixteen bytes at once.
            copies = "identity" in name or ("gather_scale" in name and "noise 0" in name)
            assert not copies or "STG.128" in used, name
            assert "wide" not in name or "LDG.128" in used, name
    return compiled


def test_every_kernel_for_sm_90(tmp_path: Path) -> None:
    compiled = check(tmp_path, 38, "90")
    counts = {str(k["kernel"]): n for k in compiled if isinstance(n := k["instructions"], int)}
    if counts:
        version = importlib.metadata.version("triton")
        check_counts(HERE / "triton_instructions.json", counts, f"triton {version}")


def test_each_kernel_for_its_neighbours(tmp_path: Path) -> None:
    """In bfloat16, whose rounding is code of its own, with the noise that has most code."""
    compiled = check(tmp_path, 2 * 9, "80,100", "2", "2")
    assert [kernel["arch"] for kernel in compiled] == [80] * 9 + [100] * 9


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "100"])
def test_every_kernel_for_its_neighbours(tmp_path: Path, arch: str) -> None:
    check(tmp_path, 38, arch)
