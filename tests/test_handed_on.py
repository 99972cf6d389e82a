"""What a forward leaves for the next one, in tensors that it writes to and in whatever modules hold: a student leaves
the same, and finds it where its teacher does."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import net2net
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXACT = 1e-10


class Leaving(nn.Module):
    """A layer, after which something is written to a buffer."""

    def __init__(self, what: Callable[["Leaving", Tensor], Tensor], buffer: Tensor) -> None:
        super().__init__()
        self.what = [what]  # not a method: it is part of the code
        self.a, self.left = nn.Linear(5, 8), nn.Buffer(buffer)
        self.heads = 4

    def forward(self, x: Tensor) -> Tensor:
        return self.what[0](self, self.a(x).relu())


def network(what: Callable[[Leaving, Tensor], Tensor], buffer: Tensor) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    leaving = Leaving(what, buffer.double() if buffer.is_floating_point() else buffer.clone())
    return nn.Sequential(leaving, nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double(), torch.randn(4, 5).double()


def counted(m: Leaving, y: Tensor) -> Tensor:
    if m.training:
        m.left += y.shape[1]
    return y / (m.left if not m.training else 1)


def filled(m: Leaving, y: Tensor) -> Tensor:
    if m.training:
        m.left.fill_(y.shape[1])
    return y / (m.left if not m.training else 1)


def put_in_its_place(m: Leaving, y: Tensor) -> Tensor:
    if m.training:
        m.left = torch.ones(()) * y.shape[1]
    return y / (m.left if not m.training else 1)


def as_data(m: Leaving, y: Tensor) -> Tensor:
    if m.training:
        m.left.data = m.left.data * y.shape[1]
    return y / (m.left if not m.training else 1)


def in_eval_mode_too(m: Leaving, y: Tensor) -> Tensor:
    z = y * m.left
    m.left.mul_(y.shape[1])
    return z


def written_by_place(m: Leaving, y: Tensor) -> Tensor:
    if m.training:
        m.left[y.shape[1] % 3] = 5
    return y * m.left[0]


BY_WIDTH = {
    "a counter": (counted, torch.tensor(1)),
    "a running sum": (counted, torch.tensor(1.0)),
    "filled": (filled, torch.tensor(1.0)),
    "put in its place": (put_in_its_place, torch.tensor(1.0)),
    "its data": (as_data, torch.tensor(1.0)),
    "in eval mode, too": (in_eval_mode_too, torch.tensor(1.0)),
    "written by place": (written_by_place, torch.ones(3)),
}


def after_training(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        model.train()(x)
        model.train()(2 * x)
        return model.eval()(x)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize("kind", BY_WIDTH)
def test_what_a_width_tells_is_not_left(kind: str) -> None:
    model, x = network(*BY_WIDTH[kind])
    plan = net2net.plan_widen(model, x, 1.5)
    student = plan.apply(model)
    assert [s.layers for s in plan.skipped] == [["0.a"]]
    assert student[1].out_features == 9
    assert relative(after_training(model, x), after_training(student, x)) < EXACT


def running_mean(m: Leaving, y: Tensor) -> Tensor:
    if m.training:
        m.left.mul_(0.9).add_(y.mean(0), alpha=0.1)
    return y - m.left


def replaced_mean(m: Leaving, y: Tensor) -> Tensor:
    if m.training:
        m.left = 0.9 * m.left + 0.1 * y.mean(0)
    return y - m.left


def counted_samples(m: Leaving, y: Tensor) -> Tensor:
    if m.training:
        m.left += len(y)
    return y / m.left


def a_queue(m: Leaving, y: Tensor) -> Tensor:
    z = y * (1 + m.left.mean())
    if m.training:
        m.left[:4] = y.mean(1)
    return z


def before_attributes_grow(m: Leaving, y: Tensor) -> Tensor:
    m.left.mul_(0.5)
    q = y.unflatten(-1, (m.heads, 2))
    return F.normalize(q, dim=-1).flatten(1) * m.left


ALIKE = {
    "a running mean": (running_mean, torch.rand(8)),
    "a running mean, anew": (replaced_mean, torch.rand(8)),
    "a number of samples": (counted_samples, torch.tensor(1)),
    "a queue": (a_queue, torch.rand(6)),
    "before attributes grow": (before_attributes_grow, torch.tensor(2.0)),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_what_no_width_tells_is_no_hindrance(kind: str) -> None:
    model, x = network(*ALIKE[kind])
    plan = net2net.plan_widen(model, x, 2)
    assert not plan.skipped
    student = plan.apply(model)
    assert student[0].a.out_features == 16
    assert relative(after_training(model, x), after_training(student, x)) < EXACT


def test_a_vector_of_units_in_the_place_of_a_buffer() -> None:
    """Nothing is known of the buffer's axis, and it is as wide as what is put there."""

    def kept_for_later(m: Leaving, y: Tensor) -> Tensor:
        m.left = y.mean(0)
        return y - m.left

    model, x = network(kept_for_later, torch.rand(8))
    student = net2net.plan_widen(model, x, 1.5).apply(model)
    assert student[0].a.out_features == 12
    assert relative(after_training(model, x), after_training(student, x)) < EXACT


