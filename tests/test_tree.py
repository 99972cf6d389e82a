"""Copies of module trees: what copy.deepcopy makes of them."""

import copy
import gc
import weakref
from collections import OrderedDict
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import pytest
import torch
from models import EXAMPLES
from net2net import tree
from net2net.tree import deepcopy
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from n2n_kernels import native


@pytest.fixture(params=["native", "python"], autouse=True)
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner loop is there twice."""
    if request.param == "python":
        monkeypatch.setattr(tree, "_copy_values", tree._in_python)
    elif native.missing is not None:
        pytest.skip(native.missing)


def graph(x: Any) -> list[Any]:
    """What can be reached from `x`, in order, with a number for each object: equal for two graphs of the same form and
    content, sharing included."""
    seen: dict[int, int] = {}
    storages: dict[int, int] = {}
    found: list[Any] = []
    kept = []

    def walk(x: Any) -> None:
        if type(x) in (type(None), bool, int, float, complex, str, bytes, type):
            found.append(x)
            return
        if isinstance(x, weakref.ref):
            found.append("reference")
            walk(x())
            return
        if isinstance(x, FunctionType | BuiltinFunctionType | MethodType):
            found.append(id(getattr(x, "__func__", x)))
            if hasattr(x, "__self__"):
                walk(x.__self__)
            return
        if id(x) in seen:
            found.append(("again", seen[id(x)]))
            return
        seen[id(x)] = len(seen)
        kept.append(x)
        found.append(type(x))
        if isinstance(x, Tensor):
            found.append((x.dtype, tuple(x.shape), x.stride(), x.requires_grad, x.tolist()))
            found.append(storages.setdefault(x.untyped_storage()._cdata, len(storages)))
            walk(x.grad)
        if isinstance(x, dict):
            for key, value in x.items():
                walk(key)
                walk(value)
        elif isinstance(x, list | tuple):
            for value in x:
                walk(value)
        elif isinstance(x, set):
            found.append(sorted(map(repr, x)))
        if hasattr(x, "__dict__"):
            walk(dict(vars(x)) if isinstance(x, nn.Module) else vars(x))

    walk(x)
    return found


class Plain:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class OwnDeepcopy(nn.Linear):
    def __deepcopy__(self, memo: dict[int, Any]) -> "OwnDeepcopy":
        new = OwnDeepcopy(3, 3)
        memo[id(self)] = new
        with torch.no_grad():
            new.weight.fill_(1), new.bias.fill_(2)
        return new


class OwnState(nn.Linear):
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "note": "packed"}


class OwnSetState(nn.Linear):
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.unpacked = True


class OwnReduce(nn.Linear):
    def __reduce__(self) -> Any:
        return _made, ("by reduce",)


def _made(note: str) -> OwnReduce:
    made = OwnReduce(2, 2)
    with torch.no_grad():
        made.weight.zero_(), made.bias.zero_()
    made.note = note
    return made


class Slotted(nn.Linear):
    __slots__ = ("extra",)


class Forwarding(nn.Module):
    """Looks everything up in what it wraps, as wrappers do: its deep copy is a copy of that."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class ListOfModules(nn.Module, list):  # type: ignore[misc]
    __hash__ = nn.Module.__hash__


def _hook(*_: Any) -> None: ...


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))


def with_(**fields: Any) -> nn.Module:
    model = base()
    for name, value in fields.items():
        setattr(model, name, value)
    return model


def attributes() -> nn.Module:
    model = base()
    shared = [1, {"a": (2, [3])}]
    model.one, model[2].two = shared, shared
    model.weights = [model[0].weight, {"w": model[0].weight}, (model[1].running_mean,)]
    object.__setattr__(model[2], "parent", model)  # a cycle, and no submodule
    model.modules_by_name = OrderedDict(first=model[0], norm=model[1])
    model.plain = Plain(module=model[0], weight=model[0].weight, dict=vars(model[1]))
    model.functions = [_hook, model[0].forward, len, lambda x: x]
    model.dtype, model.size = torch.float32, torch.Size([2, 3])
    model.tags, model.mixed = {"a", "b"}, {("a", 1), frozenset({2})}
    model.tuple = (model[0], [1])
    recursive: list[Any] = []
    recursive.append(recursive)
    model.recursive = recursive
    model.loop = ([],)
    model.loop[0].append(model.loop)
    return model


