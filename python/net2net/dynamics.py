"""The dynamics-preserving rule: a student that trains as its teacher would have.

The same optimizer state is not yet the same dynamics. With a student's weights `U = W * c_i`, whose gradients are
`dL/dU = dL/dW * c_o` (DESIGN, sections 2.1 and 2.2; `c_i` is the split along the axes that are summed over, `c_o` along
those that make units), the function follows the teacher's trajectory if every step has `dU = dW * c_i`. As learning
rates, that is

- SGD: times `c_i / c_o`, and the weight decay times `c_o / c_i`;
- Adam and RMSprop, which do not see a gradient's scale: times `c_i`, with epsilon times `c_o` (and the weight decay
  times `c_o / c_i`, or `1 / c_i` where it is decoupled).

With r replicas of each unit and a uniform split (`c = 1/r`), SGD's rate is multiplied by r on incoming and divided by r
on outgoing axes, that of Adam and RMSprop divided by r on outgoing ones. But where units have different numbers of
replicas, each weight would need rates of its own, which optimizers do not have. So instead each step is taken *in the
teacher's coordinates*: before it, weights are divided by `c_i` and gradients by `c_o`; afterwards, both are
multiplied again. What is in between is, replica by replica, the teacher's own step, whatever the element-wise
optimizer, its epsilon and weight decay, the split and the numbers of replicas. It costs two passes over the grown
tensors per step, and nothing of learning rates and schedules changes. (Where shares are powers of two, nothing is
rounded by it.) What the teacher's trajectory does not say stays the caller's: random numbers, such as dropout's, of
other shapes are other numbers, and the norm of all gradients, to which they may be clipped, is the student's.

The factors are kept in the optimizer's parameter groups, so its `state_dict` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from net2net.rmsprop import RMSpropTF

#: The option of a parameter group that lists, for each of its parameters, the factors of its gradient and its values.
KEY = "net2net_dynamics"

#: Of one parameter: the factors of its gradient and of its values, each in a shape that is broadcast to its own.
Factors = dict[str, list[Tensor]]

_NONE: Factors = {"gradient": [], "value": []}

#: Those whose step treats every element alike and by itself.
ELEMENTWISE: set[type[Optimizer]] = {
    SGD, Adam, AdamW, NAdam, RAdam, Adamax, Adagrad, Adadelta, RMSprop, RMSpropTF
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class GrownAxis:
    """An axis of a parameter that grows: for each position of the student's the teacher's position (int64) and its
    share of the unit (float64), and whether sums run over it. Of a sharded axis, the positions that are here; `several`
    then says which of them have replicas, here or elsewhere."""

    dim: int
    index: Tensor
    share: Tensor
    split: bool
    several: Tensor | None = None

    def replicated(self) -> Tensor:
        """bool: whether the unit of each position has several replicas."""
        return torch.bincount(self.index)[self.index] > 1 if self.several is None else self.several

    def part(self, begin: int, end: int) -> GrownAxis:
        """The positions [begin, end)."""
        index, share, several = (t[begin:end] for t in (self.index, self.share, self.replicated()))
        return GrownAxis(self.dim, index, share, self.split, several)


def check_dynamics(optimizer: Optimizer) -> None:
    """TypeError if the steps of `optimizer` cannot be taken in other coordinates."""
    if type(optimizer) not in ELEMENTWISE:
        known = ", ".join(sorted(c.__name__ for c in ELEMENTWISE))
        raise TypeError(
            f"optimizer (={type(optimizer).__name__}) cannot keep the teacher's dynamics; those that work element by "
            f"element can: {known}"
        )


def carry(
    optimizer: Optimizer,
    grown: Optimizer,
    replaced: Mapping[Tensor, Tensor],
    axes: Callable[[Tensor], Sequence[GrownAxis]],
    *,
    start: bool,
) -> None:
    """Grows the factors that `optimizer` has along with its parameters; with `start`, adds those of this growth.

    Args:
        replaced: old parameters -> new ones.
        axes: of an old parameter, those that grow.
    """
    for old_group, group in zip(optimizer.param_groups, grown.param_groups, strict=True):
        if not start and KEY not in old_group:
            continue
        # Parameters that joined later have none.
        old = dict(zip(old_group["params"], old_group.get(KEY, ()), strict=False))
        new: dict[Tensor, Factors] = {}
        for p in old_group["params"]:
            grows = axes(p)
            factors = {kind: [_grown(f, grows) for f in given] for kind, given in old.get(p, _NONE).items()}
            for axis in grows if start else ():
                factors["value" if axis.split else "gradient"].append(_factor(axis, p))
            new[replaced[p]] = factors
        group[KEY] = [new.get(p, {kind: [] for kind in _NONE}) for p in group["params"]]
    keep_dynamics(grown)


def _factor(axis: GrownAxis, p: Tensor) -> Tensor:
    """The shares along the axis, in a shape that is broadcast to that of `p`."""
    if (axis.share == 0).any():
        raise ValueError(f"a share of 0 on axis {axis.dim} of a parameter leaves no coordinates to step in")
    return factor_of(axis, p, torch.float64 if p.dtype == torch.float64 else torch.float32)


def factor_of(axis: GrownAxis, like: Tensor, dtype: torch.dtype) -> Tensor:
    """The shares along the axis, in a shape that is broadcast to that of `like`, on its device."""
    return axis.share.to(device=like.device, dtype=dtype).reshape(
        [-1 if d == axis.dim else 1 for d in range(like.dim())]
    )


def _grown(factor: Tensor, axes: Sequence[GrownAxis]) -> Tensor:
    for axis in axes:
        if factor.shape[axis.dim] > 1:
            factor = factor.index_select(axis.dim, axis.index.to(factor.device))
    return factor


def keep_dynamics(optimizer: Optimizer) -> None:
    """Has an optimizer take its steps in the coordinates that its parameter groups say, if they do.

    An optimizer that was grown with `lr="dynamics"` does so already. Needed after `load_state_dict` into a new
    optimizer, since a state dict holds the factors but no code. Calling it again changes nothing. While an optimizer is
    in these coordinates its state is the teacher's own.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer (={type(optimizer).__name__}) must be a torch.optim.Optimizer")
    hooks = optimizer._optimizer_step_pre_hooks.values()
    if not any(KEY in group for group in optimizer.param_groups):
        return
    if any(is_own(hook) for hook in hooks):
        return
    coordinates = _Coordinates()
    optimizer.register_step_pre_hook(coordinates.enter)
    optimizer.register_step_post_hook(coordinates.leave)


