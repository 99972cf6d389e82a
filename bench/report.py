"""From pytest-benchmark's JSON to a table, as Markdown and as JSON.

python bench/report.py RUN.json FOLDER      writes FOLDER/bench.md and FOLDER/bench.json, and prints the table
"""

import argparse
import json
from pathlib import Path
from typing import Any

COLUMNS = ("case", "op", "backend", "time", "bytes", "GB/s", "of copy", "on device", "launches", "against peers")


def rows(run: dict[str, Any]) -> list[dict[str, Any]]:
    """One per measurement: times in seconds (the median round), rates in bytes per second, ratios as peer / this."""
    measured = [
        {**b["extra_info"], "time": b["stats"]["median"], "rounds": b["stats"]["rounds"]} for b in run["benchmarks"]
    ]
    copy = next((row["bytes"] / row["time"] for row in measured if row["op"] == "copy_"), None)
    ours = {"cuda", "triton", "cpu", "reference"}
    for row in measured:
        row["rate"] = row["bytes"] / row["time"]
        row["share_of_copy"] = row["rate"] / copy if copy else None
        peers = [
            other for other in measured
            if (other["op"], other["case"]) == (row["op"], row["case"]) and other["contender"] not in ours
        ] if row["contender"] in ours else []  # fmt: skip
        row["against_peers"] = {peer["contender"]: peer["time"] / row["time"] for peer in peers}
    return measured


def time_text(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def cells(row: dict[str, Any]) -> list[str]:
    share = row["share_of_copy"]
    return [
        row["case"],
        row["op"],
        row["contender"],
        time_text(row["time"]),
        f"{row['bytes'] / 1e6:.1f} MB",
        f"{row['rate'] / 1e9:.1f}",
        "" if share is None else f"{share:.1%}",
        time_text(row.get("device_time")),
        str(row.get("launches", "")),
        ", ".join(f"{ratio:.1f}x {name}" for name, ratio in row["against_peers"].items()),
    ]


def markdown(run: dict[str, Any], table: list[dict[str, Any]]) -> str:
    machine, commit = run["machine_info"], run["commit_info"]
    about = machine["environment"]
    hardware = ", ".join(about["gpus"]) or machine["cpu"].get("brand_raw") or machine["processor"] or machine["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    lines = [
        "# Benchmarks",
        "",
        f"- machine: {hardware}; {about['cpu_cores']} CPU cores, {about['torch_threads']} threads; {about['platform']}",
        f"- versions: {versions}; CUDA of torch {about['torch_cuda']}, of the build {about['build']['cuda']}",
        f"- code: {commit.get('id', 'unknown')}{' with changes' if commit.get('dirty') else ''}, {run['datetime']}",
        "- time: median of the rounds, host included, from an idle device with a cold L2; bytes: the least traffic; "
        "on device: the kernels' own time",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        *("| " + " | ".join(cells(row)) + " |" for row in table),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("folder", type=Path, help="where bench.md and bench.json go")
    given = parser.parse_args()
    run = json.loads(given.run.read_text())
    table = rows(run)
    given.folder.mkdir(parents=True, exist_ok=True)
    text = markdown(run, table)
    (given.folder / "bench.md").write_text(text)
    result = {"machine": run["machine_info"], "commit": run["commit_info"], "datetime": run["datetime"], "rows": table}
    (given.folder / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    print(text, end="")


if __name__ == "__main__":
    main()
