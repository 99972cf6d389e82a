"""NVIDIA's binary tools, from the CUDA toolkit or from Triton's package, where one of them is installed."""

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest


def find_tool(name: str) -> str | None:
    """The path of `cuobjdump`, `nvdisasm` or the like; None if there is none."""
    spec = importlib.util.find_spec("triton")  # found, not imported: Triton reads its environment on import
    for folder in spec.submodule_search_locations or [] if spec else []:
        bundled = Path(folder) / "backends" / "nvidia" / "bin" / name
        if bundled.exists():
            return str(bundled)
    return shutil.which(name)


def opcodes(disassembly: str) -> set[str]:
    """The instructions' names in what `cuobjdump -sass` or `nvdisasm` prints, e.g. {"LDG", "FMUL"}; and, for those that
    move sixteen bytes from or to a GPU's memory, {"LDG.128", "STG.128"}, or from there to its shared memory,
    {"LDGSTS.128"}."""
    # One way only to match a line's spaces: `cuobjdump` has lines of a hundred, and tens of thousands of them.
    pattern = r"^(?:[ \t]*/\*[0-9a-f]+\*/)?[ \t]+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9]+)((?:\.[A-Z0-9_]+)*)"
    found = re.findall(pattern, disassembly, re.MULTILINE)
    wide = {f"{name}.128" for name, modifiers in found if name in {"LDG", "STG", "LDGSTS"} and ".128" in modifiers}
    return {name for name, _ in found} | wide


def instructions(disassembly: str) -> list[tuple[int, str, str]]:
    """Address, name and operands of each, in what `cuobjdump -sass` prints of one kernel."""
    pattern = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]+)\s*([^;]*);"
    return [(int(at, 16), name, rest) for at, name, rest in re.findall(pattern, disassembly)]


def innermost_loops(disassembly: str, wanted: str) -> list[int]:
    """How many instructions there are in each of the innermost loops around those whose name matches `wanted`, in what
    `cuobjdump -sass` prints of one kernel: different lengths alone, shortest first."""
    lines = instructions(disassembly)
    numbers = {at: i for i, (at, _, _) in enumerate(lines)}
    loops = []
    for at, name, rest in lines:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name.startswith("BRA") and target and int(target[1], 16) < at:
            loops.append((numbers[int(target[1], 16)], numbers[at]))
    found = [numbers[at] for at, name, _ in lines if re.match(wanted, name)]
    lengths = [[last - first + 1 for first, last in loops if first <= one <= last] for one in found]
    return sorted({min(around) for around in lengths if around})


def check_counts(file: Path, counts: Mapping[str, float], made_by: str) -> None:
    """Compares instruction counts with those recorded in `file`: none may have grown by more than a tenth. Counts that
    another compiler recorded say nothing: the test is skipped. With N2N_RECORD=1 in the environment they are recorded
    instead."""
    if os.environ.get("N2N_RECORD"):
        file.write_text(json.dumps({"made_by": made_by, "counts": counts}, indent=1) + "\n")
    recorded = json.loads(file.read_text())
    if recorded["made_by"] != made_by:
        pytest.skip(f"counts were recorded with {recorded['made_by']}, these are of {made_by}")
    known = recorded["counts"]
    new, gone = sorted(counts.keys() - known.keys()), sorted(known.keys() - counts.keys())
    hint = "if that is meant, N2N_RECORD=1 records them anew"
    assert not new + gone, f"other code than recorded (new: {new}; gone: {gone}); {hint}"
    grown = {key: (known[key], n) for key, n in counts.items() if n > 1.1 * known[key]}
    assert not grown, f"more instructions than recorded: {grown}; {hint}"
