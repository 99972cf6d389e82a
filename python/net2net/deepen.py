"""Net2DeeperNet (Chen et al., ICLR 2016, section 2.4) for whole models: planning it, and doing it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from net2net.deepen_plan import DeepenPlan, Insertion
from net2net.moments import site_moments
from net2net.operations import operations
from net2net.plan import Inventory, Skipped
from net2net.running import Inputs, call
from net2net.sites import Site, find_sites
from net2net.skeleton import own_random_state, skeleton
from net2net.verify import check_growth

METHODS = ("auto", "identity")

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
) -> DeepenPlan:
    """Plans where to insert identity layers into `model`; nothing is changed yet.

    A layer is inserted next to an idempotent activation (ReLU, ReLU6, Hardtanh): a convolution with an identity kernel
    (a linear layer after a linear layer), batch normalisation that is undone where the site has one, and the
    activation.

    Args:
        model: any module; a copy is run, the module itself is not touched.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for its forward.
        after: names or shell-style patterns of modules whose output is, or goes into, such an activation; None: every
            place.
        count: layers per place.
        data: batches of inputs (each like `example_inputs`) on which the new normalisations' statistics are taken, with
            the network in train mode. Then the student equals the teacher in train mode too, on a batch of these
            statistics. Without data only eval mode is exact.
        method: `"identity"`, or `"auto"`, which is the same today.
        seed: unused by identity layers, which have nothing random.
        kernel_size: of the new convolutions, odd: an int, a tuple, or a list of tuples that the layers of a place take
            in turn;
            None: that of the convolution before the place.

    Returns:
        A plan. `plan.skipped` lists places left alone, with reasons.

    Raises:
        ValueError: for a bad argument, by name and value; for a name that fits no place, or a place where no identity
            layer can stand; if there is no place at all.
    """
    _check_arguments(count, method, seed, kernel_size)
    if data is not None and (isinstance(data, Tensor | dict) or not isinstance(data, Iterable)):
        raise TypeError(f"data (={type(data).__name__}) must be an iterable of batches, each like example_inputs")
    patterns = [after] if isinstance(after, str) else None if after is None else list(after)
    insertions: dict[str, Insertion] = {}
    skipped = []
    matched: set[str] = set()
    for site in find_sites(model, example_inputs):
        names = [n for n in site.names if patterns is None or any(fnmatch.fnmatchcase(n, p) for p in patterns)]
        if not names and (patterns is not None or site.names):
            continue
        matched.update(p for p in patterns or [] for n in names if fnmatch.fnmatchcase(n, p))
        reason, insertion = _insertion(model, site, names, count, kernel_size)
        if insertion is None:
            literal = [n for n in names if patterns is not None and n in patterns]
            if literal:
                raise ValueError(f"after (={literal[0]!r}): {reason}")
            skipped.append(
                Skipped(names or [site.layer or "(input)"], site.shape[1] if len(site.shape) > 1 else 0, reason)
            )
        elif insertion.module in insertions:
            skipped.append(Skipped([insertion.module], insertion.channels, "a layer is inserted there already"))
        else:
            insertions[insertion.module] = insertion
    for pattern in patterns or []:
        if pattern not in matched:
            raise ValueError(f"after (={pattern!r}) fits no module whose output is, or goes into, an activation")
    for module, reason in _refused(model, example_inputs, list(insertions.values())).items():
        if patterns is not None and module in patterns:
            raise ValueError(f"after (={module!r}): {reason}")
        skipped.append(Skipped([module], insertions.pop(module).channels, reason))
    if not insertions:
        raise ValueError(
            "there is no place for an identity layer" + (f"; for example, {skipped[0]}" if skipped else "")
        )
    found = list(insertions.values())
    if data is not None:
        found = site_moments(model, found, data)
    return DeepenPlan(Inventory.of(model), skipped, found)


def deepen(
    model: nn.Module,
    example_inputs: Inputs,
    after: str | Sequence[str] | None = None,
    count: int = 1,
    data: Iterable[Inputs] | None = None,
    method: str = "auto",
    seed: int = 0,
    kernel_size: KernelSize = None,
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
    student = plan_deepen(model, example_inputs, after, count, data, method, seed, kernel_size).apply(model)
    check_growth(model, student, example_inputs)
    return student


def _refused(model: nn.Module, example_inputs: Inputs, insertions: list[Insertion]) -> dict[str, str]:
    """The modules that the user's code does not let be wrapped (it reads their parameters instead of calling them, say,
    or asks of what class they are), each with the reason."""
    usual = operations(skeleton(model, lambda _name, t: t.shape), example_inputs)
    if _objection(model, example_inputs, insertions, usual) is None:
        return {}
    alone = {i.module: _objection(model, example_inputs, [i], usual) for i in insertions}
    return {
        module: f"the model does not run the same with this module wrapped: {objection}"
        for module, objection in alone.items()
        if objection is not None
    }


def _objection(model: nn.Module, example_inputs: Inputs, insertions: list[Insertion], usual: list[str]) -> str | None:
    """Runs an empty copy of the student, just as the user would, and again with an eye on its operations: beside those
    of the new layers, they must be the `usual` ones."""
    copy = skeleton(model, lambda _name, t: t.shape)
    plan = DeepenPlan(Inventory.of(model), [], insertions)
    try:
        with torch.no_grad(), own_random_state(copy):
            plan._finish(copy)
            call(copy, example_inputs)
        seen = operations(copy, example_inputs, ignored=plan.inserted)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if seen == usual else "its code takes another way"


def _check_arguments(count: int, method: str, seed: int, kernel_size: KernelSize) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"count (={count!r}) must be a positive integer")
    if method not in METHODS:
        raise ValueError(f"method (={method!r}) must be one of {', '.join(map(repr, METHODS))}")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed (={seed!r}) must be an integer in [0, 2**63)")
    sizes = kernel_size if isinstance(kernel_size, list) else [kernel_size]
    if not sizes:
        raise ValueError("kernel_size (=[]) names no sizes")
    for size in sizes:
        for k in size if isinstance(size, tuple) else [size]:
            if k is not None and (not isinstance(k, int) or k < 1 or k % 2 == 0):
                raise ValueError(
                    f"kernel_size (={kernel_size!r}) must be odd and positive: an identity kernel has a centre"
                )


def _insertion(
    model: nn.Module, site: Site, names: list[str], count: int, kernel_size: KernelSize
) -> tuple[str, Insertion | None]:
    """The insertion at a site, or the reason why there is none."""
    if site.activation is None:
        return f"the activation {site.operation} is not idempotent: phi(phi(x)) differs from phi(x)", None
    if not names:
        return "neither the input nor the output of this activation is the output of a module that is run once", None
    if site.layer is None:
        return "no convolution or linear layer is run before this activation", None
    layer = model.get_submodule(site.layer)
    dims = len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0
    rank = len(site.shape)
    if dims and rank != dims + 2:
        return f"the activation's input has {rank} dimensions, but the layer before, {site.layer}, is {dims}-D", None
    channels = site.shape[1] if dims else site.shape[-1]
    width = layer.out_channels if isinstance(layer, _ConvNd) else cast(nn.Linear, layer).out_features
    if not dims and rank < 2:
        return "the activation's input has no batch dimension", None
    if not dims and width != channels:
        return (
            f"the activation's last dimension is {channels}, but the layer before, {site.layer}, has {width} units",
            None,
        )
    norm = model.get_submodule(site.norm) if site.norm is not None else None
    if isinstance(norm, _BatchNorm) and not dims and rank != 2:
        return "batch normalisation of a sequence of features", None
    eps, momentum = (norm.eps, norm.momentum) if isinstance(norm, _BatchNorm) else (1e-5, 0.1)
    sizes = _sizes(layer, dims, count, kernel_size)
    leading = names[0] not in site.after
    activation = _spelled(site.activation)
    return "", Insertion(
        names[0], leading, activation, channels, sizes, site.layer, site.norm, eps, momentum
    )  # fmt: skip


def _sizes(layer: nn.Module, dims: int, count: int, kernel_size: KernelSize) -> list[tuple[int, ...]]:
    if not dims:
        return [()] * count
    if kernel_size is None:
        own = cast(tuple[int, ...], layer.kernel_size)
        choices = [tuple(k if k % 2 else k + 1 for k in own)]
    elif isinstance(kernel_size, int):
        choices = [(kernel_size,) * dims]
    else:
        choices = kernel_size if isinstance(kernel_size, list) else [kernel_size]
    for choice in choices:
        if len(choice) != dims:
            raise ValueError(f"kernel_size (={kernel_size!r}) must have {dims} numbers for the {dims}-D layers here")
    return [choices[i % len(choices)] for i in range(count)]


def _spelled(activation: nn.Module) -> tuple[str, dict[str, Any]]:
    if type(activation) is nn.Hardtanh:
        return "Hardtanh", {"min_val": activation.min_val, "max_val": activation.max_val}
    return type(activation).__name__, {}
