"""Optimizer state: how it changes when units are replicated.

At the growth point the gradient of a student's weight is that of the teacher's weight it copies, times the split `c_o`
of its
*output* unit (DESIGN, section 2.2): the input split does not enter. What is linear in gradients is therefore multiplied
by `c_o`, what is quadratic by `c_o**2`, and what has been divided by the root of a quadratic quantity by 1. Step counts
stay.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from net2net.rmsprop import RMSpropTF
from net2net.tree import deepcopy

#: For each optimizer, the power of the output split that each state tensor takes. A subclass may do anything with its
#: state, so only these very classes count.
LAWS: dict[type[Optimizer], dict[str, int]] = {
    SGD: {"momentum_buffer": 1},
    Adam: {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    AdamW: {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    NAdam: {"exp_avg": 1, "exp_avg_sq": 2},
    RAdam: {"exp_avg": 1, "exp_avg_sq": 2},
    Adamax: {"exp_avg": 1, "exp_inf": 1},
    Adagrad: {"sum": 2},
    Adadelta: {"square_avg": 2, "acc_delta": 0},
    RMSprop: {"square_avg": 2, "grad_avg": 1, "momentum_buffer": 0},
    RMSpropTF: {"square_avg": 2, "momentum_buffer": 0},
}


@dataclass(frozen=True, eq=False)
class StateTensor:
    """A state tensor of the parameter's shape."""

    parameter: Tensor
    key: str
    value: Tensor
    power: int


def laws_for(optimizer: Optimizer) -> dict[str, int]:
    """The laws for `optimizer`; TypeError, by name, if there are none."""
    laws = LAWS.get(type(optimizer))
    if laws is None:
        known = ", ".join(c.__name__ for c in LAWS)
        raise TypeError(
            f"optimizer (={type(optimizer).__module__}.{type(optimizer).__name__}) has state whose law under growth is "
            f"not known; known are {known}"
        )
    return laws


def state_tensors(
    optimizer: Optimizer, names: dict[Tensor, str], laws: dict[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> list[StateTensor]:
    """All state of the parameters' shapes (`shapes`, by name). TypeError if there is a tensor without a law."""
    found = []
    for p, entries in optimizer.state.items():
        shape = shapes.get(names.get(p, ""))
        for key, value in entries.items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                continue  # a step count
            if key not in laws or value.shape != shape:
                raise TypeError(
                    f"optimizer (={type(optimizer).__name__}) has state {key!r} of shape {tuple(value.shape)} for "
                    f"{names.get(p, 'an unknown parameter')}, whose law under growth is not known"
                )
            found.append(StateTensor(p, key, value, laws[key]))
    return found


def rebuild(
    optimizer: Optimizer,
    replaced: dict[Tensor, nn.Parameter],
    moving: list[StateTensor],
    values: list[Tensor],
    fresh: list[tuple[str, nn.Parameter, Tensor]],
) -> Optimizer:
    """A copy of `optimizer` over other parameters: `replaced` maps old to new ones, `values` are the new values of
    `moving`, and `fresh` lists (name, parameter, old parameter): those that are new altogether join the old one's
    group."""
    # The copy keeps what any class of optimizer carries; constructors differ in what they take. Parameters and state
    # change places while it is made, so nothing large is copied.
    memo: dict[int, object] = {id(old): new for old, new in replaced.items()}
    memo.update({id(state.value): value for state, value in zip(moving, values, strict=True)})
    deepcopy(list(optimizer.state.values()), memo)  # most of it, and faster so
    grown = copy.deepcopy(optimizer, memo)
    for name, parameter, near in fresh:
        for old_group, group in zip(optimizer.param_groups, grown.param_groups, strict=True):
            if any(p is near for p in old_group["params"]):
                group["params"].append(parameter)
                if "param_names" in group:
                    group["param_names"].append(name)
    return grown
