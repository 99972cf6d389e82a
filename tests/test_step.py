"""The growth step as a whole: prepared once, with no memory to spare, or using the teacher up."""

import concurrent.futures
import copy
import functools
import json
import os
import pickle
import subprocess
import sys
import threading
from typing import Any

import net2net
import pytest
import torch
from models import EXAMPLES
from net2net import chunks
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from n2n_kernels import GatherScalePlan

EXAMPLE_NAMES = ["residual", "tied", "channels_last_features"]


def plan_of(kind: str, model: nn.Module, x: Tensor, **options: Any) -> net2net.GrowthPlan:
    if kind == "deepen":
        return net2net.plan_deepen(model, x, data=[x])
    return net2net.plan_widen(model, x, 1.5, **options)


def trained(model: nn.Module, dtype: torch.dtype = torch.float64) -> Optimizer:
    optimizer = AdamW(model.parameters(), lr=0.0, amsgrad=True)
    g = torch.Generator().manual_seed(7)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g).to(dtype)
    optimizer.step()
    return optimizer


def assert_equal(a: Any, b: Any) -> None:
    a, b = (torch.utils._pytree.tree_leaves(s) for s in (a, b))
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Tensor):
            assert (x.dtype, x.shape, x.stride()) == (y.dtype, y.shape, y.stride())
            assert torch.equal(x, y)
        else:
            assert x == y


