"""Tensors that modules keep as plain attributes, neither parameters nor buffers: tables of positions, most often."""

import contextlib
import copy
import dataclasses
import enum
import functools
import inspect
import logging
import os
import types

import net2net
import pytest
import torch
from test_computed_weights import randomised, same_or_refused
from torch import nn


class Block(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.table = table

    def forward(self, x):
        return x + self.outer(self.inner(self.norm(x + self.table)).relu())


class Net(nn.Module):
    def __init__(self, use=None):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.table = torch.randn(6, 8, dtype=torch.float64)
        # One tensor that two modules share.
        self.blocks = nn.Sequential(Block(self.table), Block(self.table), Block(torch.randn(8, dtype=torch.float64)))
        self.use = use

    def forward(self, x):
        x = self.embed(x)
        x = x + self.table.to(x.device, dtype=x.dtype) if self.use is None else self.use(self, x)
        return self.head(self.blocks(x))


def inputs():
    return torch.randn(2, 6, 5).double()


def test_tables_grow_with_what_they_are_added_to(tmp_path):
    model, x = randomised(Net()), inputs()
    before = copy.deepcopy(model)
    plan = net2net.plan_widen(model, x, 2)
    assert not plan.skipped
    plan.save(tmp_path / "plan.json")
    plan = net2net.GrowthPlan.load(tmp_path / "plan.json")
    student = plan.apply(model)
    assert student.table.shape == (6, 16)
    assert type(student.table) is torch.Tensor
    assert student.blocks[0].table is student.table is student.blocks[1].table
    assert student.blocks[2].table.shape == (16,)
    assert student.state_dict().keys() == model.state_dict().keys()
    for mode in (False, True):
        model.train(mode), student.train(mode)
        assert net2net.verify(model, student, inputs()).max_rel < 1e-13
    assert torch.equal(model.table, before.table)
    assert model.table.data_ptr() != student.table.data_ptr()
    student.load_state_dict(plan.grow_state_dict(model.state_dict()))
    again = net2net.widen(student, x, 1.5)
    assert net2net.verify(model, again, inputs()).max_rel < 1e-13
    used_up = plan.apply(model, consume=True)
    assert torch.equal(used_up.table, student.table)


def test_with_the_optimizer(tmp_path):
    model, x = randomised(Net()), inputs()
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    plan = net2net.plan_widen(model, x, 2)
    student = plan.apply(model)
    grown = plan.grow_optimizer(optimizer, student)
    assert len(grown.state) == len(optimizer.state)
    student(x).square().mean().backward()
    grown.step()


def test_a_checkpoint_grows_without_them(tmp_path):
    model, x = randomised(Net()), inputs()
    torch.save({"model": model.state_dict()}, tmp_path / "a.pt")
    plan = net2net.plan_widen(model, x, 2)
    plan.grow_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt", model=model)

    def base():
        made = Net()
        made.table.copy_(model.table)
        made.blocks[2].table.copy_(model.blocks[2].table)
        return made

    student = net2net.load(tmp_path / "b.pt", base)
    assert net2net.verify(model, student, inputs()).max_rel < 1e-13


def test_a_model_without_it_is_told_so():
    plan = net2net.plan_widen(randomised(Net()), inputs(), 2)
    other = Net()
    del other.table
    with pytest.raises(ValueError, match="table"):
        plan.apply(other)


def as_weight(net, x):
    return nn.functional.linear(x, net.table[:1].expand(8, 8).contiguous())


def of_the_same_module(net, x):
    return x * net.embed.weight_copy


def remembered(net, x):
    net.last = x
    return x + net.table


def counted(net, x):
    net.count += 1
    return x + net.table * net.count


def running(net, x):
    net.mean.lerp_(x.detach().mean((0, 1)), 0.1)
    return x - net.mean + net.table


def made_anew(net, x):
    net.table = net.table * 1
    return x + net.table


def cut(net, x):
    return x + net.table[: x.shape[1]] + net.longer[: x.shape[1]]


def by_width(net, x):
    return x + net.table * net.table.shape[1]


def looked_up(net, x):
    return x + net.table[torch.arange(x.shape[1]) % 3]


@pytest.mark.parametrize(
    "use",
    [as_weight, of_the_same_module, remembered, counted, running, made_anew, cut, by_width, looked_up],
)
@pytest.mark.parametrize("noise", ["none", "cancelling"])
def test_other_uses(use, noise):
    model = randomised(Net(use))
    model.count, model.mean = torch.zeros(()), torch.randn(8).double()
    model.embed.weight_copy = model.embed.weight.detach()[:, 0]
    model.longer = torch.randn(1, 9, 8).double()[0]
    x = inputs()
    with torch.no_grad():
        model(x)
    for width in (1.5, 2):
        try:
            plan = net2net.plan_widen(model, x, width, noise=noise)
        except ValueError:
            continue
        teacher = copy.deepcopy(model)
        assert net2net.verify(teacher, plan.apply(model), x).max_rel < 1e-13


def test_lists_of_tensors_stay():
    class Listed(Net):
        def __init__(self):
            super().__init__()
            self.tables = [torch.randn(6, 8).double()]

        def forward(self, x):
            return self.head(self.embed(x) + self.tables[0])

    same_or_refused(randomised(Listed()), inputs(), 2)


def positions(t, width):
    return (torch.arange(t)[:, None] * torch.exp(-torch.arange(width).double())).sin()


class Cached(nn.Module):
    """A table that is made anew for longer inputs, of as many columns as there are then."""

    def __init__(self, registered=False):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        if registered:
            self.register_buffer("table", positions(6, 4), persistent=False)
        else:
            self.table = positions(6, 4)

    def longer(self, t, width):
        self.table = positions(t, width)

    @property
    def length(self):
        return len(self.table)

    def forward(self, x):
        y = self.embed(x)
        if self.length < y.shape[1]:
            self.longer(*y.shape[1:])
        return self.head((y + self.table[: y.shape[1]]).relu())


def put(module, name, t, width):
    setattr(module, name, positions(t, width))


def put_table(module, t, width):
    module.table = positions(t, width)


class ByText(Cached):
    def longer(self, t, width):
        put(self, "table", t, width)


class ByTextPutTogether(Cached):
    def longer(self, t, width):
        setattr(self, f"{'tab'}{'le' if t else ''}", positions(t, width))


class ByTextInADict(Cached):
    def longer(self, t, width):
        setattr(self, {"x": "table"}["x"], positions(t, width))


class ByData(Cached):
    def longer(self, t, width):
        self.table.data = positions(t, width)


class ByAnotherName(Cached):
    def longer(self, t, width):
        table = self.table
        table.data = positions(t, width)


class InPlace(Cached):
    def longer(self, t, width):
        self.table.resize_(t, width).copy_(positions(t, width))


class Among(Cached):
    def longer(self, t, width):
        (self._buffers if "table" in self._buffers else vars(self))["table"] = positions(t, width)


class InALoop(Cached):
    def longer(self, t, width):
        for self.table in [positions(t, width)]:
            pass


class ByAFunctionItHolds(Cached):
    def __init__(self, registered=False):
        super().__init__(registered)
        self.remake = {"sine": functools.partial(put_table, self)}

    def longer(self, t, width):
        self.remake["sine"](t, width)


class Maker:
    def remake(self, module, t, width):
        module.table = positions(t, width)


class ByAnObjectItHolds(Cached):
    def __init__(self, registered=False):
        super().__init__(registered)
        self.maker = Maker()

    def longer(self, t, width):
        self.maker.remake(self, t, width)


class Length:
    def __get__(self, module, kind=None):
        return len(module.table)

    def __set__(self, module, t):
        module.table = positions(t, module.table.shape[1])


class ByADescriptor(Cached):
    length = Length()

    def longer(self, t, width):
        self.length = t


class ByDefault(Cached):
    def longer(self, t, width, function=put_table):
        function(self, t, width)


def first_made_longer(forward):
    def of(self, x):
        if x.shape[1] > len(self.table):
            put_table(self, x.shape[1], self.table.shape[1])
        return forward(self, x)

    return of


class Decorated(Cached):
    forward = first_made_longer(Cached.forward)


class ByAHook(Cached):
    longer = None

    def __init__(self, registered=False):
        super().__init__(registered)
        self.register_forward_pre_hook(self.before)

    @staticmethod
    def before(module, args):
        if args[0].shape[1] > len(module.table):
            put_table(module, args[0].shape[1], module.table.shape[1])


class Remade:
    def __init__(self, module, t, width):
        module.table = positions(t, width)


class ByMakingAnObject(Cached):
    def longer(self, t, width):
        Remade(self, t, width)


class ByAnObjectInAnObject(Cached):
    def __init__(self, registered=False):
        super().__init__(registered)
        self.holder = types.SimpleNamespace(makers=[[Maker()]])

    def longer(self, t, width):
        self.holder.makers[0][0].remake(self, t, width)


class ByALaterImport(Cached):
    def longer(self, t, width):
        from not_imported_yet import remake

        remake(self, t, width)


class ByItsModule(Cached):
    def __init__(self, registered=False):
        super().__init__(registered)
        self.box = self.boxed(positions(6, 4), registered)
        del self.table

    def boxed(self, table, registered):
        box = nn.Module()
        box.register_buffer("table", table) if registered else setattr(box, "table", table)
        return box

    def forward(self, x):
        y = self.embed(x)
        if len(self.box.table) < y.shape[1]:
            self.box = self.boxed(positions(*y.shape[1:]), False)
        return self.head((y + self.box.table[: y.shape[1]]).relu())


REMADE = [
    Cached, ByText, ByTextPutTogether, ByTextInADict, ByData, ByAnotherName, InPlace, Among, InALoop,
    ByAFunctionItHolds, ByAnObjectItHolds, ByADescriptor, ByDefault, Decorated, ByAHook,
    ByMakingAnObject, ByAnObjectInAnObject, ByItsModule,
]  # fmt: skip


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("kind", REMADE)
def test_tables_that_code_may_make_anew_stay(kind, registered):
    model = randomised(kind(registered))
    assert copy.deepcopy(model)(torch.randn(2, 9, 5).double()).shape == (2, 9, 3)
    with pytest.raises(ValueError, match=r"may make (box\.)?table anew"):
        net2net.plan_widen(model, inputs(), 2)


def test_functions_that_hold_each_other():
    def one(x):
        return x if x is not None else other(x)

    def other(x):
        return one(x)

    class Net(Cached):
        def forward(self, x):
            return self.head((one(self.embed(x)) + self.table[: x.shape[1]]).relu())

    plan = net2net.plan_widen(randomised(Net()), inputs(), 2)
    assert not plan.skipped


def test_what_is_not_imported_yet_may_make_it_anew():
    with pytest.raises(ValueError, match="may make table anew"):
        net2net.plan_widen(randomised(ByALaterImport()), inputs(), 2)


class Kind(enum.Enum):
    PLAIN = 1


@dataclasses.dataclass(frozen=True)
class Options:
    kind: Kind = Kind.PLAIN


def by_text(module, x):
    setattr(module, "last", 1)  # noqa: B010
    return x


def within(module, x):
    with contextlib.nullcontext():
        return x * 1


HARMLESS = {
    "logging": lambda module, x: logging.getLogger("test").debug("%s", x.shape) or x,
    "a context": within,
    "an enumeration": lambda module, x: x if dataclasses.replace(Options()).kind is Kind.PLAIN else -x,
    "the system": lambda module, x: x if os.environ.get("NOT SET") is None else -x,
    "copies": lambda module, x: x if copy.copy([inspect.signature(within)]) else -x,
    "another attribute": by_text,
}


@pytest.mark.parametrize("use", HARMLESS.values(), ids=HARMLESS)
def test_code_that_makes_no_table_anew(use):
    class Net(Cached):
        def __init__(self):
            super().__init__(registered=True)
            self.use = use

        def forward(self, x):
            return self.head((self.use(self, self.embed(x)) + self.table[: x.shape[1]]).relu())

    model = randomised(Net())
    plan = net2net.plan_widen(model, inputs(), 2)
    assert plan.apply(model).table.shape == (6, 8)


def test_what_a_forward_does_not_reach_may_make_it_anew():
    class Settable(Cached):
        def forward(self, x):
            return self.head((self.embed(x) + self.table).relu())

        def set_table(self, table):
            self.table = table

    model = randomised(Settable())
    plan = net2net.plan_widen(model, inputs(), 2)
    assert net2net.verify(model, plan.apply(model), inputs()).max_rel < 1e-13


def test_a_batch_norm_of_ones_own_that_assigns_its_statistics():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.randn(8).double())
            self.gain = nn.Parameter(torch.randn(8))

        def forward(self, x):
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
            return (x - self.mean) * self.gain

    model = randomised(nn.Sequential(nn.Linear(5, 8), Norm(), nn.ReLU(), nn.Linear(8, 3)))
    plan = net2net.plan_widen(model, inputs(), 2)
    student = plan.apply(model)
    assert not plan.skipped
    for mode in (True, False):
        model.train(mode), student.train(mode)
        assert net2net.verify(model, student, inputs()).max_rel < 1e-13