def is_own(hook: object) -> bool:
    """Whether this hook of an optimizer is one of those that `keep_dynamics` registers."""
    return isinstance(getattr(hook, "__self__", None), _Coordinates)


class _Coordinates:
    """Divides before a step, and multiplies after it."""

    def __init__(self) -> None:
        self._divided: list[tuple[Tensor, Tensor]] = []

    def enter(self, optimizer: Optimizer, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        closure = arguments[1] if len(arguments) > 1 else options.get("closure")
        if closure is None:
            self._divide(optimizer)
            return None

        # A closure runs the model, whose coordinates are its own; all of these optimizers call it once, before anything
        # else.
        def and_then_divide() -> Any:
            loss = closure()
            self._divide(optimizer)
            return loss

        return (arguments[:1], {**options, "closure": and_then_divide})

    @torch.no_grad()
    def _divide(self, optimizer: Optimizer) -> None:
        self._undo()  # if the last step failed midway
        found = []
        for group in optimizer.param_groups:
            # Parameters that were added later have no factors.
            for p, factors in zip(group["params"], group.get(KEY, ()), strict=False):
                if p.grad is None:
                    continue
                if p.grad.is_sparse and factors["gradient"] + factors["value"]:
                    raise TypeError("an optimizer that keeps its teacher's dynamics cannot take sparse gradients")
                found += [(p.grad, f) for f in factors["gradient"]] + [(p.detach(), f) for f in factors["value"]]
        for t, factor in found:
            t.div_(factor.to(t.device))
            self._divided.append((t, factor))

    @torch.no_grad()
    def leave(self, _optimizer: Optimizer, _arguments: tuple[Any, ...], _options: dict[str, Any]) -> None:
        self._undo()

    def _undo(self) -> None:
        while self._divided:
            t, factor = self._divided.pop()
            t.mul_(factor.to(t.device))