def count_plans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is called to prepare something, as they are called."""
    calls: list[str] = []

    def count(name: str) -> None:
        original = getattr(GatherScalePlan, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(GatherScalePlan, name, counted)

    count("__init__")
    count("derive")
    return calls


# -- prepared -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["widen", "deepen"])
def test_what_is_prepared_is_used_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = EXAMPLES["residual"].build()
    plan = plan_of(kind, model, x)
    optimizer = trained(model)
    calls = count_plans(monkeypatch)
    students = [plan.apply(model) for _ in range(2)]
    plan.grow_state_dict(model.state_dict())
    assert calls == ["__init__"]
    grown = [plan.grow_optimizer(optimizer, student) for student in students]
    assert calls == ["__init__", "derive"]
    assert_equal(students[0].state_dict(), students[1].state_dict())
    assert_equal(grown[0].state_dict(), grown[1].state_dict())
    other, _ = EXAMPLES["residual"].build(torch.float32)
    assert next(plan.apply(other).parameters()).dtype == torch.float32
    assert calls == ["__init__", "derive", "__init__"]


def test_layouts_may_change_between_applications() -> None:
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(model, x, 1.5, noise="none")
    expected = plan.apply(model).state_dict()
    model.to(memory_format=torch.channels_last)
    student = plan.apply(model)
    assert student.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(t, expected[k]) for k, t in student.state_dict().items())


@pytest.mark.parametrize("kind", ["widen", "deepen"])
@pytest.mark.parametrize("ready", [False, True])
def test_copied_and_pickled_plans_do_the_same(kind: str, ready: bool) -> None:
    model, x = EXAMPLES["residual"].build()
    plan = plan_of(kind, model, x)
    optimizer = trained(model)
    if ready:
        student = plan.apply(model)
        plan.grow_optimizer(optimizer, student)
        # A deep copy, unlike a pickled plan, knows the same students.
        assert_equal(
            copy.deepcopy(plan).grow_optimizer(optimizer, student).state_dict(),
            plan.grow_optimizer(optimizer, student).state_dict(),
        )
    for other in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan), copy.copy(plan)):
        first, second = plan.apply(model), other.apply(model)
        assert_equal(first.state_dict(), second.state_dict())
        assert_equal(
            plan.grow_optimizer(optimizer, first).state_dict(), other.grow_optimizer(optimizer, second).state_dict()
        )


def test_threads_share_a_plan() -> None:
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    expected = copy.deepcopy(plan).apply(model).state_dict()
    optimizer = trained(model)
    students: list[nn.Module] = []
    together = threading.Barrier(4)

    def grow() -> None:
        together.wait()
        for _ in range(3):
            student = plan.apply(model)
            plan.grow_optimizer(optimizer, student)
            students.append(student)

    threads = [threading.Thread(target=grow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(students) == 12
    for student in students:
        assert_equal(student.state_dict(), expected)


def test_a_model_without_memory_grows_without() -> None:
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    student = plan.apply(model.to("meta"))
    assert student.stem.weight.is_meta
    assert student.stem.weight.shape == plan.student_shape("stem.weight")
    consumed = plan.apply(model, consume=True)
    assert consumed.stem.weight.shape == student.stem.weight.shape


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_gives_no_noise(value: float) -> None:
    model, x = EXAMPLES["plain_2d"].build()
    with torch.no_grad():
        model[4].weight[0, 0] = value
    noisy = net2net.plan_widen(model, x, 1.5, seed=2).apply(model).state_dict()
    exact = net2net.plan_widen(model, x, 1.5, seed=2, noise="none").apply(model).state_dict()
    same = [k for k in noisy if torch.equal(noisy[k].nan_to_num(), exact[k].nan_to_num())]
    assert "4.weight" in same
    assert "10.weight" not in same


# -- using the teacher up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["widen", "deepen"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_a_teacher_that_is_used_up_gives_the_same_student(name: str, kind: str, dtype: torch.dtype) -> None:
    model, x = EXAMPLES[name].build(dtype)
    if name == "residual":
        model.to(memory_format=torch.channels_last)
        model.stem.weight.requires_grad_(False)
    plan = plan_of(kind, model, x)
    optimizer = trained(model, dtype)
    expected = plan.apply(model)
    expected_optimizer = plan.grow_optimizer(optimizer, expected)
    student = plan.apply(model, consume=True)
    assert_equal(student.state_dict(), expected.state_dict())
    assert [p.requires_grad for p in student.parameters()] == [p.requires_grad for p in expected.parameters()]
    grown = plan.grow_optimizer(optimizer, student, consume=True)
    assert_equal(grown.state_dict(), expected_optimizer.state_dict())
    assert all(t.numel() == 0 for t in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())])
    assert all(p.grad is None for p in model.parameters())
    assert not any(v.numel() for s in optimizer.state.values() for v in s.values() if v.dim())
    # It is a student like any other.
    out = student.train()(x)
    (out[0] if isinstance(out, tuple) else out).sum().backward()
    grown.step()
    again = plan_of(kind, student.eval(), x).apply(student)
    assert net2net.verify(student, again, x).ok


@pytest.mark.parametrize("noise", ["cancelling", "paper"])
def test_noise_does_not_depend_on_the_chunks(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(model, x, 1.5, noise=noise)
    expected = plan.apply(model).state_dict()
    for share in (1.0, 0.3, 0.0):
        monkeypatch.setattr(chunks, "_SHARE", share)
        assert_equal(plan.apply(copy.deepcopy(model), consume=True).state_dict(), expected)
        assert_equal(copy.deepcopy(plan).apply(copy.deepcopy(model), consume=True).state_dict(), expected)


def test_chunks_are_few_and_small() -> None:
    tensors = [torch.empty(n, device="meta") for n in (1, 5, 0, 100, 3, *[10] * 1000)]
    parts = chunks.cut(tensors)
    assert [i for part in parts for i in range(len(tensors))[part]] == list(range(len(tensors)))
    assert len(parts) <= 64
    largest = max(sum(t.nbytes for t in tensors[part]) for part in parts)
    assert largest <= max(400, sum(t.nbytes for t in tensors) / 32)


def test_what_is_spent_says_so() -> None:
    model, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    optimizer = trained(model)
    student = plan.apply(model, consume=True)
    for module in (model, model.conv1):
        with pytest.raises(RuntimeError, match=rf"this {type(module).__name__} was consumed by a growth step"):
            module(x)
    for refused in (
        lambda: plan.apply(model),
        lambda: plan.apply(model, consume=True),
        lambda: net2net.plan_widen(model, x, 1.5),
        lambda: net2net.plan_deepen(model, x),
        lambda: plan.apply(copy.deepcopy(model)),
    ):
        with pytest.raises(ValueError, match="model was consumed"):
            refused()
    grown = plan.grow_optimizer(optimizer, student, consume=True)
    with pytest.raises(RuntimeError, match="this AdamW was consumed"):
        optimizer.step()
    with pytest.raises(ValueError, match="optimizer was consumed"):
        plan.grow_optimizer(optimizer, student)
    student(x).sum().backward()
    grown.step()


def test_nothing_is_consumed_where_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    optimizer = trained(model)
    student = plan.apply(model)
    other, _ = EXAMPLES["plain_1d"].build()
    before = {k: t.clone() for k, t in other.state_dict().items()}
    with pytest.raises(ValueError, match="model has no"):
        plan.apply(other, consume=True)
    assert_equal(other.state_dict(), before)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    model.uncopyable = (i for i in range(3))
    with pytest.raises(TypeError, match="generator"):
        plan.apply(model, consume=True)
    del model.uncopyable
    weight = model[4].weight
    model[4].weight = nn.Parameter(weight.detach().to("meta"))  # on another device than the rest
    with pytest.raises(ValueError, match=r"4\.weight is on meta, but 0\.weight on cpu"):
        plan.apply(model, consume=True)
    model[4].weight = nn.Parameter(weight.detach().to_sparse())
    with pytest.raises(TypeError, match=r"4\.weight has the layout torch\.sparse"):
        plan.apply(model, consume=True)
    model[4].weight = weight
    assert_equal(model.state_dict(), before)
    optimizer.state[model[0].weight]["mystery"] = torch.ones_like(model[0].weight)
    with pytest.raises(TypeError, match="'mystery'"):
        plan.grow_optimizer(optimizer, student, consume=True)
    del optimizer.state[model[0].weight]["mystery"]
    assert_equal(optimizer.state_dict(), state)
    assert net2net.verify(model, plan.apply(model), x).ok


def test_what_copies_share_is_not_consumed() -> None:
    class Shared(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
            return self

    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    plan = net2net.plan_widen(model, torch.randn(2, 4).double(), 2, layers="0")
    model[2] = Shared(6, 3).double()
    with pytest.raises(ValueError, match=r"cannot be consumed: 2\.weight"):
        plan.apply(model, consume=True)
    assert model(torch.randn(2, 4).double()).shape == (2, 3)


def test_an_optimizer_without_state_grows_too() -> None:
    model, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    optimizer = SGD(model.parameters(), lr=0.1)
    student = plan.apply(model, consume=True)
    grown = plan.grow_optimizer(optimizer, student, consume=True)
    assert [id(p) for p in grown.param_groups[0]["params"]] == [id(p) for p in student.parameters()]


def test_memory_that_others_hold_keeps_its_values() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    flat = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    kept = flat.clone()
    at = 0
    for p in model.parameters():
        p.data = flat[at : at + p.numel()].view_as(p)
        at += p.numel()
    plan = net2net.plan_widen(model, torch.randn(2, 4).double(), 2)
    expected = plan.apply(model)
    assert_equal(plan.apply(model, consume=True).state_dict(), expected.state_dict())
    assert torch.equal(flat, kept)


# -- memory -------------------------------------------------------------------------------------------------------

MEMORY = """
import gc, json, sys
import net2net, torch
from torch import nn

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

