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
    """The instructions' names in what `cuobjdump -sass` or `nvdisasm` prints, e.g. {"LDG", "FMUL"}; and, for those that
    move sixteen bytes from or to a GPU's memory, {"LDG.128", "STG.128"}."""
    pattern = r"^\s*(?:/\*[0-9a-f]+\*/)?\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9]+)((?:\.[A-Z0-9_]+)*)"
    found = re.findall(pattern, disassembly, re.MULTILINE)
    wide = {f"{name}.128" for name, modifiers in found if name in {"LDG", "STG"} and ".128" in modifiers}
    return {name for name, _ in found} | wide
