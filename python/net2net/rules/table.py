"""The table itself, and what happens to an operation that is not in it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from net2net.context import Context
from net2net.hashes import digest, mix, seed, total
from net2net.shadows import compact, compressed, ids_of
from net2net.units import CONSTANT, FIXED

Rule = Callable[[Context, Any, Any, Any, Any], None]

_RULES: dict[str, Rule] = {}

#: The rule for operations that PyTorch tags as element-wise; set by elementwise.py.
POINTWISE: list[Rule] = []


def register(*names: str) -> Callable[[Rule], Rule]:
    """Registers the decorated function as the rule for these operations.

    A rule is called after the operation has been run, with a `Context` (context.py), the operation, its positional and
    keyword arguments and its result. It gives every tensor of the result its codes.

    Args:
        names: of ATen operations without namespace and overload (`"convolution"`), of others with their namespace
            (`"mylib::op"`).
    """

    def add(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
        rule_for.cache_clear()
        return function

    return add


@functools.cache
def name_of(func: Any) -> str:
    packet = func.overloadpacket.__name__
    return packet if func.namespace == "aten" else f"{func.namespace}::{packet}"


@functools.cache
def rule_for(func: Any) -> Rule:
    """The rule for an operation: its own, the one for element-wise operations or views, or the one that pins."""
    name = name_of(func)
    if name in _RULES:
        return _RULES[name]
    if sees_other_numbers(func):
        return another_dtype
    # An in-place operation means for units what its out-of-place form means.
    if name.endswith("_") and not name.endswith("__") and name[:-1] in _RULES:
        return _RULES[name[:-1]]
    if _elementwise(func) or any(map(_elementwise, _out_of_place(func))):
        return POINTWISE[0]
    return view if is_view(func) else unknown


def _elementwise(func: Any) -> bool:
    return torch.Tag.pointwise in func.tags and torch.Tag.nondeterministic_seeded not in func.tags


def _out_of_place(func: Any) -> list[Any]:
    """The forms of an in-place operation that return something new: PyTorch tags these alone."""
    name = name_of(func)
    forms = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") and func.namespace == "aten" else None
    return [getattr(forms, overload) for overload in forms.overloads()] if forms is not None else []


@functools.cache
def is_view(func: Any) -> bool:
    """Whether what an operation returns is its operand, seen in another way."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


@functools.cache
def sees_other_numbers(func: Any) -> bool:
    """Whether it is a view in which the same memory holds other numbers."""
    return is_view(func) and (name_of(func) in _OTHER_NUMBERS or func._overloadname == "dtype")


#: The end of a slice that has none.
_END = 2**63 - 1


