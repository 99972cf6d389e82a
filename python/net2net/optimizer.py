"""Optimizer state: how it changes when units are replicated.

At the growth point the gradient of a student's weight is that of the teacher's weight it copies, times the split `c_o`
of its
*output* unit (DESIGN, section 2.2): the input split does not enter. What is linear in gradients is therefore multiplied
by `c_o`, what is quadratic by `c_o**2`, and what has been divided by the root of a quadratic quantity by 1, or nearly:
the epsilon beside that root does not grow (see `mend_normalised`). Step counts stay.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
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

from net2net.dynamics import ELEMENTWISE, GrownAxis, factor_of
from net2net.rmsprop import RMSpropTF
from net2net.shards import local
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

#: What becomes of state: all of it grown by its law; as that, but without the momentum of units that now have replicas;
#: or none of it.
STATES = ("exact", "replicas_reset", "reset")

#: State that remembers directions. The rest are scales, which replicas need as much as their unit did: with second
#: moments of zero and an old step count, Adam's next step would be several times the rate for each of these weights.
MOMENTA = {"momentum_buffer", "exp_avg", "grad_avg"}


@dataclass(frozen=True, eq=False)
class StateTensor:
    """A state tensor of the parameter's shape."""

    parameter: Tensor
    key: str
    value: Tensor
    power: int


def register_optimizer(
    kind: type[Optimizer], laws: Mapping[str, int], *, momenta: Iterable[str] = (), elementwise: bool = False
) -> None:
    """Says how the state of another optimizer grows, such as one of your own.

        net2net.register_optimizer(Lion, {"exp_avg": 1}, momenta=["exp_avg"], elementwise=True)

    Args:
        kind: its class; subclasses are not meant, they may do anything with their state.
        laws: for each state tensor of its parameter's shape the power of the output split `c_o` (the share of its unit
            that a replica has) with which it grows: 1 for what is linear in gradients, 2 for what is quadratic, 0 for
            what has been divided by a root of such. Scalars, such as step counts, stay as they are.
        momenta: which of these remember directions, and are zeroed for replicas where the state is
            `"replicas_reset"`. The others are scales, and stay.
        elementwise: whether a step does to every element of a parameter what it would do to it alone. Only such
            optimizers can keep the teacher's dynamics (`lr="dynamics"`); LAMB and LARS, with norms of layers, cannot.

    Raises:
        TypeError, ValueError: naming the argument; also if `kind` is known already.
    """
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise TypeError(f"kind (={kind!r}) must be a class of torch.optim.Optimizer")
    if kind in LAWS:
        raise ValueError(f"kind (={kind.__name__}) has laws already: {LAWS[kind]}")
    for key, power in laws.items():
        if not isinstance(key, str) or isinstance(power, bool) or not isinstance(power, int):
            raise ValueError(f"laws[{key!r}] (={power!r}) must be a whole number, by the name of the state")
    named = set(momenta)
    if unknown := named - set(laws):
        raise ValueError(f"momenta (={sorted(unknown)}) must be among the laws: {sorted(laws)}")
    scales = {key for each in LAWS.values() for key in each} - MOMENTA
    for key in sorted(laws):
        if (key in named and key in scales) or (key not in named and key in MOMENTA):
            what = "a scale" if key in named else "a momentum"
            raise ValueError(f"momenta (={sorted(named)}): {key!r} is {what} of other optimizers; call it otherwise")
    LAWS[kind] = dict(laws)
    MOMENTA.update(named)
    if elementwise:
        ELEMENTWISE.add(kind)