class Handing(nn.Module):
    """Two layers of as many units, of which the second leaves something that the first reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.state = nn.Buffer(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.read(self.a(x)).tanh()
        z = self.b(y).tanh()
        if self.training:
            self.leave(z)
        return self.head(z)

    def read(self, y: Tensor) -> Tensor:
        return y + self.state

    def leave(self, z: Tensor) -> None:
        raise NotImplementedError


class Replaced(Handing):
    def leave(self, z: Tensor) -> None:
        self.state = z.detach().mean(0)


class Copied(Handing):
    def leave(self, z: Tensor) -> None:
        self.state[:] = z.detach().mean(0)


class AsData(Handing):
    def leave(self, z: Tensor) -> None:
        self.state.data = z.detach().mean(0)


class Statistics(Handing):
    """A mean teacher's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.BatchNorm1d(8, affine=False), nn.BatchNorm1d(8, affine=False).eval()
        self.other.train = lambda mode=True: self.other  # type: ignore[method-assign]

    def read(self, y: Tensor) -> Tensor:
        return self.other(y)

    def leave(self, z: Tensor) -> None:
        self.norm(z)
        for mine, others in zip(self.norm.buffers(), self.other.buffers(), strict=True):
            others.copy_(mine)


class SetByTheFirstBatch(Handing):
    """Of weights that were used before."""

    def leave(self, z: Tensor) -> None:
        self.a.bias.data.copy_(-z.detach().mean(0))


