"""The compiled module: what it links, what it was built with, and the machine code in it."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tools import check_counts, find_tool, innermost_loops, instructions, opcodes

import n2n_kernels as nk
from n2n_kernels import native

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def module() -> str:
    if native.missing is not None:
        pytest.skip(native.missing)
    return str(native.module().__file__)


@pytest.fixture
def cuda_module(module: str) -> str:
    if nk.build_info()["cuda"] is None:
        pytest.skip("the module was built without CUDA")
    return module


def run(*command: str, **options: Any) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def tool(name: str) -> str:
    path = find_tool(name)
    if path is None:
        pytest.skip(f"{name} is neither on PATH nor in Triton's package")
    return path


def test_it_links_neither_torch_nor_a_cuda_runtime(module: str) -> None:
    """One build serves every torch, and imports on a machine without a driver."""
    if shutil.which("ldd") is None:
        pytest.skip("no ldd on PATH")
    libraries = re.sub(r"0x[0-9a-f]+", "", run("ldd", module))  # an address has "c10" in it now and then
    assert "libc.so" in libraries
    assert not re.search(r"torch|c10|cudart|libcuda|libpython|not found", libraries), libraries


def test_every_package_is_installed() -> None:
    """An editable install has them all, listed or not; a wheel has those that are listed."""
    listed = re.search(r"^packages = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert listed is not None
    found = [p.parent for top in (ROOT / "n2n_kernels", ROOT / "python") for p in top.rglob("__init__.py")]
    names = {".".join(p.relative_to(ROOT).parts).removeprefix("python.") for p in found}
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == names


def test_build_info(module: str) -> None:
    info = nk.build_info()
    assert set(info) == {"native", "cuda", "cuda_architectures"}
    assert info["native"] is None
    assert (info["cuda"] is None) == (info["cuda_architectures"] is None)
    if info["cuda"] is not None:
        assert re.fullmatch(r"\d+\.\d+(\.\d+)*", info["cuda"])


def test_machine_code_for_each_architecture(cuda_module: str) -> None:
    """Each that was asked for, and by default those of the A100, the H100 and H200, and the B200."""
    asked = nk.build_info()["cuda_architectures"].split(",")
    found = set(re.findall(r"\.sm_(\d+)\.cubin", run(tool("cuobjdump"), "--list-elf", cuda_module)))
    assert found == {arch.removesuffix("-real") for arch in asked}
    if "CMAKE_ARGS" not in os.environ:
        assert found >= {"80", "90"}
        assert "100" in found or tuple(map(int, nk.build_info()["cuda"].split(".")[:2])) < (12, 8)
        # Code that a later architecture's driver can compile.
        assert re.search(r"\.ptx", run(tool("cuobjdump"), "--list-ptx", cuda_module))


def test_machine_code_of_the_kernels(cuda_module: str) -> None:
    """For sm_90: every kernel is there; nothing spills to local memory; no product is fused with a sum, which would
    round once where the other backends round twice; and what should be at memory speed moves sixteen bytes at once."""
    code = run(tool("cuobjdump"), "-sass", "-arch", "sm_90", cuda_module)
    texts = {k.split("\n")[0]: k for k in code.split("Function : ")[1:]}
    kernels = {name: opcodes(text) for name, text in texts.items()}
    expected = {"gather_scale": 12, "identity": 4, "channel_moments_kernel": 16, "tensor_moments": 4, "finish": 1}
    assert {name: sum(f"{name}" in kernel.split("_cu_")[-1] for kernel in kernels) for name in expected} == expected
    for kernel, used in kernels.items():
        assert used & {"STG", "ST"}, "no stores found: is the disassembly being read?"
        assert not used & {"LDL", "STL"}, f"{kernel} spills registers to local memory"
        if "finish_kernel" not in kernel:  # which divides
            assert not used & {"FFMA", "DFMA"}, f"{kernel} fuses a product with a sum"
        if "identity" in kernel or "gather_scale" in kernel:
            assert "STG.128" in used, f"{kernel} stores no sixteen bytes at once"
        if "gather_scale" in kernel:
            assert {"LDGSTS.128", "LDS"} <= used, kernel  # staged in shared memory, and gathered from there
        if "tensor_moments" in kernel:
            assert "LDG.128" in used, kernel
    # Of channel_moments one kernel in two is for what is not aligned.
    assert sum("LDG.128" in used for kernel, used in kernels.items() if "channel_moments_kernel" in kernel) == 8
    # Of the loops that store vectors of the output; the compiler may have unrolled them. Cancelling noise makes its
    # vectors in shared memory, a replica at a time.
    counts = {}
    for name, text in texts.items():
        if found := re.search(r"(gather_scale|identity)_kernel.*", name):
            lengths = innermost_loops(text, r"STS\b" if "NoiseE2" in name else r"STG.*\.128")
            assert lengths, name
            # Of loops there may be more or fewer, depending on what is unrolled, so only the ends are compared.
            counts |= {f"{found[0]}, shortest loop": lengths[0], f"{found[0]}, longest loop": lengths[-1]}
            counts[f"{found[0]}, all of it"] = len(instructions(text))
    check_counts(Path(__file__).with_name("cuda_instructions.json"), counts, f"nvcc {nk.build_info()['cuda']}")


def test_registers_leave_room_for_blocks(cuda_module: str) -> None:
    """Of the 65,536 registers of a multiprocessor: for three blocks of 256 threads without noise, and two with."""
    usage = run(tool("cuobjdump"), "--dump-resource-usage", "-arch", "sm_90", cuda_module)
    found = re.findall(r"gather_scale_kernel\S*NoiseE(\d)\S*:\s*REG:(\d+)", usage)
    assert len(found) == 12, "no registers found: is the output being read?"
    for noise, registers in found:
        assert int(registers) <= {"0": 80, "1": 128, "2": 128}[noise], f"noise {noise} takes {registers} registers"


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Builds the module into `folder`. The tools for it, which pip would bring, must be there."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"setuptools>=77 is not installed ({version})")
    if shutil.which("cmake") is None or shutil.which("ninja") is None:
        pytest.skip("cmake and ninja are not on PATH")
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-temp", str(folder / "temp"), "--build-lib", str(folder)],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip


def test_a_wrong_choice_of_cuda_is_refused(tmp_path: Path) -> None:
    done = build(tmp_path, N2N_CUDA="MAYBE")
    assert done.returncode != 0
    assert "N2N_CUDA (='MAYBE') must be AUTO, ON or OFF" in done.stderr


def test_a_broken_compiler_is_fatal_where_cuda_is_asked_for(tmp_path: Path) -> None:
    done = build(tmp_path, N2N_CUDA="ON", CUDACXX="/bin/false")
    assert done.returncode != 0
    assert not list(tmp_path.rglob("_C*.so"))


@pytest.mark.slow
def test_a_broken_compiler_otherwise_leaves_cuda_out_and_says_so(tmp_path: Path) -> None:
    done = build(tmp_path, N2N_CUDA="AUTO", CUDACXX="/bin/false")
    assert done.returncode == 0, done.stderr
    assert "building the CPU backend alone" in done.stdout + done.stderr
    (built,) = (tmp_path / "n2n_kernels").glob("_C*.so")
    program = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("n2n_kernels._C", {str(built)!r})
sys.modules["n2n_kernels._C"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import torch, n2n_kernels as nk
assert nk.backends()["cpu"] is None
assert nk.backends()["cuda"].startswith("built without CUDA")
assert nk.build_info() == dict(native=None, cuda=None, cuda_architectures=None)
assert nk.gather_scale([torch.ones(1)], [torch.tensor([0, 0])], None, backend="cpu")[0].tolist() == [1, 1]
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run(sys.executable, "-c", program, env=environment)
