"""The share of the roofline of every case, for each backend and the fastest peer, as a figure (with matplotlib)."""

import io
from typing import Any

from net2net.extras import require
from net2net.plots import COLOURS
from results import best, by_case

PEER = "fastest peer"


def shares_png(result: dict[str, Any]) -> bytes:
    """A PNG file: one bar per case and backend, of the call that leaves out most of the host's work.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; names the extra that brings it.
    """
    groups = by_case([row for row in result["rows"] if row["share"] is not None])
    bars = {f"{op}: {case}": _bars(rows) for (op, case), rows in groups.items()}
    names = sorted({name for case in bars.values() for name in case}, key=lambda name: (name == PEER, name))
    colours = dict(zip(names, COLOURS, strict=False)) | {PEER: "#999999"}
    # A figure of its own, not pyplot's: no global state, and no window system is asked for.
    figure = require("matplotlib.figure", "bench").Figure(figsize=(10, 1.5 + 0.45 * len(bars)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / max(len(names), 1)
    for i, name in enumerate(names):
        at = [y + (i - (len(names) - 1) / 2) * height for y, case in enumerate(bars.values()) if name in case]
        axes.barh(at, [case[name] for case in bars.values() if name in case], height, label=name, color=colours[name])
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(len(bars) - 0.5, -0.5)  # the first case on top
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set(xlabel="share of the roofline measured in the same run", xlim=(0, None))
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper right", ncols=max(len(names), 1))
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def _bars(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Shares by the backends' names, and the fastest peer's."""
    shares = {}
    for backend in dict.fromkeys(row["contender"] for row in rows if row["ours"]):
        row = best([r for r in rows if r["ours"] and r["contender"] == backend], ("run", "plan", "call", "first"))
        assert row is not None
        shares[backend] = row["share"]
    peer = best([row for row in rows if not row["ours"]], ("out=", "call"))
    return shares | ({PEER: peer["share"]} if peer else {})