@register(
    "_unsafe_view",
    "_reshape_alias",
    "as_strided_",
    "squeeze_",
    "unsqueeze_",
    "t_",
    "transpose_",
    "swapaxes_",
    "swapdims_",
)
def view(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A view shares its storage, and with it the codes. Whether its sizes still fit a wider tensor is for the student's
    own forward to tell. But which of several places is taken, and how many, must not depend on a width."""
    x, name = args[0], name_of(func)
    known = context.shadows.get(x) if x.dim() else None
    if known is None:
        return
    if name in {"view", "_unsafe_view", "_reshape_alias"}:
        return _whole_places(context, func, x, out)
    if name in {"unfold", "diagonal", "as_strided"}:
        codes = compact(known).numpy()
        lengths = extent(codes, x) if name != "as_strided" else ()
        context.signature(np.atleast_1d(seed((name, lengths, numbers((args[1:], kwargs))))), codes)
        return
    if name not in {"select", "slice", "split", "split_with_sizes", "narrow", "unbind"}:
        return
    taking = {"select", "slice", "narrow", "unbind"}
    dim = (args[1] if name in taking and len(args) > 1 else kwargs.get("dim", 0)) % x.dim()
    if name.startswith("split") and len(args) > 2:
        dim = args[2] % x.dim()
    codes = compact(known).numpy()
    given = args[1] if name.startswith("split") else args[2:]
    bounds = tuple(a for a in flat(given) if isinstance(a, int))
    if x.shape[dim] == 1 or (name == "slice" and bounds in {(0, _END), ()}):
        return
    if codes.shape[dim] == 1:
        # A bound beyond the end counts too: with another input it may not be beyond it.
        context.signature(np.atleast_1d(seed((name, x.shape[dim], bounds))), codes)
    elif context.has_units(codes) and not (name == "slice" and bounds[0] == 0 and bounds[1] >= x.shape[dim]):
        if ambiguous(codes, dim):
            if _of_one_unit(context, codes, [dim]):
                context.signature(np.atleast_1d(seed((name, x.shape[dim], bounds))), codes)
            else:
                context.pin(codes, f"{func} takes some of several places")
        for part in tensors(out):
            if part.numel() and (its := context.shadows.get(part)) is not None:
                context.taken(codes, compact(its).numpy())


def _whole_places(context: Context, func: Any, x: Tensor, out: Tensor) -> None:
    """Several places with one code (an image, flattened) are told apart by their order alone. A view that splits a
    dimension between them, by a number in the code, has them in rows of which another width would make others."""
    known = context.shadows.get(out)
    if known is None or out.dim() < 2:
        return
    known, rows = compact(known), _split(tuple(x.shape), tuple(out.shape))
    context.signature(np.atleast_1d(seed(("view", places(known.shape, out)))), known.numpy())
    if not any(_several(known.shape, dims) for dims in rows):
        return
    codes = compact(compressed(known)).numpy()
    for dims in rows:
        if not _several(codes.shape, dims) or _of_one_unit(context, codes, dims):
            continue
        units = np.where(context.roots(codes) == CONSTANT, -1, codes)
        # Where changes of attributes are tried, the same views are seen again and again.
        if (key := digest(units, dims)) not in context.scattered:
            context.scattered[key] = _scattered(units, dims)
        if context.scattered[key]:
            context.pin(codes, f"{func} cuts between places")


def _several(shape: Sequence[int], dims: list[int]) -> bool:
    """Whether several of these dimensions are longer than 1."""
    return sum(shape[d] > 1 for d in dims) > 1


def _of_one_unit(context: Context, codes: np.ndarray, dims: list[int]) -> bool:
    """Whether along these dimensions there are places of one unit (or constants in its stead) and no others: there are
    as many, whatever the widths."""
    constant = context.roots(codes) == CONSTANT
    places = np.where(constant, CONSTANT, context.units.places.roots(ids_of(codes)))
    return bool((constant | (places == places.max(axis=tuple(dims), keepdims=True))).all())


def _split(before: tuple[int, ...], after: tuple[int, ...]) -> list[list[int]]:
    """The dimensions of a view by those of the original: each list has those that the same elements lie along."""
    found: list[list[int]] = [[]]
    at, mine, theirs = 0, 1, 1
    for d, n in enumerate(after):
        found[-1].append(d)
        mine *= n
        while at < len(before) and theirs < mine:
            theirs *= before[at]
            at += 1
        if mine == theirs:
            found.append([])
    return found


def _scattered(codes: np.ndarray, dims: list[int]) -> bool:
    """Whether a code (-1 apart) occurs at positions that differ in several of these dimensions, so that an exchange of
    them would change their order."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    order = np.argsort(flat, kind="stable")
    sorted_ = flat[order]
    starts = np.flatnonzero(np.diff(sorted_, prepend=sorted_[:1] - 1))
    # Only codes that occur several times.
    counts = np.diff(starts, append=len(flat))
    several = (counts > 1) & (sorted_[starts] >= 0)
    if not several.any():
        return False
    taken = np.repeat(several, counts)
    order, counts = order[taken], counts[several]
    starts = np.cumsum(counts) - counts
    over = np.zeros(len(counts), dtype=np.int64)
    strides = np.cumprod((1, *codes.shape[:0:-1]))[::-1]
    for dim in dims:
        at = order // strides[dim] % codes.shape[dim]
        over += np.minimum.reduceat(at, starts) < np.maximum.reduceat(at, starts)
    return bool((over > 1).any())


def ambiguous(codes: np.ndarray, dim: int) -> bool:
    """Whether several positions of a dimension of units have the same code: places that a view has put there (an image,
    flattened). What takes some of them by their number cannot be followed."""
    if codes.shape[dim] == 1:
        return False
    columns = np.moveaxis(codes, dim, 0).reshape(codes.shape[dim], -1)
    hashes = total(mix(mix(seed("column"), np.arange(columns.shape[1])), columns))
    return len(np.unique(hashes)) < len(columns)


#: Views in which the same memory holds other numbers.
_OTHER_NUMBERS = {"view_as_complex", "view_as_real", "_view_as_real_physical", "view_dtype", "_conj", "_neg_view"}


def another_dtype(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    refuse(context, func, args, kwargs, out, f"{func} sees the memory as numbers of another kind")


def unknown(context: Context, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """No rule: the units must stay as they are, and nothing is known of the result."""
    refuse(context, func, args, kwargs, out, f"there is no rule for {func}")


def refuse(context: Context, func: Any, args: Any, kwargs: Any, out: Any, why: str) -> None:
    """Pins all that goes in; what comes out is one fixed value per tensor."""
    given = tensors(args) + tensors(kwargs)
    state: Any = seed((str(func), numbers((args, kwargs))))
    for t in given:
        context.pin_tensor(t, why)
        inside = np.unique(ids_of(compact(context.of(t)).numpy()))
        state = mix(state, np.array(total(mix(seed(("in", tuple(t.shape))), inside))))
    for i, t in enumerate(tensors(out)):
        made = context.units.intern(np.atleast_1d(mix(state, np.array(i))))
        context.units.adopt(made, FIXED)
        context.set(t, made.reshape(()))


def flat(tree: Any) -> list[Any]:
    """What is in the nested lists, tuples and dicts that an operation is given. (Torch's own takes its time.)"""
    if not isinstance(tree, (list, tuple, dict)):
        return [tree]
    found = []
    for item in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(item, (list, tuple, dict)):
            found += flat(item)
        else:
            found.append(item)
    return found


def tensors(tree: Any) -> list[Tensor]:
    return [t for t in flat(tree) if isinstance(t, Tensor)]


def is_mask(index: Tensor) -> bool:
    """Whether an index selects where it is true, along as many dimensions as it has."""
    return index.dtype in (torch.bool, torch.uint8)


def crosses_units(context: Context, func: Any, index: Tensor) -> bool:
    """Whether an index has units. A single one (a score) keeps one replica; it is the same for all then."""
    codes = array(context, index)
    if codes.size == 1:
        context.pin(codes, f"{func} goes by it")
        return False
    return context.has_units(codes)


def chosen_by(context: Context, indices: list[Tensor], dims: int) -> list[np.ndarray]:
    """One code for each index, to be broadcast to `dims` dimensions: all that it chooses is chosen by the same."""
    return [array(context, i).reshape(-1)[:1].reshape((1,) * dims) for i in indices]


def indexed_dims(indices: Any) -> list[int]:
    """The dimensions that the list of indices of `aten::index` or `index_put` is about."""
    found: list[int] = []
    at = 0
    for index in indices:
        here = index.dim() if index is not None and is_mask(index) else 1
        if index is not None:
            found += range(at, at + here)
        at += here
    return found


def numbers(tree: Any) -> tuple[Any, ...]:
    """The numbers, flags and strings among an operation's arguments. Code may have made them from a tensor's width (`x
    / x.shape[1]`), which no code shows; so they are part of the value."""
    return tuple(
        repr(a.initial_seed() if isinstance(a, torch.Generator) else a)
        for a in flat(tree)
        if _is_number(a) or isinstance(a, torch.Generator)
    )


def spelled(args: Any, kwargs: Any) -> tuple[Any, ...]:
    """`numbers`, where they stand among the arguments, and the type that is asked for: `x ** 2` is not `2 ** x`."""
    given = flat((args, sorted(kwargs.items())))
    kept = (a for a in given if a is None or isinstance(a, Tensor | torch.dtype) or _is_number(a))
    return tuple("tensor" if isinstance(a, Tensor) else repr(a) for a in kept)


def _is_number(a: Any) -> bool:
    return isinstance(a, bool | int | float | complex | str)


def array(context: Context, t: Tensor, along: int | None = None, met: np.ndarray | None = None) -> np.ndarray:
    """The codes of `t`, with size 1 along every dimension along which they are all the same, or one family."""
    return context.families(np.asarray(compact(context.of(t, along, met)).numpy()))


def extent(codes: np.ndarray, t: Tensor) -> tuple[int, ...]:
    """The sizes of the dimensions along which all codes are the same: how many values there are is part of what an
    operation along them makes."""
    return tuple(n for n, c in zip(t.shape, codes.shape, strict=True) if c == 1)


def places(codes: Sequence[int], t: Tensor) -> tuple[int, ...]:
    """How many places `t`, with codes of this shape, has along each of its dimensions; 1 along those of units. No width
    may tell how many there are."""
    return tuple(n if c == 1 else 1 for c, n in zip(codes, t.shape, strict=True))


def varies(context: Context, codes: np.ndarray, dim: int) -> bool:
    """Whether there are units along a dimension."""
    return codes.shape[dim] > 1 and context.has_units(codes)


def aligned_codes(
    context: Context, what: str, operands: list[Tensor], dims: int, but: int | None = None
) -> list[np.ndarray]:
    """Each operand's codes, with dimensions of size 1 in front so that all have as many.

    Parameters of which nothing is known yet come last: the other operands tell which of their dimensions has units.

    Args:
        what: the operation's name.
        but: a dimension in which they do not meet.
    """
    new = [context.is_new(t) for t in operands]
    found: dict[int, np.ndarray] = {}
    for i in sorted(range(len(operands)), key=lambda i: new[i]):
        t = operands[i]
        along, met = None, None
        if new[i]:
            for other in found.values():
                varying = [
                    d for d in range(dims)
                    if d != but and varies(context, other, d) and is_long(t, d - (dims - t.dim()))
                ]  # fmt: skip
                if len(varying) == 1 and not _crossing_rows(context, other, varying[0], what):
                    d = varying[0]
                    along = d - (dims - t.dim())
                    met = np.moveaxis(other, d, -1).reshape(-1, other.shape[d])
                    break
        codes = array(context, t, along, met)
        found[i] = codes.reshape((1,) * (dims - codes.ndim) + codes.shape)
    aligned = [found[i] for i in range(len(operands))]
    where = [d for d in range(dims) if d != but and any(varies(context, other, d) for other in aligned)]
    return [told_apart(context, t, codes, where) for t, codes in zip(operands, aligned, strict=True)]


def told_apart(context: Context, t: Tensor, codes: np.ndarray, dims: Iterable[int]) -> np.ndarray:
    """The codes of `t`, which may have dimensions in front that `t` has not. Of a tensor without units there is one
    code for all of it; where it meets units that lie along some of `dims`, it may have another value for each position
    there (for each head, say), and so it has a code for each. What is known to be the same for several, because it was
    made so, agrees with any unit."""
    front = codes.ndim - t.dim()
    roots, dims = context.roots(codes), [d for d in dims if codes.shape[d] == 1 and is_long(t, d - front)]
    if not dims or (roots > FIXED).any() or (roots == CONSTANT).all():
        return codes
    agreeing, state = True, mix(seed("position"), ids_of(codes))
    for d in dims:
        which = context.expanded.copies(t, d - front)
        if which is None:
            which, agreeing = np.arange(t.shape[d - front]), False
        elif not which.any():  # the same at all positions
            continue
        state = mix(mix(state, np.array(d)), which.reshape([-1 if at == d else 1 for at in range(codes.ndim)]))
    made = context.units.intern(state)
    if agreeing:
        context.agreeing(made)
        return made
    context.units.adopt(made.ravel(), FIXED)
    return np.where(roots == CONSTANT, codes, made)


def _crossing_rows(context: Context, codes: np.ndarray, dim: int, what: str) -> bool:
    return context.crossing(np.moveaxis(codes, dim, -1).reshape(-1, codes.shape[dim]), what)


def is_long(t: Tensor, d: int) -> bool:
    return d >= 0 and t.shape[d] > 1 and t.stride(d) != 0


def rows_along(codes: np.ndarray, dim: int, size: int) -> np.ndarray:
    """[rows, size]: the codes with `dim` last and the other dimensions as rows."""
    moved = np.moveaxis(codes, dim, -1)
    moved = np.broadcast_to(moved, (*moved.shape[:-1], size))
    return moved.reshape(-1, size)