def test_trained_ones_go_on_being_trained():
    class Scaled(Net):
        def __init__(self):
            super().__init__(lambda net, x: x * net.scale)
            self.scale = torch.randn(8).double().requires_grad_()

    model = randomised(Scaled())
    student = net2net.plan_widen(model, inputs(), 2).apply(model)
    assert student.scale.shape == (16,)
    assert student.scale.requires_grad
    assert student.scale.is_leaf
    assert not student.table.requires_grad


ADJACENCY = {
    "left": lambda net, y: net.adjacency @ y,
    "right": lambda net, y: (y.mT @ net.adjacency).mT,
    "each": lambda net, y: net.adjacency.expand(len(y), -1, -1) @ y,
    "einsum": lambda net, y: torch.einsum("st,btc->bsc", net.adjacency, y),
    "of one graph": lambda net, y: torch.stack([net.adjacency @ graph for graph in y]),
}


@pytest.mark.parametrize("kind", ["plain", "buffer", "parameter"])
@pytest.mark.parametrize("use", ADJACENCY)
def test_matrices_that_mix_places(use, kind):
    class Graphs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
            matrix = torch.rand(6, 6).double()
            if kind == "buffer":
                self.register_buffer("adjacency", matrix)
            else:
                self.adjacency = matrix if kind == "plain" else nn.Parameter(matrix)

        def forward(self, x):
            return self.head(ADJACENCY[use](self, self.layer(x)).relu())

    model = randomised(Graphs())
    student = net2net.plan_widen(model, inputs(), 2).apply(model)
    assert student.layer.out_features == 8
    assert student.adjacency.shape == (6, 6)
    assert net2net.verify(model, student, inputs()).max_rel < 1e-13
