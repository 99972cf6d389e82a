"""Net2DeeperNet (Chen et al., ICLR 2016, section 2.4) for whole models: planning it, and doing it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from net2net.activations import MAXIMA
from net2net.blocks import Repetition, find_blocks
from net2net.deepen_plan import DeepenPlan
from net2net.moments import site_moments
from net2net.new_layers import FACTORS, Insertion
from net2net.operations import operations
from net2net.plan_fields import whole
from net2net.plan_parts import Inventory, Skipped
from net2net.running import Inputs, call
from net2net.scalars import plain
from net2net.sites import Site, find_sites
from net2net.skeleton import own_random_state, skeleton
from net2net.verify import check_growth

#: What a plan holds per place.
Place = Insertion | Repetition

METHODS = ("auto", "identity", "paired", "maxout", "residual")

_KINDS = {"identity": "an identity layer", "residual": "a copy of a block"}

KernelSize = int | tuple[int, ...] | list[tuple[int, ...]] | None


def plan_deepen(
    model: nn.Module,
    example_inputs: Inputs,
    after: str | Sequence[str] | None = None,
    count: int = 1,
    data: Iterable[Inputs] | None = None,
    method: str = "auto",
    seed: int = 0,
    kernel_size: KernelSize = None,
    factor: str = "orthogonal",
    pieces: int = 2,
) -> DeepenPlan:
    """Plans where to insert new layers into `model`; nothing is changed yet.

    What is inserted depends on the method:

    - `"identity"` (Chen et al., ICLR 2016, section 2.4): next to an idempotent activation (ReLU, ReLU6, Hardtanh), a
      convolution with an identity kernel (a linear layer after a linear layer), batch normalisation that is undone
      where the place has one, and the activation.
    - `"paired"`: before the layer that an activation phi follows, for ReLU, GELU, SiLU, Hardswish, LeakyReLU, PReLU and
      Softplus, a hidden layer of twice the channels, phi([Q; -Q] x), and a linear layer 1/kappa [Q^-1, -Q^-1] behind
      it, for an invertible matrix Q: their product is the identity, since phi(x) - phi(-x) = kappa x.
    - `"maxout"`: behind a module, a convolution with an identity kernel whose every row is there `pieces` times, and
      the largest of each.
    - `"residual"`: a residual block is followed by copies of itself whose last parameters are zero.

    Args:
        model: any module; a copy is run, the module itself is not touched.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for its forward.
        after: names or shell-style patterns of modules whose output is, or goes into, an activation (for `"paired"`
            also of the convolution or linear layer that it follows; for `"residual"` of blocks); None: every place.
        count: layers, or blocks, per place.
        data: batches of inputs (each like `example_inputs`) on which the new normalisations' statistics are taken, with
            the network in train mode. Then the student equals the teacher in train mode too, on a batch of these
            statistics. Without data only eval mode is exact.
        method: one of those above; `"auto"` is `"identity"` where the activation is idempotent, else `"paired"`.
        seed: of the random factors Q.
        kernel_size: of the new convolutions, odd: an int, a tuple, or a list of these that the layers of a place take
            in turn; None: that of the convolution at the place.
        factor: Q is a random `"orthogonal"` matrix, uniformly distributed, or the `"identity"`.
        pieces: of maxout.

    Returns:
        A plan. `plan.skipped` lists places left alone, with reasons: sigmoid, tanh, ELU, SELU, CELU and Mish have
        neither property, for example.

    Raises:
        ValueError: for a bad argument, by name and value; for a name that fits no place, or a place where no such
            layer can stand; if there is no place at all.
    """
    count, seed, kernel_size, pieces = plain((count, seed, kernel_size, pieces))
    _check_arguments(count, method, seed, kernel_size, factor, pieces)
    if data is not None and (isinstance(data, Tensor | dict) or not isinstance(data, Iterable)):
        raise TypeError(f"data (={type(data).__name__}) must be an iterable of batches, each like example_inputs")
    patterns = [after] if isinstance(after, str) else None if after is None else list(after)
    choice = _Choice(model, count, method, seed, kernel_size, factor, pieces)
    find = _find_blocks if method == "residual" else _find_insertions
    places, skipped = find(choice, example_inputs, patterns)
    for module, reason in _refused(model, example_inputs, list(places.values())).items():
        if patterns is not None and module in patterns:
            raise ValueError(f"after (={module!r}): {reason}")
        skipped.append(Skipped([module], getattr(places.pop(module), "channels", 0), reason))
    if not places:
        raise ValueError(
            f"there is no place for {_KINDS.get(method, 'a new layer')}"
            + (f"; for example, {skipped[0]}" if skipped else "")
        )
    insertions = [p for p in places.values() if isinstance(p, Insertion)]
    if data is not None:
        insertions = site_moments(model, insertions, data)
    repetitions = [p for p in places.values() if isinstance(p, Repetition)]
    return DeepenPlan(Inventory.of(model), skipped, insertions, repetitions)


def deepen(
    model: nn.Module,
    example_inputs: Inputs,
    after: str | Sequence[str] | None = None,
    count: int = 1,
    data: Iterable[Inputs] | None = None,
    method: str = "auto",
    seed: int = 0,
    kernel_size: KernelSize = None,
    factor: str = "orthogonal",
    pieces: int = 2,
) -> nn.Module:
    """A deeper model that computes the same function.

    The arguments are those of `plan_deepen`, of which this is the short form: plan, apply, and compare teacher and
    student on `example_inputs` before the student is handed out.

    Returns:
        A new module of the same class, in which the modules at the places are wrapped together with the new layers.
        `model` is not touched.

    Raises:
        ValueError: as `plan_deepen`.
        RuntimeError: if the student's outputs differ from the teacher's by more than rounding explains.
    """
    plan = plan_deepen(model, example_inputs, after, count, data, method, seed, kernel_size, factor, pieces)
    student = plan.apply(model)
    check_growth(model, student, example_inputs)
    return student


@dataclass(frozen=True)
class _Choice:
    """What the caller wants."""

    model: nn.Module
    count: int
    method: str
    seed: int
    kernel_size: KernelSize
    factor: str
    pieces: int


def _matching(names: Sequence[str], patterns: Sequence[str] | None) -> list[str]:
    return [n for n in names if patterns is None or any(fnmatch.fnmatchcase(n, p) for p in patterns)]


def _check_all_matched(patterns: Sequence[str] | None, names: Iterable[str], what: str) -> None:
    names = list(names)
    for pattern in patterns or []:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"after (={pattern!r}) fits no {what}")


def _find_insertions(
    choice: _Choice, example_inputs: Inputs, patterns: list[str] | None
) -> tuple[dict[str, Place], list[Skipped]]:
    """The places for layers next to activations, and those left alone."""
    insertions: dict[str, Place] = {}
    skipped = []
    matched: list[str] = []
    for site in find_sites(choice.model, example_inputs):
        if site.operation in MAXIMA and choice.method != "maxout":
            continue
        paired = choice.method == "paired" or (choice.method == "auto" and _pairs_only(site))
        offered = [*site.names, site.layer] if paired and site.layer not in (None, *site.names) else site.names
        names = _matching([n for n in offered if n], patterns)
        if not names and (patterns is not None or site.names):
            continue
        matched += names
        reason, insertion = _insertion(choice, site, names, paired)
        if insertion is None:
            literal = [n for n in names if patterns is not None and n in patterns]
            if literal:
                raise ValueError(f"after (={literal[0]!r}): {reason}")
            units = site.shape[1] if len(site.shape) > 1 else 0
            skipped.append(Skipped(names or [site.layer or "(input)"], units, reason))
        elif insertion.module in insertions:
            skipped.append(Skipped([insertion.module], insertion.channels, "a layer is inserted there already"))
        else:
            insertions[insertion.module] = insertion
    _check_all_matched(patterns, matched, "module whose output is, or goes into, an activation")
    return insertions, skipped


def _find_blocks(
    choice: _Choice, example_inputs: Inputs, patterns: list[str] | None
) -> tuple[dict[str, Place], list[Skipped]]:
    """The residual blocks, and those left alone."""
    found, refused = find_blocks(choice.model, example_inputs, choice.count)
    for name, reason in refused.items():
        if patterns is not None and name in patterns:
            raise ValueError(f"after (={name!r}): {reason}")
    names = [block.module for block in found]
    _check_all_matched(patterns, [*names, *refused], "module that adds what it computes to what it is given")
    skipped = [Skipped([name], 0, refused[name]) for name in _matching(list(refused), patterns)]
    wanted = set(_matching(names, patterns))
    return {block.module: block for block in found if block.module in wanted}, skipped


def _pairs_only(site: Site) -> bool:
    return site.activation is not None and not site.activation.idempotent


def _refused(model: nn.Module, example_inputs: Inputs, places: list[Place]) -> dict[str, str]:
    """The modules that the user's code does not let be wrapped (it reads their parameters instead of calling them, say,
    or asks of what class they are), each with the reason."""
    known = _known_twice(model)
    twice = {p.module: name for p in places for name in known if f"{p.module}.".startswith(f"{name}.")}
    if twice:
        reasons = {module: f"{name} is registered under several names" for module, name in twice.items()}
        rest = [p for p in places if p.module not in twice]
        return reasons | (_refused(model, example_inputs, rest) if rest else {})
    usual = operations(skeleton(model, lambda _name, t: t.shape), example_inputs)
    if _objection(model, example_inputs, places, usual) is None:
        return {}
    alone = {i.module: _objection(model, example_inputs, [i], usual) for i in places}
    return {
        module: f"the model does not run the same with this module wrapped: {objection}"
        for module, objection in alone.items()
        if objection is not None
    }


def _known_twice(model: nn.Module) -> list[str]:
    """The names of modules that have others beside."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return [name for several in names.values() if len(several) > 1 for name in several]


