"""From what was measured to results: rates, shares of a roofline, ratios to the peers that are called alike."""

from typing import Any

#: Which of the peers' calls each of ours is compared with: what allocates with what allocates, and so on.
COMPARED = {"first": "call", "plan": "call", "call": "call", "run": "out=", "graph": "graph"}


def results(run: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run of `pytest bench --benchmark-json`: bench.json, as it is written.

    `rows` has one entry per measurement. Times are in seconds: `time` is what a call takes in a queue of calls on a
    GPU. On a CPU it is the fastest round: whatever else the machine does can only add to it. `alone` is the median
    round; on a GPU, from an idle device to an idle device, the host included.
    `rate` is `bytes` (the least traffic) per second of `time`, `share` the part of its roofline's rate that it reaches,
    and `against` the ratio peer's time / this time, for peers that are called alike.
    """
    rows = [_row(benchmark) for benchmark in run["benchmarks"]]
    rooflines = {row["case"]: row["rate"] for row in rows if row["op"] == "roofline"}
    for row in rows:
        roofline = rooflines.get(row["roofline"])
        row["share"] = row["rate"] / roofline if roofline and row["op"] != "roofline" else None
        row["against"] = {
            peer["contender"]: peer["time"] / row["time"]
            for peer in rows
            if row["ours"]
            and not peer["ours"]
            and (peer["op"], peer["case"]) == (row["op"], row["case"])
            and peer["call"] == COMPARED[row["call"]]
        }
    machine = run["machine_info"]
    return {
        "settings": run["settings"],
        "environment": machine["environment"],
        "cpu": machine["cpu"].get("brand_raw") or machine["processor"] or machine["machine"],
        "commit": run["commit_info"].get("id"),
        "dirty": bool(run["commit_info"].get("dirty")),
        "datetime": run["datetime"],
        "rows": rows,
        "skipped": run["skipped"],
    }


def _row(benchmark: dict[str, Any]) -> dict[str, Any]:
    info, stats = benchmark["extra_info"], benchmark["stats"]
    row = {"reduced": "", "queued": None, "device_time": None, "launches": None, "peak_memory": None, **info}
    queued = row.pop("queued")
    row["alone"], row["rounds"] = stats["median"], stats["rounds"]
    row["time"] = queued or stats["min"]
    row["bytes"] = row["read"] + row["written"]
    row["rate"] = row["bytes"] / row["time"]
    return row


def by_case(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of each (op, case), in order."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["op"], row["case"]), []).append(row)
    return groups


def best(rows: list[dict[str, Any]], calls: tuple[str, ...]) -> dict[str, Any] | None:
    """The fastest row of the first of `calls` that any row has."""
    for call in calls:
        if found := [row for row in rows if row["call"] == call]:
            return min(found, key=lambda row: row["time"])
    return None