def sharing() -> nn.Module:
    model = base()
    model.add_module("again", model[2])
    model.shallow = copy.copy(model[0])  # shares the very dicts of its parameters and hooks
    model.other = nn.Linear(4, 2)
    model.other.weight = model[2][1].weight
    model.register_buffer("counter_too", model[1].num_batches_tracked, persistent=False)
    model.counter_view = model[1].num_batches_tracked.view(1)
    model.whole = torch.arange(6)
    model.part = model.whole[2:4]
    model.numbers = torch.arange(4.0)
    model.reversed = model.numbers.view(2, 2).t()
    return model


def hooks() -> nn.Module:
    model = base()
    model.handle = model[0].register_forward_hook(_hook)
    model[1].register_forward_pre_hook(_hook, with_kwargs=True)
    model[2].register_full_backward_hook(_hook)
    model[2].register_state_dict_post_hook(_hook)
    model.removed = model[1].register_forward_hook(_hook)
    model.removed.remove()
    model.prehook = model[2][1].register_forward_pre_hook(_hook)  # the other hooks' dicts are empty
    model.prehook.remove()
    return model


def own_dicts() -> nn.Module:
    model = hooks()
    model.dicts = [model.__dict__, model[0].__dict__]
    return model


def tensors() -> nn.Module:
    model = base()
    model.leaf = torch.ones(2, requires_grad=True)
    model.leaf.sum().backward()
    model.tagged = torch.zeros((), dtype=torch.int64)
    model.tagged.tag = {"unit": "steps"}
    model.negative = torch.ones(2, dtype=torch.complex64).conj().imag
    model.empty = torch.empty(0)
    model.halves = torch.ones(3, dtype=torch.float16)
    model.register_buffer("nothing", None)
    model.register_parameter("none", None)
    return model


def marked() -> nn.Module:
    model = base()
    vars(model[0])["__deepcopy__"] = lambda memo: "mine"
    return model


