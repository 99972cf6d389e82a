"""Builds `n2n_kernels._C` by driving CMake; CMakeLists.txt is the one list of sources.

Neither torch, nor a GPU, nor nvcc is needed. `N2N_CUDA` chooses what happens to the CUDA backend:

- `AUTO` (default): built if a working CUDA compiler is found, else left out with a notice;
- `ON`: a missing or broken CUDA compiler is a fatal error;
- `OFF`: not built.

Further CMake arguments may be given in `CMAKE_ARGS`, e.g. `-DCMAKE_CUDA_ARCHITECTURES=90`.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cuda = os.environ.get("N2N_CUDA", "AUTO").upper()
        if cuda not in {"AUTO", "ON", "OFF"}:
            raise SystemExit(f"N2N_CUDA (={cuda!r}) must be AUTO, ON or OFF")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        # A cache from another interpreter's build would find that one's pybind11 and compiler. It is cheap to redo.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DN2N_CUDA={cuda}",
            f"-DN2N_OUTPUT_DIR={target.parent}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


setup(ext_modules=[Extension("n2n_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
