"""`net2net doctor`: show versions, devices and backends, with a reason for every one that is missing."""

from __future__ import annotations

import argparse

from net2net.cli.command import Command
from net2net.environment import EXTRAS, environment


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def _run(args: argparse.Namespace) -> int:
    """Plain prints: this must work where nothing but torch is installed."""
    found = environment()
    print("versions")
    for package, version in found["versions"].items():
        hint = f"  (pip install 'n2n-kernels[{EXTRAS[package]}]')" if package in EXTRAS else ""
        print(f"  {package:<14} {version if version is not None else 'not installed' + hint}")
    print("machine")
    print(f"  {'platform':<14} {found['platform']}")
    print(f"  {'cores':<14} {found['cpu_cores']} ({found['torch_threads']} threads used by torch)")
    print(f"  {'GPUs':<14} {', '.join(found['gpus']) or 'none'}")
    print(f"  {'torch CUDA':<14} {found['torch_cuda'] or 'torch is built without CUDA'}")
    print("kernels")
    for backend, reason in found["backends"].items():
        print(f"  {backend:<14} {'ok' if reason is None else 'missing: ' + reason}")
    build = found["build"]
    print("native module")
    print(f"  {'built':<14} {'yes' if build['native'] is None else 'no: ' + build['native']}")
    print(f"  {'CUDA':<14} {build['cuda'] or 'no, for the CPU alone'}")
    if build["cuda_architectures"]:
        print(f"  {'architectures':<14} {build['cuda_architectures']}")
    return 0


COMMAND = Command(
    "doctor",
    "show versions, devices and backends, with a reason for every one that is missing",
    "example:\n  net2net doctor",
    _add_arguments,
    _run,
)
