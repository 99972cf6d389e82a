"""Numbers that modules keep by name: in dicts and in pairs, as layers of einops do, and in configurations."""

import argparse
import copy
import dataclasses
import enum
import functools
import itertools
import json
import math
import pickle
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import net2net
import pytest
import torch
from net2net.kept_numbers import kept, put, without
from torch import Tensor, nn


class Split(nn.Module):
    """[b, t, h d] -> [b, h, t, d], with the number of heads in two places; a copy is made from the first of them."""

    def __init__(self, **lengths: int) -> None:
        super().__init__()
        self.lengths = lengths
        self._pairs = tuple(lengths.items())

    def __getstate__(self) -> dict[str, int]:
        return self.lengths

    def __setstate__(self, lengths: dict[str, int]) -> None:
        self.__init__(**lengths)  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        heads = dict(self._pairs)["h"]
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.split = Split(h=heads, other=7)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        made = (q @ k.transpose(2, 3) * self.scale).softmax(3) @ v
        return self.out(made.transpose(1, 2).flatten(2))


def test_heads_that_a_child_keeps_by_name() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), Attention(12, 3), nn.Linear(12, 2)).double()
    x = torch.randn(2, 4, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    assert [str(c) for c in plan.changes] == ["1.split['h']: 3 -> 6"]
    assert not plan.skipped
    student = plan.apply(model)
    assert student[1].split.lengths == {"h": 6, "other": 7}
    assert model[1].split.lengths == {"h": 3, "other": 7}
    loaded = net2net.GrowthPlan.from_document(json.loads(json.dumps(plan.document())), "plan")
    for each in (student, copy.deepcopy(student), loaded.apply(model), net2net.widen(student, x, 1.5)):
        assert net2net.verify(model, each, x).max_rel < 1e-13


def test_what_is_kept() -> None:
    module = nn.Module()
    module.number, module.listed, module.flag, module.nothing = 3, [1, 2], True, 0
    module.lengths, module.pairs = {"h": 4, "d": "auto", 5: 6}, (("h", 4), ("w", 2))
    module.clash = {"w": 3}
    assert kept(module) == {"number": 3, "listed": [1, 2], "['h']": 4}
    put(module, "['h']", 8)
    assert module.lengths == {"h": 8, "d": "auto", 5: 6}
    assert module.pairs == (("h", 8), ("w", 2))
    put(module, "number", 5)
    assert module.number == 5


def test_a_plan_for_another_architecture_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), Attention(12, 3), nn.Linear(12, 2))
    plan = net2net.plan_widen(model, torch.randn(2, 4, 5), 2)
    other = nn.Sequential(nn.Linear(5, 12), Attention(12, 4), nn.Linear(12, 2))
    with pytest.raises(ValueError, match="another than the plan was made for"):
        plan.apply(other)


class Pair(NamedTuple):
    width: int
    heads: int


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 12
    heads: int = 3

    @property
    def per_head(self) -> int:
        return self.width // self.heads


@dataclasses.dataclass
class Outer:
    attention: Inner = dataclasses.field(default_factory=Inner)
    betas: tuple[float, float] = (0.9, 0.99)
    names: dict[str, str] = dataclasses.field(default_factory=dict)


class OfItsClass:
    width, heads, layers = 12, 3, 3


class ByProperties:
    """What the properties are called is what code names."""

    def __init__(self) -> None:
        self.all_features, self.each = 12, 4

    @property
    def width(self) -> int:
        return self.all_features

    @functools.cached_property
    def per_head(self) -> int:
        return self.each

    @property
    def heads(self) -> int:
        return self.width // self.per_head


class ByRecord(nn.Module):
    def __init__(self, record: Any) -> None:
        super().__init__()
        self.record = record
        width, _ = self.sizes()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def sizes(self) -> tuple[int, int]:
        return self.record.width, self.record.heads

    def forward(self, x: Tensor) -> Tensor:
        width, heads = self.sizes()
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in self.qkv(x).split(width, -1))
        made = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(made.transpose(1, 2).reshape(*x.shape[:2], width))


class ByInnerRecord(ByRecord):
    def sizes(self) -> tuple[int, int]:
        of = self.record.attention
        return of.per_head * of.heads, of.width // of.per_head


RECORDS = {
    "namespace": (ByRecord, types.SimpleNamespace(width=12, heads=3, layers=3, dtype=torch.float32)),
    "arguments": (ByRecord, argparse.Namespace(width=12, heads=3)),
    "named tuple": (ByRecord, Pair(12, 3)),
    "dataclass": (ByRecord, Inner()),
    "of its class": (ByRecord, OfItsClass()),
    "record in a record": (ByInnerRecord, Outer()),
    "properties": (ByRecord, ByProperties()),
}