class Exchanged(Handing):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Buffer(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        z = self.b((self.a(x) + self.state).tanh()) * self.other
        if self.training:
            self.state, self.other = self.other, self.state
        return self.head(z.tanh())


class InAQueue(Handing):
    def __init__(self) -> None:
        super().__init__()
        self.last: deque[Tensor] = deque(maxlen=2)

    def read(self, y: Tensor) -> Tensor:
        return y + self.last[0] if self.last else y

    def leave(self, z: Tensor) -> None:
        self.last.append(z.detach().mean(0))


@dataclass(slots=True)
class Memory:
    mean: Tensor | None = None


class InAnObject(Handing):
    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()

    def read(self, y: Tensor) -> Tensor:
        return y if self.memory.mean is None else y * self.memory.mean

    def leave(self, z: Tensor) -> None:
        self.memory.mean = z.detach().mean(0)


class RunningScale(Handing):
    """A number that is made of a width."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = {"scale": 1.0}

    def read(self, y: Tensor) -> Tensor:
        return y * self.kept["scale"]

    def leave(self, z: Tensor) -> None:
        self.kept["scale"] = 0.9 * self.kept["scale"] + 0.1 * z.shape[1] ** -0.5


class CountedUnits(Handing):
    def __init__(self) -> None:
        super().__init__()
        self.count = 1

    def read(self, y: Tensor) -> Tensor:
        return y / self.count

    def leave(self, z: Tensor) -> None:
        self.count += z.shape[1]


class CountedRuns(CountedUnits):
    def leave(self, z: Tensor) -> None:
        self.count += 1


class Timed(Handing):
    """What is another number each time is none of a width."""

    def leave(self, z: Tensor) -> None:
        self.began = time.perf_counter()


class Converted(Handing):
    """As Switch Transformers' router is, before each use."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        self.head = self.head.to(torch.float32)
        return self.head(self.b(self.a(x).tanh()).tanh().float())


FOLLOWED = [Replaced, Copied, AsData, Statistics, SetByTheFirstBatch, Exchanged, CountedRuns, Timed, Converted]


@pytest.mark.parametrize("kind", [*FOLLOWED, InAQueue, InAnObject, RunningScale, CountedUnits])
def test_what_the_next_forward_finds(kind: type[Handing]) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(4, 5).double()
    for t in (*model.parameters(), *model.buffers()):
        if t.is_floating_point():
            t.data.uniform_(0.2, 1)
    try:
        student = net2net.plan_widen(model, x, 1.5).apply(model)
    except ValueError as refused:
        assert "nothing was widened" in str(refused)  # noqa: PT017
        assert kind not in FOLLOWED
        return
    assert student.a.out_features == (12 if kind in FOLLOWED else 8)
    assert student.b.out_features == 12 or kind is Converted
    rounding = 1e-5 if kind is Converted else EXACT
    assert relative(after_training(model, x), after_training(student, x)) < rounding
    assert not hasattr(model, "count") or model.count == 3


class Noting(Handing):
    """Something that train mode notes down and eval mode goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).tanh()
        if self.training:
            self.note(y.shape[1])
            return self.head(self.b(y).tanh())
        return self.head(self.b(y / self.by()).tanh())

    def note(self, width: int) -> None:
        self.noted = width

    def by(self) -> float:
        return self.noted or 1


class OfAList(Noting):
    def __init__(self) -> None:
        super().__init__()
        self.noted = []

    def note(self, width: int) -> None:
        self.noted.append(width)

    def by(self) -> float:
        return sum(self.noted) + 1


class AKey(OfAList):
    def __init__(self) -> None:
        super().__init__()
        self.noted = {}

    def note(self, width: int) -> None:
        self.noted[width] = True


class AFlag(Noting):
    def note(self, width: int) -> None:
        self.noted = width > 8


class AText(Noting):
    def note(self, width: int) -> None:
        self.noted = f"{width}"

    def by(self) -> float:
        return float(self.noted or 1)


class OfNumPy(Noting):
    def note(self, width: int) -> None:
        self.noted = np.int64(width)


class Lengths(Noting):
    """A buffer of ones, as many as there are units."""

    def __init__(self) -> None:
        super().__init__()
        self.ones = nn.Buffer(torch.ones(0))

    def note(self, width: int) -> None:
        self.ones = torch.ones(width)

    def by(self) -> float:
        return 1 + float(self.ones.sum())


class Scaled(Handing):
    """A matrix, by a width, after it was used."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Buffer(torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).tanh()
        z = F.linear(y, self.matrix)
        if self.training:
            self.change(y.shape[1])
        return self.head(self.b(z).tanh())

    def change(self, width: int) -> None:
        self.matrix.mul_(width / 10)


class Transposed(Scaled):
    def change(self, width: int) -> None:
        self.matrix = self.matrix.t()


class TransposedAsData(Scaled):
    def change(self, width: int) -> None:
        self.matrix.data = self.matrix.data.t()


class TransposedBefore(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data = self.a.weight.data.t().contiguous().t()
        self.b.weight.data = self.b.weight.data.t()
        return self.head(self.b(self.a(x).tanh()).tanh())


@pytest.mark.parametrize(
    "kind",
    [Noting, OfAList, AKey, AFlag, AText, OfNumPy, Lengths, Scaled, Transposed, TransposedAsData, TransposedBefore],
)
def test_never_silently_otherwise(kind: type[Handing]) -> None:
    for width in (1.5, 2):
        torch.manual_seed(0)
        model, x = kind().double(), torch.randn(4, 5).double()
        try:
            student = net2net.plan_widen(model, x, width).apply(model)
        except ValueError as refused:
            assert "nothing was widened" in str(refused)  # noqa: PT017
            continue
        assert relative(after_training(model, x), after_training(student, x)) < EXACT


def test_a_hook_that_holds_the_model_itself() -> None:
    """In a copy, too, it would write to the model."""
    model, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double(), torch.randn(4, 5).double()
    model.mean = nn.Buffer(torch.ones(8).double())
    model[0].register_forward_hook(lambda _module, _given, out: model.mean.copy_(out.mean(0)))
    with pytest.raises(ValueError, match="would write to the model itself"):
        net2net.plan_widen(model, x, 1.5)
    assert model.mean.tolist() == [1] * 8