def now():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

def size(tensors):
    return sum(t.nbytes for t in tensors)

def measure(what, consume):
    width, layers = 1024, 24
    model = nn.Sequential(nn.Linear(8, width), *[nn.Linear(width, width) for _ in range(layers)], nn.Linear(width, 8))
    plan = net2net.plan_widen(model, torch.randn(1, 8), 1.25)
    if what == "optimizer":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.zero_grad()
        student = plan.apply(model, consume=True)
        olds = [s["momentum_buffer"] for s in optimizer.state.values()]
    else:
        olds = list(model.parameters())
    old, largest = size(olds), max(t.nbytes for t in olds)
    del olds
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # the high-water mark begins anew
    before = now()
    if what == "optimizer":
        grown = plan.grow_optimizer(optimizer, student, consume=consume)
        new = size(s["momentum_buffer"] for s in grown.state.values())
    else:
        student = plan.apply(model, consume=consume)
        new = size(student.parameters())
    return peak() - (before - old), now() - (before - old), old, new, max(largest, old // 32)

torch.set_num_threads(1)
small = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 8))  # what is imported on first use
once = net2net.plan_widen(small, torch.randn(1, 8), 1.25)
optimizer = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
[p.grad.zero_() if p.grad is not None else setattr(p, "grad", torch.zeros_like(p)) for p in small.parameters()]
optimizer.step()
once.grow_optimizer(optimizer, once.apply(small))
for case in sys.argv[1:]:
    print(*measure(*json.loads(case)))
    gc.collect()
"""


MEASURED = [(what, consume) for what in ("model", "optimizer") for consume in (False, True)]


@functools.cache
def measured() -> dict[tuple[str, bool], list[int]]:
    """What `MEMORY` prints, in a process of its own, with about 100 MB of weights at a time."""
    # Freed memory goes back to the system at once, and does not stay in the allocator.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-c", MEMORY, *map(json.dumps, MEASURED)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    lines = [list(map(int, line.split())) for line in result.stdout.splitlines()]
    return dict(zip(MEASURED, lines, strict=True))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize("what", ["model", "optimizer"])
@pytest.mark.parametrize("consume", [False, True], ids=["ordinary", "consume"])
def test_peak_memory(what: str, consume: bool) -> None:
    """The most that the process had."""
    peak, after, old, new, chunk = measured()[what, consume]
    small = 3 * 2**20  # modules, tables
    allowed = new + chunk if consume else old + new
    assert peak <= 1.01 * allowed + small
    assert after <= 1.01 * (new if consume else old + new) + small


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("consume", [False, True], ids=["ordinary", "consume"])
def test_peak_memory_on_a_gpu(consume: bool) -> None:
    def size(model: nn.Module) -> int:
        return sum(p.nbytes for p in model.parameters())

    layers = [nn.Linear(8, 1024), *[nn.Linear(1024, 1024) for _ in range(64)], nn.Linear(1024, 8)]
    model = nn.Sequential(*layers).cuda()
    plan = net2net.plan_widen(model, torch.randn(1, 8, device="cuda"), 1.25)
    chunk, old = max(4 * 1024**2, size(model) // 32), size(model)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    student = plan.apply(model, consume=consume)
    allowed = size(student) + (chunk if consume else old)
    assert torch.cuda.max_memory_allocated() - before + old <= 1.01 * allowed + 2**21


def test_one_of_several_threads_consumes() -> None:
    """The others are told that the model was consumed; nobody reads what was freed."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    plan = net2net.plan_widen(model, torch.randn(2, 3, 9, 9), 2.0)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(plan.apply, model, consume=True) for _ in range(4)]
    errors = [future.exception() for future in futures]
    assert sum(error is None for error in errors) == 1
    assert all("was consumed" in str(error) for error in errors if error is not None)
