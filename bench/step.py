"""The growth step as users call it, on a plan that has been applied before: what it costs the host, and the whole.

    PYTHONPATH=python:. python bench/step.py [--layers 1000] [--rounds 15] [--out step.json]

"host" is everything but the kernels: launches and standard deviations are left out, outputs are allocated and not
written. Planning is not measured, and takes its time for a deep network.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import net2net
import torch
from net2net import widen_plan
from net2net.environment import environment
from net2net.models import inception_bn
from torch import Tensor, nn

from n2n_kernels import native


def deep(layers: int) -> nn.Module:
    """Convolutions with batch normalisation and rectifiers, of few channels."""
    blocks: list[nn.Module] = []
    for i in range(layers):
        blocks += [nn.Conv2d(8 if i else 3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Conv2d(8, 3, 1))


class _NoLaunch:
    """The native module, but that it does not grow anything."""

    def __init__(self) -> None:
        self._module = native.module()

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)

    def gather_scale(self, *_: object) -> None: ...


@contextmanager
def without_kernels() -> Iterator[None]:
    stub = _NoLaunch()

    def ones(tensors: list[Tensor]) -> Tensor:
        return torch.ones(len(tensors), dtype=torch.float64, device=tensors[0].device)

    with mock.patch.object(native, "module", return_value=stub), mock.patch.object(widen_plan, "_stds", ones):
        yield


def times(run: Callable[[], object], rounds: int) -> dict[str, float]:
    """Seconds: the fastest and the median round."""
    run()
    measured = []
    for _ in range(rounds):
        begin = time.perf_counter()
        result = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        measured.append(time.perf_counter() - begin)
        del result
    return {"min": min(measured), "median": statistics.median(measured)}


def measure(name: str, model: nn.Module, side: int, rounds: int) -> list[dict[str, object]]:
    device = next(model.parameters()).device
    plan = net2net.plan_widen(model, torch.randn(1, 3, side, side, device=device), 1.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    student = plan.apply(model)
    parts: dict[str, Callable[[], object]] = {
        "apply": lambda: plan.apply(model),
        "grow_optimizer": lambda: plan.grow_optimizer(optimizer, student),
    }
    rows: list[dict[str, object]] = []
    for part, run in parts.items():
        rows.append({"model": name, "part": part, "what": "whole", **times(run, rounds)})
        with without_kernels():
            rows.append({"model": name, "part": part, "what": "host", **times(run, rounds)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1000, help="of the deep network; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = measure("Inception-BN", inception_bn(1000).to(device), 224, given.rounds)
    if given.layers:
        rows += measure(f"{given.layers} x conv, batch norm, ReLU", deep(given.layers).to(device), 8, given.rounds)
    for row in rows:
        low, middle = (f"{1e3 * float(str(row[key])):7.1f} ms" for key in ("min", "median"))
        print(f"{row['model']:32s} {row['part']:15s} {row['what']:6s} min {low}  median {middle}")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
