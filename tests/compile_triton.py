"""Compiles Triton's kernels ahead of time, without a GPU, and prints what came out, one JSON object per line.

Run by test_triton_compile.py in a process of its own: in the tests' process Triton interprets.

    python compile_triton.py ARCH [CODES [NOISES]]      e.g.  python compile_triton.py 90 0,2 1
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from tools import find_tool, opcodes

os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

gather_scale = importlib.import_module("n2n_kernels.ops.gather_scale.triton")
identity = importlib.import_module("n2n_kernels.ops.identity.triton")
moments = importlib.import_module("n2n_kernels.ops.channel_moments.triton")

#: Triton's names of the dtypes, by the kernels' code.
ELEMENTS = ["fp32", "fp64", "bf16", "fp16"]
SIZES = [4, 8, 2, 2]  # bytes


def sources(codes: list[int], noises: list[int]) -> Iterator[tuple[str, ASTSource]]:
    """Every kernel for every dtype, typed as a launch types it."""
    for code in codes:
        name = ELEMENTS[code]
        for noise in noises:
            yield (
                f"gather_scale {name} noise {noise}",
                source(
                    gather_scale.gather_scale_kernel,
                    {"tasks": "*i64", "tile_task": "*i32", "k0": "i64", "k1": "i32", "most_replicas": "i32"},
                    {"CODE": code, "NOISE": noise, "TILE": gather_scale.TILE, "BLOCK": gather_scale.BLOCKS[noise]},
                ),
            )
        yield (
            f"identity {name}",
            source(
                identity.identity_kernel,
                {"tasks": "*i64", "tile_task": "*i32"},
                {
                    "ELEMENT": identity._ELEMENT[code],
                    "TILE": identity.TILE_BYTES // SIZES[code],
                    "VECTOR": 16 // SIZES[code],
                    "BLOCK": 256,
                },
            ),
        )
        strides = {"stride_n": "i64", "stride_c": "i32"}
        always = {"CODE": code, "CHUNK": moments.CHUNK, "LANES": moments.LANES}
        for kind, types, constants in (
            ("strided", {"chunks": "i32", "total": "i64", "S": "i32", **strides, "stride_s": "i32"}, {}),
            # Triton makes a constant of an argument that is 1.
            ("contiguous", {"chunks": "i32", "total": "i32", "S": "i32", **strides}, {"stride_s": 1}),
            ("vectors", {"total": "i32", "stride_n": "i32", "stride_s": "i32"}, {"chunks": 1, "S": 1, "stride_c": 1}),
        ):
            signature = {"x": f"*{name}", "partials": "*fp64", **types}
            yield (
                f"channel_moments {kind} {name}",
                source(moments.channel_moments_kernel, signature, {**constants, **always}),
            )


def source(kernel: Any, signature: dict[str, str], constants: dict[str, Any]) -> ASTSource:
    return ASTSource(kernel, signature={**signature, **dict.fromkeys(constants, "constexpr")}, constexprs=constants)


def disassemble(cubin: bytes) -> list[str] | None:
    """The names of the instructions, or None without a disassembler."""
    nvdisasm = find_tool("nvdisasm")
    if nvdisasm is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([nvdisasm, "-c", file.name], check=True, capture_output=True, text=True).stdout
    return sorted(opcodes(text))


def main(arch: int, codes: list[int], noises: list[int]) -> None:
    for name, ast in sources(codes, noises):
        compiled = triton.compile(ast, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": False})
        used = disassemble(compiled.asm["cubin"])
        print(json.dumps({"kernel": name, "target": f"sm_{arch}" in compiled.asm["ptx"], "opcodes": used}))


if __name__ == "__main__":
    lists = [[int(n) for n in argument.split(",")] for argument in sys.argv[2:]]
    main(int(sys.argv[1]), *lists, *[[0, 1, 2, 3], [0, 1, 2]][len(lists) :])