def _objection(model: nn.Module, example_inputs: Inputs, places: list[Place], usual: list[str]) -> str | None:
    """Runs an empty copy of the student, just as the user would, and again with an eye on its operations: beside those
    of the new layers, they must be the `usual` ones."""
    copy = skeleton(model, lambda _name, t: t.shape)
    insertions = [p for p in places if isinstance(p, Insertion)]
    plan = DeepenPlan(Inventory.of(model), [], insertions, [p for p in places if isinstance(p, Repetition)])
    try:
        with torch.no_grad(), own_random_state(copy):
            plan._finish(copy)
            call(copy, example_inputs)
        seen = operations(copy, example_inputs, ignored=plan.inserted)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if seen == usual else "its code takes another way"


def _check_arguments(count: int, method: str, seed: int, kernel_size: KernelSize, factor: str, pieces: int) -> None:
    whole("count", count, 1)
    if method not in METHODS:
        raise ValueError(f"method (={method!r}) must be one of {', '.join(map(repr, METHODS))}")
    whole("seed", seed)
    if factor not in FACTORS:
        raise ValueError(f"factor (={factor!r}) must be one of {', '.join(map(repr, FACTORS))}")
    whole("pieces", pieces, 2)
    sizes = kernel_size if isinstance(kernel_size, list) else [kernel_size]
    if not sizes:
        raise ValueError("kernel_size (=[]) names no sizes")
    for size in sizes:
        for k in size if isinstance(size, tuple) else [size]:
            if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1 or k % 2 == 0):
                raise ValueError(
                    f"kernel_size (={kernel_size!r}) must be odd and positive: an identity kernel has a centre"
                )


