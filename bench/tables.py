"""Results as Markdown: every measurement, grouped by operation and case; and a summary of one line per case."""

from collections.abc import Sequence
from typing import Any

from results import best, by_case

COLUMNS = (
    "case", "least traffic", "by", "time", "alone", "on device", "GB/s", "of roofline", "launches", "peak memory",
    "until first result", "faster than",
)  # fmt: skip
SUMMARY_COLUMNS = ("operation, case", "backend", "launch", "of roofline", "whole call", "the same in torch")

#: What the calls of `measurements.Measurement` are called in tables.
CALLS = {"first": "first call", "plan": "plan call", "run": "launch alone", "graph": "CUDA graph"}

ABOUT = """\
- `time`: on a GPU, of one call in a queue of calls; on a CPU, the fastest round. Caches are cold.
- `alone`: on a GPU, from an idle device to an idle device, the host's work included.
- `on device`, `launches`: on a GPU, the kernels' own time, and how many they are.
- `least traffic`: what must be read and written at least; `GB/s` and `of roofline` count that. The roofline is a plain
  copy and memset of the same mix of reads and writes, in the same run. On a CPU it is no bound: torch and the C library
  may write through the caches, and so read what they overwrite, where the kernels write past them.
- `peak memory`: on a GPU, what the call allocates at its peak.
- `until first result`: plans, captures and compilations, and the first call.
- Ours: a first call has nothing prepared; a plan call has maps and scales checked and uploaded, and allocates; a launch
  alone has its outputs too. `faster than`: than peers that are called alike (with `out=`, for a launch alone).
"""


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    bar = "|" + " --- |" * len(columns)
    return "\n".join(["| " + " | ".join(columns) + " |", bar, *("| " + " | ".join(line) + " |" for line in lines)])


def markdown(result: dict[str, Any]) -> str:
    """bench.md."""
    rows = result["rows"]
    parts = ["# Benchmarks", about(result) + ABOUT, "## Summary", summary(result)]
    parts += ["## Rooflines", table(("operation", "time", "GB/s"), _rooflines(rows))]
    for op in dict.fromkeys(row["op"] for row in rows if row["op"] != "roofline"):
        lines = []
        for (_, case), group in by_case([row for row in rows if row["op"] == op]).items():
            for i, row in enumerate(group):
                heads = [_case(case, row), size_text(row["bytes"])] if i == 0 else ["", ""]
                lines.append(heads + _cells(row))
        parts += [f"## {op}", table(COLUMNS, lines)]
    if result["skipped"]:
        reasons: dict[str, list[str]] = {}
        for skipped in result["skipped"]:
            reasons.setdefault(skipped["reason"], []).append(skipped["what"])
        parts += ["## Not measured", "\n".join(f"- {reason}: {'; '.join(what)}" for reason, what in reasons.items())]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def about(result: dict[str, Any]) -> str:
    """What was measured, and on what."""
    environment, settings = result["environment"], result["settings"]
    hardware = ", ".join(environment["gpus"]) if settings["device"] == "cuda" else result["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    changed = " with changes" if result["dirty"] else ""
    return (
        f"- machine: {hardware}; {environment['cpu_cores']} CPU cores, threads: {settings['threads']}, "
        f"load before: {settings['load']:.1f}; {environment['platform']}\n"
        f"- versions: {versions}; torch for CUDA {environment['torch_cuda']}, "
        f"the kernels for {environment['build']['cuda']}\n"
        f"- code: {(result['commit'] or 'unknown')[:12]}{changed}; {settings['size']} size; {result['datetime'][:19]}\n"
    )


def summary(result: dict[str, Any]) -> str:
    """One line per case and backend: the launch and its share of the roofline, the whole call, and the peers' calls."""
    lines = []
    for (op, case), group in by_case([row for row in result["rows"] if row["op"] != "roofline"]).items():
        for backend in dict.fromkeys(row["contender"] for row in group if row["ours"]):
            mine = [row for row in group if row["ours"] and row["contender"] == backend]
            launch, whole = best(mine, ("run", "call", "first")), best(mine, ("plan", "call", "first"))
            if launch is None or whole is None:  # `--only` left them out
                continue
            graph = best(mine, ("graph",))
            peers = [row for row in group if not row["ours"] and row["call"] == "call"]
            lines.append([
                f"{op}, {_case(case, group[0])}",
                backend,
                time_text(launch["time"]) + (f" (CUDA graph {time_text(graph['time'])})" if graph else ""),
                "" if launch["share"] is None else f"{launch['share']:.0%}",
                time_text(whole["time"]),
                "; ".join(f"{p['contender']} {time_text(p['time'])} ({p['time'] / whole['time']:.1f}x)" for p in peers),
            ])  # fmt: skip
    return table(SUMMARY_COLUMNS, lines)


def _case(case: str, row: dict[str, Any]) -> str:
    return f"{case} ({row['reduced']})" if row["reduced"] else case


def _rooflines(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [row["case"], time_text(row["time"]), f"{row['rate'] / 1e9:.1f}"] for row in rows if row["op"] == "roofline"
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    how = CALLS.get(row["call"], row["call"])
    on_gpu = row["peak_memory"] is not None
    return [
        row["contender"] if how == "call" else f"{row['contender']}, {how}",
        time_text(row["time"]),
        time_text(row["alone"]) if on_gpu else "-",
        time_text(row["device_time"]),
        f"{row['rate'] / 1e9:.1f}",
        "-" if row["share"] is None else f"{row['share']:.1%}",
        "-" if row["launches"] is None else f"{row['launches']:g}",
        size_text(row["peak_memory"]) if on_gpu else "-",
        time_text(row["until_first"]),
        ", ".join(f"{name} {ratio:.1f}x" for name, ratio in row["against"].items()),
    ]


def time_text(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e6:.3g} us"


def size_text(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
