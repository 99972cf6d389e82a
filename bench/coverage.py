"""Which models of a zoo can be widened, how much of them, and whether the function stays: every model of a library, in
turn.

Each model is built with random weights, running statistics, gains and embeddings, widened by half, and compared with
its student in eval and in train mode, in float64. Each runs in a process of its own, so that one that takes too long or
too much memory does not take the others along.

    python bench/coverage.py torchvision --out runs/coverage
    python bench/coverage.py timm --only 'resnet*' --out runs/coverage
    python bench/coverage.py timm --out runs/coverage --report          # only write the table of what is there
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FACTOR = 1.5
EXACT = 1e-9
#: Models whose images are larger than this are built for smaller ones.
_LARGE = 512


def torchvision_models() -> dict[str, str]:
    """Every classifier, and a size of image that will do."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return {name: name for name in names}


def timm_models() -> dict[str, str]:
    """One model of each module of architectures that timm has: the smallest, by its name."""
    import timm

    chosen = {}
    for module in timm.list_modules():
        models = [m for m in timm.list_models(module=module) if not m.startswith("test_")]
        if models:
            chosen[module] = min(models, key=_size_in_name)
    return chosen


def _size_in_name(name: str) -> tuple[int, int, str]:
    order = ["atto", "femto", "pico", "nano", "xxt", "xxs", "micro", "tiny", "mini", "xs", "small"]
    words = name.split("_")
    rank = next((i for i, word in enumerate(order) if any(w.startswith(word) for w in words)), len(order))
    return rank, len(name), name


def build(library: str, name: str) -> tuple[nn.Module, Tensor]:
    """A model, and an input for it."""
    if library == "torchvision":
        import torchvision

        fixed = {"vit": 224, "maxvit": 224, "inception": 299}
        size = next((s for prefix, s in fixed.items() if name.startswith(prefix)), 64)
        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name == "vit_h_14":
            extra["image_size"] = size = 56
        return torchvision.models.get_model(name, weights=None, **extra), torch.randn(2, 3, size, size)
    import timm

    model = timm.create_model(name)
    if model.num_classes == 0:  # its features are its outputs, and would have to stay as they are
        model = timm.create_model(name, num_classes=1000)
    config = model.default_cfg
    shape = tuple(config["input_size"])
    if config.get("fixed_input_size") and shape[1] > _LARGE:
        # It takes images of one size alone, but which one can be chosen.
        shape = (shape[0], 256, 256)
        model = timm.create_model(name, img_size=256)
    elif not config.get("fixed_input_size"):
        smallest = config.get("min_input_size") or (shape[0], min(shape[1], 128), min(shape[2], 128))
        for smaller in (tuple(smallest), shape):
            try:
                with torch.no_grad():
                    model.eval()(torch.randn(1, *smaller))
                shape = smaller
                break
            except Exception:  # some models only run at their own size
                continue
    return model, torch.randn(2, *shape)


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
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and name not in fixed:
            dim = 1 if getattr(module, "transposed", False) else 0
            units = module.weight.shape[dim]
            total += units
            grown += units * ((f"{name}.weight", dim) in plan.axes)
    return grown / total if total else 0.0


def examine(library: str, name: str) -> dict[str, Any]:
    """Widens one model, and compares."""
    import net2net
    from net2net.choices import Choices
    from net2net.widen import plan_and_groups

    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    model, x = build(library, name)
    model, x = randomise(model).double().eval(), x.double()
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
    try:
        for module in [*model.modules(), *student.modules()]:
            if "Drop" in type(module).__name__:
                module.p = module.drop_prob = 0.0  # type: ignore[assignment]
            if hasattr(module, "drop_rate"):  # of dropout as a function
                module.drop_rate = 0.0  # type: ignore[assignment]
        record["train"] = net2net.verify(model.train(), student.train(), x).max_rel
    except Exception as error:
        record["train"] = f"{type(error).__name__}: {error}"[:200]
    record["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return record


def run(library: str, names: dict[str, str], out: Path, seconds: float) -> None:
    """Examines all models that `out` does not have yet."""
    out.parent.mkdir(parents=True, exist_ok=True)
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    done = {r["model"] for r in read(out)}
    for i, (family, name) in enumerate(names.items()):
        if name in done:
            continue
        command = [sys.executable, __file__, library, "--one", name]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
            lines = ran.stdout.strip().splitlines()
            record = json.loads(lines[-1]) if ran.returncode == 0 else None
            error = (ran.stderr.strip().splitlines() or [f"exit {ran.returncode}"])[-1][:400]
        except subprocess.TimeoutExpired:
            record, error = None, f"took more than {seconds:.0f} s"
        record = record or {"model": name, "error": error}
        record["family"], record["commit"] = family, commit
        with out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"[{i + 1}/{len(names)}] {_line(record)}", flush=True)


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
        left = f"{r['skipped'][0][0]} and others: {r['skipped'][0][2][:100]}".replace("|", "/") if r["skipped"] else ""
        lines.append(
            f"| {r['model']} | {r['parameters']:,} | {r['share']:.1%} | {r['growth']} | {r['eval']:.0e} | {train} "
            f"| {r['seconds']} | {r.get('cpu_seconds', '')} | {left} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=("torchvision", "timm"))
    parser.add_argument("--only", default="*", help="a shell-style pattern of names")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage"), help="a folder for the results")
    parser.add_argument("--seconds", type=float, default=300, help="per model")
    parser.add_argument("--report", action="store_true", help="examine nothing, only write the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(examine(options.library, options.one)))
        return
    zoo: Callable[[], dict[str, str]] = {"torchvision": torchvision_models, "timm": timm_models}[options.library]
    path = options.out / f"{options.library}.jsonl"
    if not options.report:
        chosen = {f: n for f, n in zoo().items() if fnmatch.fnmatch(n, options.only)}
        run(options.library, chosen, path, options.seconds)
    text = report(read(path))
    path.with_suffix(".md").write_text(text)
    print(text.split("\n\n")[0])


if __name__ == "__main__":
    main()
