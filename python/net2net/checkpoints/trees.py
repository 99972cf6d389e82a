"""Checkpoints as nested dicts and lists: which of them are state dicts of the model, which of its optimizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from net2net.checkpoints.optimizers import grown_optimizer
from net2net.checkpoints.positions import ORDERS, Order, Orders, has_names
from net2net.checkpoints.prefixes import parted, prefixes_of
from net2net.checkpoints.stored import Stored
from net2net.checkpoints.streams import Stream, unchanged
from net2net.checkpoints.weights import grown_weights
from net2net.plan import GrowthPlan

#: What an optimizer's state dict has.
_ITS_OWN = {"state", "param_groups"}


class Grown:
    """A checkpoint's tree with streams for tensors, and what has been found in it on the way.

    Attributes:
        tree: all of it.
        models: what the state dicts of the model's kind are called (`""`: the whole tree).
        optimizers: likewise.
        order: of the student's parameters, where an optimizer knows them by their positions.
        by_position: such optimizers.
        left: what stays as it is, though it looks like something of a parameter that grows.

    Raises:
        ValueError: there are neither, or what there is does not fit the plan.
    """

    def __init__(
        self,
        plan: GrowthPlan,
        tree: Any,
        *,
        optimizer: str | None,
        state: str,
        model: nn.Module | None,
        order: Orders | None,
        what: str,
    ) -> None:
        self.models: list[str] = []
        self.optimizers: list[str] = []
        self.order = order
        self.by_position: list[str] = []
        self.left: list[str] = []
        self._plan, self._optimizer, self._state, self._model, self._what = plan, optimizer, state, model, what
        self._order = order
        self._growing = {
            name: shape for name, shape in plan.shapes.items() if len(shape) and plan.student_shape(name) != shape
        }
        self._shapes = {shape for shape in self._growing.values() if len(shape) > 1}
        self.tree = self._node(tree, "")
        if not self.models and not self.optimizers:
            self._complain(tree)
        self._check_optimizers()

    def _check_optimizers(self) -> None:
        if self._optimizer is not None and not self.optimizers:
            raise ValueError(
                f"optimizer (={self._optimizer!r}) is given, but {self._what} has no optimizer's state dict"
            )
        if isinstance(self._order, Mapping):
            for where in self._order:
                if where not in self.optimizers and where not in self.left:
                    raise ValueError(f"order is of {where!r}, but {self._what} has no optimizer of that name")
        elif len(self.by_position) > 1:
            raise ValueError(
                f"{self._what} has several optimizers that know parameters by their positions "
                f"({', '.join(self.by_position)}), and nothing says which are of this model: give order= as a dict of "
                "those that are"
            )

    def _node(self, node: Any, where: str) -> Any:
        if isinstance(node, Stored):
            self._look_at(node, where)
            return unchanged(node)
        if isinstance(node, Mapping):
            inventory = self._plan.inventory
            if is_optimizer(node):
                return self._its_optimizer(node, where)
            self._refuse_flattened(node, where)
            prefixes = prefixes_of(node, inventory.aliases, inventory.shapes, inventory.saved)
            if len(prefixes) > 1:  # others may have the same names, and be of another network
                prefixes = [p for p in prefixes if self._fits(node, p)] or prefixes[:1]
            if prefixes:
                several = len(prefixes) > 1
                self.models += [_joined(where, p.removesuffix(".")) for p in prefixes] if several else [where]
                return self._weights(node, prefixes, where)
            return like(node, {key: self._node(value, _joined(where, key)) for key, value in node.items()})
        if isinstance(node, list | tuple):
            self._refuse_nameless(node, where)
            return type(node)(self._node(value, f"{where}.{i}") for i, value in enumerate(node))
        return node

    def _its_optimizer(self, node: Mapping[str, Any], where: str) -> Any:
        order: Order | None
        if isinstance(self._order, Mapping):
            order = self._order.get(where)
            if order is None and not has_names(node, where or self._what):
                self.left.append(where)
                return mapped(node, Stored, unchanged)
        else:
            order = self._order
        self.optimizers.append(where)
        grown, numbered = grown_optimizer(
            self._plan, node, self._optimizer, self._state, self._model, order, where or self._what
        )
        if numbered is not None:
            self.by_position.append(where)
            if order is not None and order not in ORDERS:
                self.order = {**self.order, where: numbered} if isinstance(self.order, Mapping) else numbered
        rest = {key: self._node(value, _joined(where, key)) for key, value in node.items() if key not in _ITS_OWN}
        return mapped({**grown, **rest}, Stored, unchanged)

    def _look_at(self, stored: Stored, where: str) -> None:
        """Takes note of a tensor that nobody claims, if it may have to do with a parameter that grows."""
        if stored.shape in self._shapes or any(
            shape == stored.shape and f".{name}." in f".{where}." for name, shape in self._growing.items()
        ):
            self.left.append(where)

    def _fits(self, node: Mapping[str, Any], prefix: str) -> bool:
        shapes, aliases = self._plan.shapes, self._plan.inventory.aliases
        found = ((name, node.get(prefix + name)) for name in self._plan.inventory.saved)
        return all(isinstance(t, Stored) and t.shape == shapes[aliases.get(name, name)] for name, t in found)

    def _refuse_flattened(self, node: Mapping[Any, Any], where: str) -> None:
        keys = [key for key in node if isinstance(key, str)]
        if any(key.startswith("state.") for key in keys) and any(key.startswith("param_groups.") for key in keys):
            raise ValueError(
                f"{self._what}{f' ({where})' if where else ''} has a flattened state dict of an optimizer: save it "
                "without flatten_optimizer_state_dict"
            )

    def _refuse_nameless(self, node: Any, where: str) -> None:
        """ValueError if it lists tensors of the shapes of the model's parameters, in their order."""
        count = self._plan.inventory.parameters
        shapes = [value.shape for value in node if _is_tensor(value)]
        if count and len(shapes) >= count and shapes[:count] == list(self._plan.shapes.values())[:count]:
            raise ValueError(
                f"{self._what} ({where}) lists tensors of the shapes of the model's parameters, without their names: a "
                "moving average must be a state dict to be grown"
            )

    def _weights(self, node: Mapping[str, Any], prefixes: list[str], where: str) -> dict[str, Any]:
        of, rest = parted(node, prefixes)
        others = {key: self._node(value, _joined(where, key)) for key, value in rest.items()}
        grown: dict[str, Any] = {}
        for prefix, stored in of.items():
            try:
                streams = grown_weights(self._plan, stored)
            except ValueError as error:
                place = f" ({where})" if where else ""
                raise ValueError(f"{self._what}{place} does not fit the plan: {error}") from error
            grown.update({prefix + key: stream for key, stream in streams.items()})
        return like(node, {**grown, **others})

    def _complain(self, tree: Any) -> None:
        """ValueError: nothing in it is of the model's kind."""
        raise ValueError(
            f"{self._what} does not fit the plan: it has none of the tensors that the plan was made for, such as "
            f"{next(iter(self._plan.shapes), 'any')}, but {', '.join(sorted(map(str, tree))[:3])}"
        )


def _joined(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Stored)


def is_optimizer(node: Mapping[Any, Any]) -> bool:
    """Whether it is what `Optimizer.state_dict` returns."""
    groups = node.get("param_groups")
    if not isinstance(groups, list) or not isinstance(node.get("state", {}), Mapping):
        return False
    return all(isinstance(group, Mapping) and "params" in group for group in groups)


def like(node: Mapping[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    """`items` as the same kind of dict as `node`: an ordered one may have `_metadata`, the versions of modules."""
    if not isinstance(node, OrderedDict):
        return items
    made = OrderedDict(items)
    if hasattr(node, "_metadata"):
        made._metadata = node._metadata  # type: ignore[attr-defined]
    return made


def leaves(node: Any, where: str = "") -> Iterator[tuple[str, Stream]]:
    """All streams, by what they are called."""
    if isinstance(node, Stream):
        yield where, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from leaves(value, f"{where}.{i}")


def mapped(node: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """The tree with `function` of each leaf that is of this kind."""
    if isinstance(node, kind):
        return function(node)
    if isinstance(node, Mapping):
        return like(node, {key: mapped(value, kind, function) for key, value in node.items()})
    if isinstance(node, list | tuple):
        return type(node)(mapped(value, kind, function) for value in node)
    return node
