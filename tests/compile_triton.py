"""Compiles Triton's kernels ahead of time, without a GPU, and prints what came out, one JSON object per line.

Run by test_triton_compile.py in a process of its own: in the tests' process Triton interprets.

    python compile_triton.py ARCHS [CODES [NOISES]]      e.g.  python compile_triton.py 80,100 0,2 1
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
                    {"tasks": "*i64", "tiles": "*i32", "k0": "i64", "k1": "i32", "most_replicas": "i32"},
                    {
                        "CODE": code,
                        "NOISE": noise,
                        "TILE": gather_scale.TILE,
                        "BLOCK": gather_scale.BLOCKS[noise],
                        "VECTOR": 16 // SIZES[code],
                    },
                ),
            )
        vector = 16 // SIZES[code]
        yield (
            f"identity {name}",
            source(
                identity.identity_kernel,
                {"tasks": "*i64", "tile_task": "*i32"},
                {
                    "ELEMENT": identity._ELEMENT[code],
                    "TILE": identity.TILE_BYTES // SIZES[code],
                    "VECTOR": vector,
                    "BLOCK": 256,
                },
            ),
        )
        yield from moments_sources(code, vector)
    yield (
        "finish_channels",
        source(
            moments.finish_channels_kernel,
            {"pivots": "*fp64", "partials": "*fp64", "chunks": "i32", "n": "i64", "mean": "*fp32", "var": "*fp32"},
            {"FLOAT": True},
        ),
    )
    pointers = {"tasks": "*i64", **dict.fromkeys(("pivots", "partials", "mean", "var"), "*fp64")}
    yield "finish_tensors", source(moments.finish_tensors_kernel, pointers, {})


def moments_sources(code: int, vector: int) -> Iterator[tuple[str, ASTSource]]:
    name = ELEMENTS[code]
    types = {"x": f"*{name}", "pivots": "*fp64", "partials": "*fp64"}
    short = ("C", "n", "S", "stride_n", "stride_c", "stride_s", "step", "wrap", "step_s", "chunk", "chunks")
    for kind, v, along_channels, ones in (
        ("wide", vector, False, {"stride_s": 1}),  # Triton makes a constant of an argument that is 1
        ("wide along channels", vector, True, {"stride_c": 1}),
        ("strided", 1, False, {}),
        ("strided along channels", 1, True, {"stride_c": 1}),
    ):
        long = {"n": "i64", "stride_n": "i64", "wrap": "i64"}
        signature = {**types, **{arg: long.get(arg, "i32") for arg in short if arg not in ones}}
        always = {"CODE": code, "V": v, "ALONG_CHANNELS": along_channels, "UNITS": 8 if along_channels else 8 * v}
        yield (
            f"channel_moments {kind} {name}",
            source(moments.channel_moments_kernel, signature, {**ones, **always}),
        )
    signature = {"tasks": "*i64", "block_task": "*i32", "pivots": "*fp64", "partials": "*fp64"}
    constants = {"CODE": code, "V": vector, "UNITS": 8 * vector}
    yield f"tensor_moments wide {name}", source(moments.tensor_moments_kernel, signature, constants)


def source(kernel: Any, signature: dict[str, str], constants: dict[str, Any]) -> ASTSource:
    return ASTSource(kernel, signature={**signature, **dict.fromkeys(constants, "constexpr")}, constexprs=constants)


def disassemble(cubin: bytes) -> str | None:
    """The machine code as text, or None without a disassembler."""
    nvdisasm = find_tool("nvdisasm")
    if nvdisasm is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        # Without an analysis of the flow, which would add labels alone.
        return subprocess.run([nvdisasm, "-c", "-ndf", file.name], check=True, capture_output=True, text=True).stdout


def options(name: str) -> dict[str, Any]:
    """As the launches have them."""
    if name.startswith("gather_scale"):
        return gather_scale.OPTIONS
    more = {} if name.startswith("finish") else {"num_warps": 8}
    return {"enable_fp_fusion": False, **more}


def main(arch: int, codes: list[int], noises: list[int]) -> None:
    for name, ast in sources(codes, noises):
        compiled = triton.compile(ast, target=GPUTarget("cuda", arch, 32), options=options(name))
        text = disassemble(compiled.asm["cubin"])
        found = {
            "kernel": name,
            "arch": arch,
            "target": f"sm_{arch}" in compiled.asm["ptx"],
            "opcodes": None if text is None else sorted(opcodes(text)),
            "instructions": None if text is None else text.count(";"),
        }
        print(json.dumps(found))


if __name__ == "__main__":
    lists = [[int(n) for n in argument.split(",")] for argument in sys.argv[1:]]
    archs, codes, noises = [*lists, *[[], [0, 1, 2, 3], [0, 1, 2]][len(lists) :]]
    for arch in archs:
        main(arch, codes, noises)