TREES: dict[str, Callable[[], Any]] = {
    "plain": base,
    "attributes": attributes,
    "sharing": sharing,
    "hooks": hooks,
    "own dicts": own_dicts,
    "tensors": tensors,
    "an own deepcopy": lambda: with_(own=OwnDeepcopy(3, 3)),
    "of one module": marked,
    "an own state": lambda: with_(own=OwnState(2, 2)),
    "an own setstate": lambda: with_(own=OwnSetState(2, 2)),
    "an own reduce": lambda: with_(own=OwnReduce(2, 2)),
    "slots": lambda: with_(own=Slotted(2, 2)),
    "forwarding": lambda: with_(own=Forwarding(OwnDeepcopy(3, 3))),
    "a list": lambda: with_(own=ListOfModules()),
    "parametrised": lambda: with_(own=parametrizations.weight_norm(nn.Linear(2, 2))),
    "orthogonal": lambda: with_(own=parametrizations.spectral_norm(nn.Linear(2, 2))),
    "recurrent": lambda: nn.LSTM(2, 3),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 8),
    "lists and dicts": lambda: nn.ModuleDict({
        "a": nn.ModuleList([nn.Linear(2, 2)]), "b": nn.ParameterList([nn.Parameter(torch.ones(1))])
    }),
    **{name: (lambda e=example: e.build(torch.float32)[0]) for name, example in EXAMPLES.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_a_copy_is_what_deepcopy_makes(name: str) -> None:
    model = TREES[name]()
    before = graph(model)
    memo_slow: dict[int, Any] = {}
    memo_fast: dict[int, Any] = {}
    expected, actual = copy.deepcopy(model, memo_slow), deepcopy(model, memo_fast)
    assert graph(actual) == graph(expected)
    assert graph(model) == before
    assert graph([model, actual]) == graph([model, expected])  # and shares with the teacher what that does


def test_whatever_has_taken_the_place_of_a_tensor_is_found_everywhere() -> None:
    model = attributes()
    old, new = model[0].weight, nn.Parameter(torch.zeros(1))
    copied = deepcopy(model, {id(old): new})
    assert copied[0].weight is new
    assert copied.weights[0] is new
    assert copied.weights[1]["w"] is new
    assert copied.plain.weight is new
    assert copied.functions[1].__self__ is copied[0]


def test_hooks_stay_with_their_handles() -> None:
    model = hooks()
    copied = deepcopy(model, {})
    copied.handle.remove()
    assert not copied[0]._forward_hooks
    assert model[0]._forward_hooks


def test_tensors_with_a_history() -> None:
    model = base()
    model.last = model[2][1].weight * 2
    model.holder = Plain(last=model.last)
    model.add_module("pruned", prune.random_unstructured(nn.Linear(2, 2), "weight", 0.5))
    for order in (["holder", "last"], ["last", "holder"]):
        for name in order:  # whichever is met first
            vars(model)[name] = vars(model).pop(name)
        copied = deepcopy(model, {})
        assert torch.equal(copied.last, model.last)
        assert copied.last.is_leaf
        assert copied.holder.last is copied.last


def test_nothing_stays_alive_and_the_collector_goes_on() -> None:
    model = base()
    deepcopy(model, {})
    assert gc.isenabled()
    gc.disable()
    try:
        copied = weakref.ref(deepcopy(model, {}))
        assert not gc.isenabled()
        assert copied() is None  # by its last reference, not by the collector: it may hold a GPU's memory
    finally:
        gc.enable()


def test_what_cannot_be_copied_says_so() -> None:
    model = base()
    model.generator = (i for i in range(3))
    with pytest.raises(TypeError, match="generator"):
        deepcopy(model, {})
    assert gc.isenabled()


class Growing:
    """Adds to the dict that is being copied."""

    def __init__(self, held: dict[str, Any]) -> None:
        self.held = held

    def __deepcopy__(self, memo: dict[int, Any]) -> "Growing":
        self.held["new"] = 1
        return self


def test_a_dict_that_changes_while_it_is_copied() -> None:
    model = base()
    model.held = {"first": 1}
    model.held["growing"] = Growing(model.held)
    model.held["last"] = []
    with pytest.raises(RuntimeError, match="changed size during"):
        deepcopy(model, {})


def test_keys_are_copied_and_equal_objects_are_told_apart() -> None:
    model = base()
    key, one, other = Plain(a=[]), [], []
    model.by_key = {key: one, 3: other, None: {}, (1, "a"): set(), ("b", key): OrderedDict()}
    model.again = [one, key, model.by_key[None]]
    copied = deepcopy(model, {})
    assert graph(copied) == graph(copy.deepcopy(model))
    assert copied.again[0] is copied.by_key[copied.again[1]] is not one
    assert copied.by_key[None] is copied.again[2]
    assert copied.by_key[3] is not copied.again[0]


def test_copies_of_copies() -> None:
    """A handle finds its dicts, empty ones too, by weak references."""
    model = hooks()
    first, expected = deepcopy(model, {}), copy.deepcopy(model)
    copied = deepcopy(first, {})
    assert graph(copied) == graph(copy.deepcopy(expected))
    for handle, module in ((copied.handle, copied[0]), (copied.removed, copied[1])):
        assert handle.hooks_dict_ref() is module._forward_hooks
    assert copied.prehook.hooks_dict_ref() is copied[2][1]._forward_pre_hooks


def test_keys_of_a_modules_own_dict_stay() -> None:
    model = base()
    model.__dict__[model[0]] = [1]
    copied = deepcopy(model, {})
    assert copied.__dict__[model[0]] == [1]
    assert copied.__dict__[model[0]] is not model.__dict__[model[0]]


class Unhashable(nn.Module, list):  # type: ignore[misc]
    __hash__ = None  # type: ignore[assignment]


def test_names_that_are_no_texts_and_modules_without_a_hash() -> None:
    for name, module in ((3, nn.Linear(2, 2)), ("own", Unhashable())):
        model = base()
        model._modules[name] = module
        model.holder = Plain(last=[model[0].weight])  # goes through copy.deepcopy
        assert graph(deepcopy(model, {})) == graph(copy.deepcopy(model))