def laws_for(optimizer: Optimizer) -> dict[str, int]:
    """The laws for `optimizer`; TypeError, by name, if there are none."""
    laws = LAWS.get(type(optimizer))
    if laws is None:
        known = ", ".join(c.__name__ for c in LAWS)
        raise TypeError(
            f"optimizer (={type(optimizer).__module__}.{type(optimizer).__name__}) has state whose law under growth is "
            f"not known; known are {known}; net2net.register_optimizer makes others known"
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


def check_state(state: str) -> None:
    if state not in STATES:
        raise ValueError(f"state (={state!r}) must be one of {', '.join(map(repr, STATES))}")


def reset_replicas(state: StateTensor, value: Tensor, axes: Sequence[GrownAxis]) -> None:
    """Zeroes the momentum `value`, grown from `state`, of units that have replicas, as far as it leads to or from
    them."""
    if state.key not in MOMENTA:
        return
    for axis in axes:
        value.index_fill_(axis.dim, axis.replicated().nonzero().flatten().to(value.device), 0)


#: Optimizers whose momentum is of gradients that have been divided, and by what: the root of second moments `v` and the
#: epsilon that a unit of share `c` would have had, were it to see nothing of the growth.
_DIVISORS: dict[type[Optimizer], Callable[[Tensor, Tensor | float, float], Tensor]] = {
    RMSprop: lambda v, c, eps: v.sqrt() + c * eps,
    RMSpropTF: lambda v, c, eps: (v + c * c * eps).sqrt(),
}

NORMALISED = frozenset(_DIVISORS)


def mend_normalised(
    grown: Optimizer, replaced: Mapping[Tensor, Tensor], axes: Callable[[Tensor], Sequence[GrownAxis]]
) -> None:
    """Momentum of gradients that were divided before it, as in RMSProp, is given the epsilon that the student has.

    The student collects `c_o g / (c_o sqrt(v) + eps)` where the teacher collected `g / (sqrt(v) + eps)`: as much if
    epsilon is small beside `sqrt(v)`, `c_o` times as much if it is large, as the 1.0 with which Inception was trained.
    The quotient of the two is taken element by element with the second moments of now, so it is exact as far as these
    were the same while the momentum was collected.

    Args:
        replaced: old parameters -> those of `grown`.
        axes: of an old parameter, those that have grown (of what is here, if it is sharded).
    """
    if type(grown) not in NORMALISED:
        return
    olds = {new: old for old, new in replaced.items()}
    for group in grown.param_groups:
        for p in group["params"]:
            state = grown.state.get(p, {})
            if p not in olds or state.get("momentum_buffer") is None:
                continue  # a new layer; no momentum yet
            units = [axis for axis in axes(olds[p]) if not axis.split]
            if not units:
                continue
            momentum = local(state["momentum_buffer"])
            share: Tensor | float = 1.0
            for axis in units:
                share = share * factor_of(axis, momentum, torch.promote_types(momentum.dtype, torch.float32))
            mean = local(state["grad_avg"]) if group.get("centered") else None
            mend(type(grown), momentum, local(state["square_avg"]), mean, share, group["eps"])


def mend(
    kind: type[Optimizer],
    momentum: Tensor,
    square_avg: Tensor,
    grad_avg: Tensor | None,
    share: Tensor | float,
    eps: float,
) -> None:
    """What `mend_normalised` does, to one `momentum` or some of its rows: `share` is that of its units, in a shape that
    is broadcast to it, `square_avg` and `grad_avg` (None: gradients are not centred) are the student's."""
    dtype = torch.promote_types(momentum.dtype, torch.float32)
    v = square_avg.to(dtype)
    if grad_avg is not None:
        v = (v - grad_avg.to(dtype).square()).clamp_(min=0)
    quotient = _DIVISORS[kind](v, share, eps) / _DIVISORS[kind](v, 1.0, eps)
    momentum.mul_(quotient.nan_to_num_(nan=1.0))  # 0 / 0 where nothing has been collected


def rebuild(
    optimizer: Optimizer,
    replaced: dict[Tensor, nn.Parameter],
    moving: list[StateTensor],
    values: list[Tensor],
    fresh: list[tuple[nn.Parameter, Tensor]],
    *,
    reset: bool = False,
) -> Optimizer:
    """A copy of `optimizer` over other parameters: `replaced` maps old to new ones, `values` are the new values of
    `moving`, and `fresh` lists (parameter, old parameter): those that are new altogether join the old one's
    group. `reset`: the copy has no state."""
    # The copy keeps what any class of optimizer carries; constructors differ in what they take. Parameters and state
    # change places while it is made, so nothing large is copied.
    memo: dict[int, object] = {id(old): new for old, new in replaced.items()}
    memo.update({id(state.value): value for state, value in zip(moving, values, strict=True)})
    if reset:
        memo[id(optimizer.state)] = defaultdict(dict)
    else:
        deepcopy(list(optimizer.state.values()), memo)  # most of it, and faster so
    grown = copy.deepcopy(optimizer, memo)
    for parameter, near in fresh:
        for old_group, group in zip(optimizer.param_groups, grown.param_groups, strict=True):
            if any(p is near for p in old_group["params"]):
                group["params"].append(parameter)
    return grown


def put_in_order(
    optimizer: Optimizer, grown: Optimizer, old: Mapping[Tensor, int], new: Mapping[Tensor, tuple[int, str]]
) -> None:
    """Sorts each group of `grown` by the positions in `new`, where it was sorted by those in `old`; where groups have
    the parameters' names, they get those in `new`.

    State dicts know parameters by their positions. So the state of a deepened model's optimizer can be loaded into one
    that is made anew in the usual way, over the model's parameters in their order.
    """
    for old_group, group in zip(optimizer.param_groups, grown.param_groups, strict=True):
        before = [old[p] for p in old_group["params"]]
        if before == sorted(before):
            group["params"].sort(key=lambda p: new[p][0])
        if "param_names" in group:
            group["param_names"] = [new[p][1] for p in group["params"]]
