"""Which models of a zoo can be widened, how much of them, and whether the function stays: every model of a library, in
turn.

Each model is built with random weights, running statistics, gains and embeddings, widened by half, and compared with
its student in eval and in train mode, in float64. Each runs in a process of its own, so that one that takes too long or
too much memory does not take the others along.

    python bench/coverage.py torchvision --out runs/coverage
    python bench/coverage.py timm --only 'resnet*' --out runs/coverage
    python bench/coverage.py timm --out runs/coverage --report          # only write the table of what is there
    python bench/coverage.py transformers --out runs/coverage           # and what else there is in zoos.py
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import zoos
from torch import nn

FACTOR = 1.5
EXACT = 1e-9
#: So many models a process examines, where their library takes its time to be imported.
_EACH = 25


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values wherever a fresh model has constants, which would hide mistakes."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if not t.is_floating_point() or not t.numel():
                continue
            constant = bool((t == t.reshape(-1)[0]).all())
            if name.endswith("running_var"):
                t.copy_(torch.rand(t.shape, generator=g) * 1.5 + 0.5)
            elif name.endswith("running_mean"):
                t.copy_(torch.randn(t.shape, generator=g) * 0.3)
            elif isinstance(t, nn.Parameter) and t.dim() <= 1 and name.endswith("weight"):
                sign = torch.where(torch.rand(t.shape, generator=g) < 0.3, -1.0, 1.0)
                t.copy_((torch.rand(t.shape, generator=g) + 0.5) * sign)
            elif isinstance(t, nn.Parameter) and (constant or t.dim() <= 1):
                t.add_(torch.randn(t.shape, generator=g) * (0.3 if t.dim() <= 1 else 0.05))
    return model


def share_widened(plan: Any, model: nn.Module, found: Any) -> float:
    """The share of units of convolutions and linear layers that are widened, of those that are not the network's
    outputs."""
    fixed = {layer for group in found for layer in group.layers if group.output}
    total = grown = 0
    for name, module in model.named_modules():
        other_way = getattr(module, "transposed", False) or type(module).__name__ == "Conv1D"  # of GPT-2
        if (isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or other_way) and name not in fixed:
            dim = 1 if other_way else 0
            units = module.weight.shape[dim]
            total += units
            names = [f"{name}.{weight}" for weight in ("weight", "weight_v", "parametrizations.weight.original1")]
            grown += units * any((weight, dim) in plan.axes for weight in names)
    return grown / total if total else 0.0


def examine(library: str, name: str) -> dict[str, Any]:
    """Widens one model, and compares."""
    import net2net
    from net2net.choices import Choices
    from net2net.widen import plan_and_groups

    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    model, given = zoos.build(library, name)
    model, x = randomise(model).double().eval(), _double(given)
    record: dict[str, Any] = {"model": name, "parameters": sum(p.numel() for p in model.parameters())}
    start, of_cpu = time.perf_counter(), time.process_time()
    plan, found = plan_and_groups(model, x, Choices(FACTOR))
    record["seconds"] = round(time.perf_counter() - start, 2)
    record["cpu_seconds"] = round(time.process_time() - of_cpu, 2)
    record["share"] = round(share_widened(plan, model, found), 4)
    record["changes"] = len(plan.changes)
    record["skipped"] = [[s.layers[0], len(s.layers), s.reason[:300]] for s in plan.skipped]
    student = plan.apply(model)
    record["growth"] = round(sum(p.numel() for p in student.parameters()) / record["parameters"], 2)
    record["eval"] = net2net.verify(model, student, x).max_rel
    if not record["eval"] < EXACT:
        record["rounding"] = net2net.verify(model, _nudged(model), x).max_rel
    try:
        for module in [*model.modules(), *student.modules()]:
            _no_dropout(module)
        record["train"] = net2net.verify(model.train(), student.train(), x).max_rel
    except Exception as error:
        record["train"] = f"{type(error).__name__}: {error}"[:200]
    record["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return record


def _nudged(model: nn.Module) -> nn.Module:
    """The model with weights that differ by rounding: what becomes of that tells how far a student may be."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in other.parameters():
            if p.is_floating_point():
                p.mul_(1 + torch.randn(p.shape, generator=generator, dtype=torch.float64) * 2**-52)
    return other


def _double(given: Any) -> Any:
    """An input in float64."""
    if isinstance(given, dict):
        return {name: _double(t) for name, t in given.items()}
    if isinstance(given, tuple | list):
        return type(given)(map(_double, given))
    return given.double() if isinstance(given, torch.Tensor) and given.is_floating_point() else given


def _no_dropout(module: nn.Module) -> None:
    """Whatever a module, or its configuration, calls its rates of dropout."""
    if "Drop" in type(module).__name__:
        module.p = module.drop_prob = 0.0  # type: ignore[assignment]
    for held in (module, getattr(module, "config", None)):
        for name, value in list(getattr(held, "__dict__", {}).items()):
            if "drop" in name and isinstance(value, float):
                setattr(held, name, 0.0)