def _insertion(choice: _Choice, site: Site, names: list[str], paired: bool) -> tuple[str, Insertion | None]:
    """The insertion at a site, or the reason why there is none."""
    method = "paired" if paired else "maxout" if choice.method == "maxout" else "identity"
    activation = site.activation
    if method != "maxout" and (activation is None or not (activation.kappa if paired else activation.idempotent)):
        lacking = {
            "auto": "is not idempotent, nor is phi(x) - phi(-x) a multiple of x",
            "identity": "is not idempotent: phi(phi(x)) differs from phi(x)",
            "paired": "does not carry numbers in pairs: phi(x) - phi(-x) is no multiple of x",
        }
        return f"the activation {site.operation} {lacking[choice.method]}", None
    if site.layer is None:
        return "no convolution or linear layer is run before this activation", None
    if not names:
        return "neither the input nor the output of this activation is the output of a module that is run once", None
    layer = choice.model.get_submodule(site.layer)
    norm = choice.model.get_submodule(site.norm) if site.norm is not None and method != "maxout" else None
    dims = len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0
    if paired and not site.once:
        return f"the layer before, {site.layer}, is run more than once", None
    if paired:
        reason, channels, groups = _before(layer)
    else:
        reason, channels, groups = _behind(layer, site)
    if reason:
        return reason, None
    if isinstance(norm, _BatchNorm) and not dims and len(site.shape) != 2:
        return "batch normalisation of a sequence of features", None
    eps, momentum = (norm.eps, norm.momentum) if isinstance(norm, _BatchNorm) else (1e-5, 0.1)
    return "", Insertion(
        site.layer if paired else names[0],
        method,
        None if method == "maxout" else activation,
        channels,
        _sizes(layer, dims, choice.count, choice.kernel_size),
        site.layer,
        leading=method == "identity" and names[0] not in site.after,
        groups=groups,
        norm=site.norm if norm is not None else None,
        eps=eps,
        momentum=momentum,
        factor=choice.factor,
        seed=choice.seed,
        pieces=choice.pieces,
    )


