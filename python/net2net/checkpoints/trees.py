"""Checkpoints as nested dicts and lists: which of them are state dicts of the model, which of its optimizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from net2net.checkpoints.optimizers import grown_optimizer
from net2net.checkpoints.positions import ORDERS, Order
from net2net.checkpoints.prefixes import prefix_of
from net2net.checkpoints.stored import Stored
from net2net.checkpoints.streams import Stream, unchanged
from net2net.checkpoints.weights import grown_weights
from net2net.plan import GrowthPlan


class Grown:
    """A checkpoint's tree with streams for tensors, and what has been found in it on the way.

    Attributes:
        tree: all of it.
        models: what the state dicts of the model's kind are called (`""`: the whole tree).
        optimizers: likewise.
        order: of the student's parameters, where an optimizer knows them by their positions.
        by_position: such optimizers.

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
        order: Order | None,
        what: str,
    ) -> None:
        self.models: list[str] = []
        self.optimizers: list[str] = []
        self.order: Order | None = order
        self.by_position: list[str] = []
        self._order = order
        self._plan, self._optimizer, self._state, self._model, self._what = plan, optimizer, state, model, what
        self.tree = self._node(tree, "")
        if not self.models and not self.optimizers:
            self._complain(tree)

    def _node(self, node: Any, where: str) -> Any:
        if isinstance(node, Stored):
            return unchanged(node)
        if isinstance(node, Mapping):
            inventory = self._plan.inventory
            if is_optimizer(node):
                return self._its_optimizer(node, where)
            prefix = prefix_of(node, inventory.aliases, inventory.shapes, inventory.saved)
            if prefix is not None:
                self.models.append(where)
                return self._weights(node, prefix, where)
            return like(node, {key: self._node(value, f"{where}.{key}" if where else str(key))
                               for key, value in node.items()})  # fmt: skip
        if isinstance(node, list | tuple):
            self._refuse_nameless(node, where)
            return type(node)(self._node(value, f"{where}.{i}") for i, value in enumerate(node))
        return node

    def _its_optimizer(self, node: Mapping[str, Any], where: str) -> dict[str, Any]:
        self.optimizers.append(where)
        grown, numbered = grown_optimizer(
            self._plan, node, self._optimizer, self._state, self._model, self._order, where or self._what
        )
        if numbered is not None:
            self.by_position.append(where)
            if self._order is not None and self._order not in ORDERS:
                self.order = numbered
        return grown

    def _refuse_nameless(self, node: Any, where: str) -> None:
        """ValueError if it lists tensors of the shapes of the model's parameters, in their order."""
        count = self._plan.inventory.parameters
        shapes = [value.shape for value in node if _is_tensor(value)]
        if count and len(shapes) >= count and shapes[:count] == list(self._plan.shapes.values())[:count]:
            raise ValueError(
                f"{self._what} ({where}) lists tensors of the shapes of the model's parameters, without their names: a "
                "moving average must be a state dict to be grown"
            )

    def _weights(self, node: Mapping[str, Any], prefix: str, where: str) -> dict[str, Any]:
        own = {key: value for key, value in node.items() if key.startswith(prefix)}
        others = {key: self._node(value, key) for key, value in node.items() if key not in own or not _is_tensor(value)}
        stored = {key.removeprefix(prefix): value for key, value in own.items() if _is_tensor(value)}
        try:
            grown = grown_weights(self._plan, stored)
        except ValueError as error:
            raise ValueError(f"{self._what}{f' ({where})' if where else ''} does not fit the plan: {error}") from error
        return like(node, {**{prefix + key: stream for key, stream in grown.items()}, **others})

    def _complain(self, tree: Any) -> None:
        """ValueError: nothing in it is of the model's kind."""
        raise ValueError(
            f"{self._what} does not fit the plan: it has none of the tensors that the plan was made for, such as "
            f"{next(iter(self._plan.shapes), 'any')}, but {', '.join(sorted(map(str, tree))[:3])}"
        )


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