@pytest.mark.parametrize(("kind", "record"), RECORDS.values(), ids=RECORDS)
def test_records_whose_numbers_a_forward_reads(kind: type[ByRecord], record: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), kind(record), kind(record), nn.Linear(12, 2)).double()
    x = torch.randn(2, 4, 5).double()
    before = copy.deepcopy(record)
    plan = net2net.plan_widen(model, x, 2)
    student = plan.apply(model)
    assert not plan.skipped
    assert {change.after for change in plan.changes} == ({24} if isinstance(record, ByProperties) else {24, 6})
    # A student's modules share their own as the teacher's share theirs.
    assert model[1].record is model[2].record is record
    assert (student[1].record is student[2].record) == (not isinstance(record, tuple))
    assert student[1].record is not record
    assert vars(record) == vars(before) if hasattr(record, "__dict__") else record == before
    assert type(student[1].record) is type(record)
    loaded = net2net.GrowthPlan.from_document(json.loads(json.dumps(plan.document())), "plan")
    for each in (student, pickle.loads(pickle.dumps(student)), loaded.apply(model), net2net.widen(student, x, 1.5)):
        assert net2net.verify(model, each, x).max_rel < 1e-13


@pytest.mark.parametrize(("width", "heads"), [(32, 4), (48, 3), (64, 8)])
def test_numbers_of_which_one_counts_only_where_another_is_right(width: int, heads: int) -> None:
    # The width is as a factor that is wrong for it would make it, too; the heads are looked for with the right one.
    torch.manual_seed(0)
    record = Pair(width, heads)
    model = nn.Sequential(nn.Linear(5, width), ByRecord(record), nn.Linear(width, 2)).double()
    x = torch.randn(2, 4, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    assert not plan.skipped
    assert {change.after for change in plan.changes} == {2 * width, 2 * heads}
    assert net2net.verify(model, plan.apply(model), x).max_rel < 1e-13


class Settings:
    """Whose method changes it, which has the name of one that caches have."""

    def __init__(self, **numbers: int) -> None:
        vars(self).update(numbers)

    def update(self, numbers: dict[str, int]) -> None:
        for name, number in numbers.items():
            setattr(self, name, number)


class WithSettings(nn.Module):
    """Keys of fewer heads, cut by products of numbers, and perhaps a cache."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings, self.per_head = settings, 4
        self.qkv, self.out = nn.Linear(16, 32), nn.Linear(16, 16)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        given, end = self.qkv(x), self.settings.heads * self.per_head
        upto = end + self.settings.key_heads * self.per_head
        parts = (given[..., :end], given[..., end:upto], given[..., upto:])
        q, k, v = (part.unflatten(-1, (-1, self.per_head)).transpose(1, 2) for part in parts)
        if cache is not None:
            k, v = cache.update(k, v)
        made = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return x + self.out(made.transpose(1, 2).flatten(2))


class Updating(WithSettings):
    """Tells the next one, where it is asked to."""

    def forward(self, x: Tensor, more: Any = None) -> Tensor:
        if more is not None:
            self.settings.update(more)
        return super().forward(x)


@pytest.mark.parametrize("kind", [WithSettings, Updating])
def test_what_code_writes_to_by_methods(kind: type[WithSettings]) -> None:
    torch.manual_seed(0)
    settings = Settings(heads=4, key_heads=2)
    model = nn.Sequential(nn.Linear(5, 16), kind(settings), kind(settings), nn.Linear(16, 2)).double()
    x = torch.randn(2, 4, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    student = plan.apply(model)
    assert net2net.verify(model, student, x).max_rel < 1e-13
    assert vars(settings) == {"heads": 4, "key_heads": 2}
    assert student[1].settings is student[2].settings
    assert vars(student[1].settings) == {"heads": 8, "key_heads": 4}
    # For one of them alone it would be a copy, which the other cannot write to.
    with pytest.raises(ValueError, match=r"1\.qkv cannot be widened"):
        net2net.plan_widen(model, x, 2, ["0", "1.qkv"])


class Scaled(nn.Module):
    """A model whose blocks read a number of the record that they share with it."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = types.SimpleNamespace(width=12, heads=3, scale=1.0)
        self.hold = [types.SimpleNamespace(settings=self.settings)]
        self.blocks = nn.Sequential(nn.Linear(5, 12), *(ByScale(self.settings) for _ in range(2)), nn.Linear(12, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class ByScale(nn.Module):
    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.settings.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).split(self.settings.width, -1)
        )
        made = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.settings.scale * self.out(made.transpose(1, 2).flatten(2))


#: Ways to write to it that no code of a forward shows.
WRITTEN = {
    "from outside": lambda net: setattr(net.settings, "scale", 0.25),
    "by another": lambda net: setattr(net.hold[0].settings, "scale", 0.25),
    "a block": lambda net: setattr(net.blocks[2].settings, "scale", 0.25),
    "a hook": lambda net: net.register_forward_pre_hook(lambda m, _: setattr(m.settings, "scale", 0.25)),
}


@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN)
def test_a_shared_record_stays_shared(write: Callable[[Scaled], object]) -> None:
    torch.manual_seed(0)
    model, x = Scaled().double(), torch.randn(2, 4, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    student = plan.apply(model)
    assert {change.name for change in plan.changes} == {"settings.width", "settings.heads"}
    assert vars(student.settings) == {"width": 24, "heads": 6, "scale": 1.0}
    before = model(x)
    write(model), write(student)
    assert net2net.verify(model, student, x).max_rel < 1e-13
    assert not torch.allclose(model(x), before)


def test_a_number_of_a_record_that_no_module_reads_for_something_else() -> None:
    """An object that is no module holds the record of one module: its number stays, and planning ends."""

    class Net(Scaled):
        def __init__(self) -> None:
            super().__init__()
            del self.settings, self.blocks[2]

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.hold[0].settings.width

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(2, 4, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    assert not plan.changes
    assert [s.layers for s in plan.skipped] == [["blocks.1.qkv"]]
    assert net2net.verify(model, plan.apply(model), x).max_rel < 1e-13


def test_a_number_of_a_record_that_others_read_for_something_else() -> None:
    """The blocks get copies: with the number that they grow by, the model would not be the same."""

    class Net(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.settings.width**0.5

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(2, 4, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    student = plan.apply(model)
    assert not plan.skipped
    assert student.settings.width == 12
    assert student.blocks[1].settings.width == 24
    assert net2net.verify(model, student, x).max_rel < 1e-13


def test_what_is_no_record() -> None:
    module = nn.Module()
    module.forward = None  # type: ignore[assignment]
    holder = types.SimpleNamespace(heads=3, tensor=torch.zeros(3))
    for other in (holder, OfItsClass, enum.Enum("Kind", "heads").heads, object(), torch.float32, len):  # type: ignore[attr-defined]
        module.held = other
        assert not kept(module)


def test_numbers_of_a_record_that_code_does_not_name() -> None:
    module = ByRecord(types.SimpleNamespace(width=12, heads=3, layers=3))
    assert kept(module) == {"record.width": 12, "record.heads": 3}
    with without(module, "record.heads") as it_is_out:
        assert it_is_out
        assert not hasattr(module.record, "heads")
    assert module.record.heads == 3
    put(module, "record.heads", 6)
    assert module.record.heads == 6


class Told(nn.Module):
    """Modules that share a record, or a dict, by which one tells the other how long the input is."""

    def __init__(self, shared: Any, put: Callable[[Any, int], None], get: Callable[[Any, str], int]) -> None:
        super().__init__()
        self.shared, self.put, self.get = shared, [put], [get]
        self.embed, self.attention, self.head = nn.Linear(5, 12), ToldAttention(shared, get), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.put[0](self.shared, x.shape[1])
        return self.head(self.attention(self.embed(x)))


class ToldAttention(nn.Module):
    def __init__(self, shared: Any, get: Callable[[Any, str], int]) -> None:
        super().__init__()
        self.shared, self.get = shared, [get]
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        heads, length = (self.get[0](self.shared, name) for name in ("heads", "length"))
        q, k, v = self.qkv(x).unflatten(-1, (3, heads, -1)).transpose(1, 3).unbind(2)
        made = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(made.transpose(1, 2).flatten(2)) / length


def put_attribute(shared: Any, length: int) -> None:
    shared.length = length


def put_item(shared: Any, length: int) -> None:
    shared["length"] = length


def grows_right_or_not_at_all(model: nn.Module, lengths: tuple[int, ...]) -> bool:
    """Whether it grows. Inputs of any of the lengths must give the same then, though the example has the first."""
    try:
        student = net2net.plan_widen(model, torch.randn(2, lengths[0], 5).double(), 2).apply(model)
    except ValueError:
        return False
    for t in lengths:
        assert net2net.verify(model, student, torch.randn(2, t, 5).double()).max_rel < 1e-13
    return True


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("kind", ["record", "dict"])
def test_what_modules_tell_each_other_is_not_lost(kind: str, begun: bool) -> None:
    torch.manual_seed(0)
    shared: Any = {"heads": 3} | ({"length": 4} if begun else {})
    model = (
        Told(shared, put_item, lambda of, name: of[name])
        if kind == "dict"
        else Told(types.SimpleNamespace(**shared), put_attribute, getattr)
    ).double()
    grows_right_or_not_at_all(model, (4, 7))


@pytest.mark.parametrize(
    "cut",
    [
        lambda x, n: x[:, :n],
        lambda x, n: torch.cat([x[:, :n] / 2, x[:, n:]], 1),
        lambda x, n: x[..., :n, :],
        lambda x, n: x[:, -n:],
        lambda x, n: x.split(n, 1)[0],
        lambda x, n: torch.split(x, split_size_or_sections=n, dim=-2)[-1],
    ],
)
def test_a_width_that_is_a_limit_too(cut: Callable[[Tensor, int], Tensor]) -> None:
    """A shorter example does not show what it does to longer inputs."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 8
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(cut(x, self.width))
            return self.last(y.reshape(-1, self.width).tanh().view(*y.shape[:2], self.width))

    model = Net().double()
    grows_right_or_not_at_all(model, (4, 12))


class Limited(nn.Module):
    """A width that Python compares with how long the input is."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.config = 8, types.SimpleNamespace(width=8)
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.limited(x))
        return self.last(y.reshape(-1, self.width).tanh().view(*y.shape[:2], self.config.width))

    def limited(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Least(Limited):
    def limited(self, x: Tensor) -> Tensor:
        return x[:, : min(self.width, x.shape[1])]


class Longer(Limited):
    def limited(self, x: Tensor) -> Tensor:
        return x[:, : self.config.width] if x.shape[1] > self.config.width else x


class Within(Limited):
    def limited(self, x: Tensor) -> Tensor:
        n = x.size(1)
        return x / 2 if 2 < n <= self.width else x


class ByAnotherName(Limited):
    def limited(self, x: Tensor) -> Tensor:
        width, (n, m) = self.width, x.shape[1:]
        return x[:, :width] if n > int(width) else x * m


def made_of(cut: Callable[[Limited, Tensor], Tensor]) -> Callable[[Limited, Tensor], Tensor]:
    return lambda net, x: cut(net, x) / 2


class ByAFunctionThatItHolds(Limited):
    limited = made_of(lambda net, x: x[:, : min(net.width, x.shape[1])])


class OfTheRest(Limited):
    def limited(self, x: Tensor) -> Tensor:
        return x[:, : x.shape[1] - max(0, x.shape[1] - self.config.width)]


class EachSoMany(Limited):
    def limited(self, x: Tensor) -> Tensor:
        return x + x[:, :: self.width].mean(1, keepdim=True)


class SoManyParts(Limited):
    def limited(self, x: Tensor) -> Tensor:
        return x + x.chunk(self.width, 1)[0].mean(1, keepdim=True) + torch.tensor_split(x, self.width, dim=1)[0].mean()


class SoManyOfASequence(Limited):
    def limited(self, x: Tensor) -> Tensor:
        return torch.stack(list(itertools.islice(x.unbind(1), self.width)), 1)


class InStep(Limited):
    def limited(self, x: Tensor) -> Tensor:
        return torch.stack([t for _, t in zip(range(self.width), x.unbind(1), strict=False)], 1)


class OneOfSoMany(Limited):
    def limited(self, x: Tensor) -> Tensor:
        return x * len(range(0, x.shape[1], self.width))


class Clamped(Limited):
    def limited(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1]).clamp(max=self.width)
        return x * at[:, None]


class Checked(Limited):
    """None of these limits anything."""

    def limited(self, x: Tensor) -> Tensor:
        assert self.width > 1
        assert self.width >= self.config.width
        assert max(1, self.width) > 0
        assert len(range(self.width)) == self.width
        width, other = self.width, self.config.width
        assert width >= other > math.pi
        return x


@pytest.mark.parametrize(
    "kind",
    [
        Least,
        Longer,
        Within,
        ByAnotherName,
        ByAFunctionThatItHolds,
        OfTheRest,
        EachSoMany,
        SoManyParts,
        SoManyOfASequence,
        InStep,
        OneOfSoMany,
        Clamped,
        Checked,
    ],
)
def test_a_width_that_code_compares(kind: type[Limited]) -> None:
    assert grows_right_or_not_at_all(kind().double(), (4, 12)) == (kind is Checked)
