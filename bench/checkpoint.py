"""Growing a large checkpoint: the memory that it takes, and its speed beside that of copying the file.

    python bench/checkpoint.py --folder /data/scratch --gigabytes 4

Each part is a process of its own. Memory is the largest resident set beyond what the process had before. All files were
written just before and are read from the page cache as far as it goes; what is written is made durable (fsync) in both
cases. Needs room for about four times the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import net2net
import torch
from net2net.checkpoints import safetensors_file
from net2net.checkpoints.streams import known
from net2net.checkpoints.tally import Tally
from torch import nn

WIDTH = 4096


class Tower(nn.Module):
    """A table of half of the bytes, and wide layers."""

    def __init__(self, gigabytes: float) -> None:
        super().__init__()
        number = max(1, round(gigabytes * 2**30 / 2 / (WIDTH * WIDTH * 4)))
        self.table = nn.Embedding(number * WIDTH, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.table(x)
        for layer in self.layers:
            x = layer(x).relu()
        return x


def prepare(folder: Path, gigabytes: float, noise: str) -> None:
    """The plan, and a checkpoint of random numbers, one tensor after the other."""
    with torch.device("meta"):
        model = Tower(gigabytes)
    example = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    net2net.plan_widen(model, example, 1.25, noise=noise).save(folder / "plan.json")
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    block = torch.randn(WIDTH, WIDTH) * 0.02

    def rows(begin: int, end: int) -> torch.Tensor:
        return block.view(-1).repeat(-(-(end - begin) // block.numel()))[: end - begin]

    streams = {
        name: net2net.checkpoints.streams.Stream(torch.float32, shape, torch.Size(shape).numel(), rows)
        for name, shape in shapes.items()
    }
    safetensors_file.write(folder / "source.safetensors", streams, {"format": "pt"}, Tally(None, 1))


def grow(folder: Path) -> None:
    plan = net2net.GrowthPlan.load(folder / "plan.json")
    known(torch.ones(4))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here on
    before = resident("VmRSS")
    started = time.perf_counter()
    report = plan.grow_checkpoint(folder / "source.safetensors", folder / "grown.safetensors")
    seconds = time.perf_counter() - started
    after = resident("VmHWM")
    print(json.dumps({"seconds": seconds, "extra_mib": (after - before) / 1024, "bytes": report.bytes_written}))


def resident(which: str) -> int:
    """KiB of this process, now (VmRSS) or at most (VmHWM). (What `getrusage` says includes the parent.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which))


def copy(source: Path, target: Path) -> float:
    """As `cp` does it, then fsync."""
    os.sync()
    started = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
    handle = os.open(target, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--noise", default="cancelling")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--step", choices=("grow",))
    args = parser.parse_args()
    if args.step:
        torch.set_num_threads(args.threads)
        return grow(args.folder)
    prepare(args.folder, args.gigabytes, args.noise)
    source, grown = args.folder / "source.safetensors", args.folder / "grown.safetensors"
    again = [sys.executable, __file__, "--folder", str(args.folder), "--threads", str(args.threads), "--step", "grow"]
    os.sync()  # or else writing would wait for what has been written before
    done = json.loads(subprocess.run(again, check=True, capture_output=True, text=True).stdout)
    copied = copy(source, args.folder / "copy")
    size, written = source.stat().st_size, grown.stat().st_size
    (args.folder / "copy").unlink()
    copied_grown = copy(grown, args.folder / "copy")
    for name in ("copy", "grown.safetensors", "source.safetensors", "plan.json"):
        (args.folder / name).unlink()
    print(f"source {size / 2**30:.2f} GiB, grown {written / 2**30:.2f} GiB, noise {args.noise}")
    print(f"growing {done['seconds']:.1f} s, extra memory {done['extra_mib']:.0f} MiB")
    print(f"copying the source {copied:.1f} s, the grown file {copied_grown:.1f} s")
    print(f"as fast as copying what is written: {copied_grown / done['seconds']:.2f}")


if __name__ == "__main__":
    main()
