"""Compiles Triton's kernels ahead of time, without a GPU, and prints what came out, one JSON object per line.

Run by test_triton_compile.py in a process of its own: in the tests' process Triton interprets.

    python compile_triton.py ARCHS [CODES [NOISES]]      e.g.  python compile_triton.py 80,100 0,2 1
"""

import importlib
import itertools
import json
import os
import struct
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
#: Of an instruction, in bytes.
INSTRUCTION = 16


def sources(codes: list[int], noises: list[int]) -> Iterator[tuple[str, ASTSource]]:
    """Every kernel for every dtype, typed as a launch types it."""
    for code in codes:
        name = ELEMENTS[code]
        for noise in noises:
            yield (
                f"gather_scale {name} noise {noise}",
                source(
                    gather_scale.gather_scale_kernel,
                    {"tasks": "*i64", "tiles": "*i32", "k0": "i64", "k1": "i32"},
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


def code_of(cubin: bytes) -> bytes:
    """The machine code of the one kernel in an ELF file, which is its section `.text.NAME`."""
    (at,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, of_names = struct.unpack_from("<3H", cubin, 0x3A)
    sections = [struct.unpack_from("<2I4Q", cubin, at + i * size) for i in range(count)]  # name, ..., offset, size
    names = sections[of_names][4]
    (code,) = [cubin[s[4] : s[4] + s[5]] for s in sections if cubin.startswith(b".text.", names + s[0])]
    return code


def disassemble(codes: list[bytes], arch: int) -> list[str] | None:
    """The machine codes as text, a line for each instruction; None without a disassembler, whose start takes longer
    than its work: hence all in one."""
    nvdisasm = find_tool("nvdisasm")
    if nvdisasm is None:
        return None
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(codes))
        file.flush()
        command = [nvdisasm, "--binary", f"SM{arch}", "--no-dataflow", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = iter([line for line in text.splitlines(keepends=True) if ";" in line])
    texts = ["".join(itertools.islice(lines, len(code) // INSTRUCTION)) for code in codes]
    assert not list(lines), "instructions of other sizes"
    return texts


def options(name: str) -> dict[str, Any]:
    """As the launches have them."""
    if name.startswith("gather_scale"):
        return gather_scale.OPTIONS
    more = {} if name.startswith("finish") else {"num_warps": 8}
    return {"enable_fp_fusion": False, **more}


def main(arch: int, codes: list[int], noises: list[int]) -> None:
    target = GPUTarget("cuda", arch, 32)
    kernels = {name: triton.compile(ast, target=target, options=options(name)) for name, ast in sources(codes, noises)}
    texts = disassemble([code_of(kernel.asm["cubin"]) for kernel in kernels.values()], arch)
    for i, (name, kernel) in enumerate(kernels.items()):
        found = {
            "kernel": name,
            "arch": arch,
            "target": f"sm_{arch}" in kernel.asm["ptx"],
            "opcodes": None if texts is None else sorted(opcodes(texts[i])),
            "instructions": None if texts is None else texts[i].count(";"),
        }
        print(json.dumps(found))


if __name__ == "__main__":
    lists = [[int(n) for n in argument.split(",")] for argument in sys.argv[1:]]
    archs, codes, noises = [*lists, *[[], [0, 1, 2, 3], [0, 1, 2]][len(lists) :]]
    for arch in archs:
        main(arch, codes, noises)