def _before(layer: nn.Module) -> tuple[str, int, int]:
    """Why no layer can stand before this one; its input's channels, and their groups."""
    if isinstance(layer, _ConvNd):
        return "", layer.in_channels, layer.groups
    return "", cast(nn.Linear, layer).in_features, 1


def _behind(layer: nn.Module, site: Site) -> tuple[str, int, int]:
    """Why no layer of this one's kind can stand at the activation that comes behind it; the channels there, and their
    groups."""
    dims = len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0
    rank = len(site.shape)
    if dims and rank != dims + 2:
        return f"the activation's input has {rank} dimensions, but the layer before, {site.layer}, is {dims}-D", 0, 1
    channels = site.shape[1] if dims else site.shape[-1]
    width = layer.out_channels if isinstance(layer, _ConvNd) else cast(nn.Linear, layer).out_features
    if not dims and rank < 2:
        return "the activation's input has no batch dimension", 0, 1
    if not dims and width != channels:
        reason = f"the activation's last dimension is {channels}, but the layer before, {site.layer}, has {width} units"
        return reason, 0, 1
    # A depthwise convolution is followed by another one, a grouped one likewise.
    groups = layer.groups if isinstance(layer, _ConvNd) and width == channels else 1
    return "", channels, groups


def _sizes(layer: nn.Module, dims: int, count: int, kernel_size: KernelSize) -> list[tuple[int, ...]]:
    if not dims:
        return [()] * count
    if kernel_size is None:
        own = cast(tuple[int, ...], layer.kernel_size)
        choices = [tuple(k if k % 2 else k + 1 for k in own)]
    else:
        given = kernel_size if isinstance(kernel_size, list) else [kernel_size]
        choices = [(size,) * dims if isinstance(size, int) else size for size in given]
    for choice in choices:
        if len(choice) != dims:
            raise ValueError(f"kernel_size (={kernel_size!r}) must have {dims} numbers for the {dims}-D layers here")
    return [choices[i % len(choices)] for i in range(count)]