class Worker:
    """A process that examines models, one after the other."""

    def __init__(self, library: str) -> None:
        self.done, self.lost = 0, False
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, __file__, library, "--serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip

    def examine(self, name: str, seconds: float) -> dict[str, Any]:
        """The record of one model. Afterwards the worker may be `lost`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.done += 1
        try:
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"model": name, "error": self._last_words()}
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([self._process.stdout], [], [], left)[0]:
                break
            line = self._process.stdout.readline()
            if not line:
                return {"model": name, "error": self._last_words()}
            if line.startswith(_RECORD):  # models print things too
                record: dict[str, Any] = json.loads(line[len(_RECORD) :])
                return record
        self.lost = True
        return {"model": name, "error": f"took more than {seconds:.0f} s"}

    def _last_words(self) -> str:
        self.lost = True
        code = self._process.wait()
        self._log.seek(0)
        return (self._log.read().strip().splitlines() or [f"exit {code}"])[-1][:400]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


#: What begins a line with a record.
_RECORD = "record: "


def serve(library: str) -> None:
    """What a worker does."""
    for line in sys.stdin:
        name = line.strip()
        try:
            record = examine(library, name)
        except zoos.UnavailableError as error:
            record = {"model": name, "left_out": str(error)}
        except Exception as error:
            record = {"model": name, "error": f"{type(error).__name__}: {error}"[:400]}
        print(_RECORD + json.dumps(record), flush=True)


def run(library: str, names: dict[str, str], out: Path, seconds: float) -> None:
    """Examines all models that `out` does not have yet."""
    out.parent.mkdir(parents=True, exist_ok=True)
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    done = {r["model"] for r in read(out)}
    # Large models have a process each, so that what one has used is not the next one's.
    each = 1 if library in {"torchvision", "timm"} else _EACH
    worker: Worker | None = None
    for i, (family, name) in enumerate(names.items()):
        if name in done:
            continue
        worker = worker or Worker(library)
        record = worker.examine(name, seconds)
        if worker.lost or worker.done >= each:
            worker.close()
            worker = None
        if "left_out" in record:
            print(f"[{i + 1}/{len(names)}] {name}: {record['left_out']}", flush=True)
            continue
        record["family"], record["commit"] = family, commit
        with out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"[{i + 1}/{len(names)}] {_line(record)}", flush=True)
    if worker is not None:
        worker.close()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def exact(record: dict[str, Any]) -> bool:
    return record.get("eval", 1.0) < EXACT


def _line(r: dict[str, Any]) -> str:
    if "error" in r:
        return f"{r['model']}: {r['error']}"
    return f"{r['model']}: {r['share']:.1%} widened, eval {r['eval']:.1e}, train {r['train']}, {r['seconds']} s"


def report(records: list[dict[str, Any]]) -> str:
    """A table in Markdown, with a summary."""
    ran = [r for r in records if "error" not in r]
    shares = [r["share"] for r in ran if exact(r)]
    same = sum(map(exact, ran))
    trained = sum(isinstance(r["train"], float) and r["train"] < 1e-6 for r in ran)
    seconds = statistics.median([r["seconds"] for r in ran] or [0])
    of_cpu = [r["cpu_seconds"] for r in ran if "cpu_seconds" in r]
    lines = [
        f"- {len(records)} models, widened by {FACTOR}: {same} exact in eval mode (relative difference below {EXACT:g}",
        f"  in float64), {trained} in train mode (below 1e-6); {len(records) - len(ran)} not widened",
        "- share of the units of convolutions and linear layers that are widened: "
        f"median {statistics.median(shares or [0]):.1%}",
        f"- time of planning: median {seconds:.1f} s; CPU time {statistics.median(of_cpu or [0]):.1f} s, at most "
        f"{max(of_cpu, default=0):.1f} s",
        "",
        "| model | parameters | share | growth | eval | train | seconds | CPU seconds | left alone |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in sorted(records, key=lambda r: r["model"]):
        if "error" in r:
            lines.append(f"| {r['model']} | | | | | | | | {r['error'].replace('|', '/')} |")
            continue
        train = f"{r['train']:.0e}" if isinstance(r["train"], float) else str(r["train"])[:60].replace("|", "/")
        if "rounding" in r:
            train += f" (the model itself, with weights changed by rounding: {r['rounding']:.0e})"
        left = f"{r['skipped'][0][0]} and others: {r['skipped'][0][2][:100]}".replace("|", "/") if r["skipped"] else ""
        lines.append(
            f"| {r['model']} | {r['parameters']:,} | {r['share']:.1%} | {r['growth']} | {r['eval']:.0e} | {train} "
            f"| {r['seconds']} | {r.get('cpu_seconds', '')} | {left} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=list(zoos.ZOOS))
    parser.add_argument("--only", default="*", help="a shell-style pattern of names")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage"), help="a folder for the results")
    parser.add_argument("--seconds", type=float, default=300, help="per model")
    parser.add_argument("--report", action="store_true", help="examine nothing, only write the table")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.library)
        return
    path = options.out / f"{options.library}.jsonl"
    if not options.report:
        names = zoos.ZOOS[options.library].names()
        chosen = {f: n for f, n in names.items() if fnmatch.fnmatch(n, options.only)}
        run(options.library, chosen, path, options.seconds)
    text = report(read(path))
    path.with_suffix(".md").write_text(text)
    print(text.split("\n\n")[0])


if __name__ == "__main__":
    main()
