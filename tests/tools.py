"""NVIDIA's binary tools, from the CUDA toolkit or from Triton's package, where one of them is installed."""

import importlib.util
import re
import shutil
from pathlib import Path


def find_tool(name: str) -> str | None:
    """The path of `cuobjdump`, `nvdisasm` or the like; None if there is none."""
    spec = importlib.util.find_spec("triton")  # found, not imported: Triton reads its environment on import
    for folder in spec.submodule_search_locations or [] if spec else []:
        bundled = Path(folder) / "backends" / "nvidia" / "bin" / name
        if bundled.exists():
            return str(bundled)
    return shutil.which(name)


def opcodes(disassembly: str) -> set[str]:
    """The instructions' names in what `cuobjdump -sass` or `nvdisasm` prints, e.g. {"LDG", "FMUL"}."""
    lines = re.findall(r"^\s*(?:/\*[0-9a-f]+\*/)?\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9]+)\b", disassembly, re.MULTILINE)
    return set(lines)
