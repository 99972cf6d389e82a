"""grow: a growth step in the middle of training, for all that training holds."""

from __future__ import annotations

import inspect
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from net2net import optimizer as optim
from net2net.deepen import plan_deepen
from net2net.dynamics import check_dynamics, is_own
from net2net.kernel_size import Size, plan_kernels
from net2net.plan import GrowthPlan
from net2net.running import Inputs
from net2net.scheduler import check_scheduler, rebind, scale
from net2net.skeleton import check_model, named_tensors
from net2net.tree import deepcopy
from net2net.verify import Report, compare_growth
from net2net.widen import plan_widen

Ema = nn.Module | Mapping[str, Tensor]

LR_RULES = ("keep", "tenth", "dynamics")


@dataclass(frozen=True)
class GrowthReport:
    """What a growth step did.

    Attributes:
        verified: the comparison of teacher and student in eval mode; None if there was none.
        seconds: what all of it took, planning and comparing included.
        model_bytes: of parameters and buffers, before and after.
        optimizer_bytes: of the optimizer's state, before and after.
        notes: what is left for the caller to do or to know.
    """

    verified: Report | None
    seconds: float
    model_bytes: tuple[int, int]
    optimizer_bytes: tuple[int, int]
    notes: list[str] = field(default_factory=list)

    @property
    def max_abs(self) -> float:
        """The largest difference of any output; NaN where nothing was compared."""
        return math.nan if self.verified is None else self.verified.max_abs

    def __str__(self) -> str:
        sizes = "; ".join(
            f"{what} {before / 2**20:.2f} -> {after / 2**20:.2f} MiB"
            for what, (before, after) in (("model", self.model_bytes), ("optimizer", self.optimizer_bytes))
            if after
        )
        checked = "not compared" if self.verified is None else str(self.verified)
        return "\n".join([f"grown in {self.seconds:.2f} s; {sizes}; {checked}", *(f"  note: {n}" for n in self.notes)])


class Grown(NamedTuple):
    """What `grow` returns; None for what it was not given."""

    model: nn.Module
    optimizer: Optimizer | None
    scheduler: LRScheduler | None
    ema: Any
    plans: list[GrowthPlan]
    report: GrowthReport


def grow(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    widen: float | Mapping[str, Any] | None = None,
    deepen: bool | int | Mapping[str, Any] | None = None,
    kernel: Mapping[str, Size] | None = None,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    ema: Ema | None = None,
    state: str = "exact",
    lr: str | float = "keep",
    verify: bool = True,
) -> Grown:
    """Grows all that training holds: model, optimizer, learning-rate schedule and moving average.

    New objects are returned; what is given stays as it is, and works on. Go on with the new ones alone: what still
    holds the old model or optimizer (a data-parallel wrapper, a compiled model, hooks) must be made again. A
    `torch.amp.GradScaler` needs nothing, once its `update` has been called after the last step.

    Args:
        model: the teacher. Of a compiled one (`torch.compile`) the original is grown, and a note in the report says so.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for its forward.
        widen: a factor, or keyword arguments of `plan_widen` (`width` among them).
        deepen: True for one new layer at every place, a number of layers for each, or keyword arguments of
            `plan_deepen`.
        kernel: names or patterns of convolutions and their new kernel sizes, see `plan_kernels`. What is several of
            these is first widened, then deepened, then has its kernels enlarged.
        optimizer: over the model's parameters. The new one has the same groups; new layers are in that of the layer
            that they follow.
        scheduler: a schedule of torch's for `optimizer`. The new one is where the old one is, and goes on with the same
            rates (times the factor that `lr` says).
        ema: a moving average of the model: a `torch.optim.swa_utils.AveragedModel`, a module of the model's kind, or a
            state dict of either. It grows by the same plan.
        state: of the optimizer, see `GrowthPlan.grow_optimizer`: `"exact"`, `"replicas_reset"` or `"reset"`.
        lr: the student's learning rates. `"keep"`; `"tenth"`: what follows the growth starts at a tenth of the rate
            that the teacher started with (`initial_lr`, where there has been a schedule), as in the paper;
            `"dynamics"`: rates stay, but each step is taken as the teacher would have taken it, so the function goes on
            as it would have without growth until replicas part (see `net2net.dynamics`; after loading a state dict into
            a new optimizer call `keep_dynamics`); or a factor.
        verify: compare teacher and student (and their averages) in eval mode on `example_inputs`.

    Returns:
        `(model, optimizer, scheduler, ema, plans, report)`, by these names.

    Raises:
        ValueError, TypeError: for a bad argument, by name and value, and what `plan_widen` and `plan_deepen` refuse.
        RuntimeError: if the function is not preserved (the paper's noise excepted, which does not preserve it).
    """
    started = time.perf_counter()
    widening = _options("widen", widen, "width", plan_widen)
    deepening = _options("deepen", None if deepen is False else 1 if deepen is True else deepen, "count", plan_deepen)
    if widening is None and deepening is None and kernel is None:
        raise ValueError("widen, deepen and kernel are None: there is nothing to do")
    notes: list[str] = []
    model = _original("model", model, notes)
    check_model(model)
    _check(optimizer, scheduler, state, lr)
    plain_ema, wrap_ema = _unwrapped(ema, notes)

    plans: list[GrowthPlan] = []
    student, new_optimizer, new_ema = model, optimizer, plain_ema
    enlarging = None if kernel is None else {"sizes": kernel}
    makers: tuple[tuple[Callable[..., GrowthPlan], dict[str, Any] | None], ...] = (
        (plan_widen, widening),
        (plan_deepen, deepening),
        (plan_kernels, enlarging),
    )
    for make, options in makers:
        if options is None:
            continue
        plan = make(student, example_inputs, **options)
        plans.append(plan)
        student, new_optimizer, new_ema = _step(plan, student, new_optimizer, new_ema, state, lr == "dynamics")

    exact = all(getattr(plan, "noise", "") != "paper" for plan in plans)
    verified = _compared(model, student, plain_ema, new_ema, example_inputs, exact) if verify else None
    new_scheduler = None
    if optimizer is not None and new_optimizer is not None:
        if scheduler is not None:
            new_scheduler = rebind(scheduler, new_optimizer)
        factors = _factors(optimizer, lr)
        if factors is not None:
            scale(new_optimizer, new_scheduler, factors)
        hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
        if not all(map(is_own, hooks)):
            notes.append("hooks that were registered on the optimizer are not on the new one")
    report = GrowthReport(
        verified,
        time.perf_counter() - started,
        (_bytes(t for _, t in named_tensors(model)), _bytes(t for _, t in named_tensors(student))),
        (_state_bytes(optimizer), _state_bytes(new_optimizer)),
        notes,
    )
    return Grown(student, new_optimizer, new_scheduler, wrap_ema(new_ema), plans, report)


def carry_out(
    plans: Iterable[GrowthPlan],
    model: nn.Module,
    *,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    ema: Ema | None = None,
    state: str = "exact",
) -> tuple[nn.Module, Optimizer | None, LRScheduler | None, Any]:
    """Plans that were made before, one after the other, on all that training holds; nothing is compared.

    For what was saved after a growth: make model, optimizer, scheduler and average as they were before it, carry out
    its plans, and load the state dicts. Learning rates are left as they are; where steps followed the teacher's
    dynamics, call `keep_dynamics` after loading.

    Args:
        plans: in the order of the growths.
        model, optimizer, scheduler, ema, state: see `grow`.

    Returns:
        `(model, optimizer, scheduler, ema)`, all new, but for None where nothing was given (and what was given where
        there are no plans).

    Raises:
        ValueError, TypeError: where a plan does not fit.
    """
    plain_ema, wrap_ema = _unwrapped(ema, [])
    plans = list(plans)
    if not plans:
        return model, optimizer, scheduler, ema
    if optimizer is not None and scheduler is not None:
        check_scheduler(scheduler, optimizer)
    for plan in plans:
        model, optimizer, plain_ema = _step(plan, model, optimizer, plain_ema, state, False)
    if optimizer is not None and scheduler is not None:
        scheduler = rebind(scheduler, optimizer)
    return model, optimizer, scheduler, wrap_ema(plain_ema)


def _step(
    plan: GrowthPlan, model: nn.Module, optimizer: Optimizer | None, ema: Ema | None, state: str, dynamics: bool
) -> tuple[nn.Module, Optimizer | None, Ema | None]:
    ema = _grown_ema(plan, ema)
    student = plan.apply(model)
    if optimizer is not None:
        optimizer = plan.grow_optimizer(optimizer, student, state=state, dynamics=dynamics)
    return student, optimizer, ema


def _options(name: str, given: Any, first: str, plan: Callable[..., GrowthPlan]) -> dict[str, Any] | None:
    """Keyword arguments for `plan`, of which `first` may be given alone."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        return {first: given}
    known = list(inspect.signature(plan).parameters)[2:]
    for key in given:
        if key not in known:
            raise ValueError(f"{name} has {key!r}, which is no argument of {plan.__name__}: {', '.join(known)}")
    return dict(given)


def _original(name: str, model: Any, notes: list[str]) -> Any:
    """A compiled model's own module."""
    dynamo = sys.modules.get("torch._dynamo")
    compiled = dynamo is not None and isinstance(model, dynamo.OptimizedModule)
    if compiled or getattr(model, "_compiled_call_impl", None) is not None:
        notes.append(
            f"{name} is compiled; what is returned is not: call torch.compiler.reset() and compile that (without the "
            "reset, torch falls back to eager after some graphs)"
        )
    return model._orig_mod if compiled else model


def _check(optimizer: Any, scheduler: Any, state: str, lr: Any) -> None:
    optim.check_state(state)
    if isinstance(lr, str):
        if lr not in LR_RULES:
            raise ValueError(f"lr (={lr!r}) must be a factor or one of {', '.join(map(repr, LR_RULES))}")
    elif isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < math.inf:
        raise ValueError(f"lr (={lr!r}) must be a positive factor or one of {', '.join(map(repr, LR_RULES))}")
    if optimizer is None:
        for name, given, default in (("scheduler", scheduler, None), ("state", state, "exact"), ("lr", lr, "keep")):
            if given != default:
                raise ValueError(f"{name} (={given!r}) is given without an optimizer")
        return
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer (={type(optimizer).__name__}) must be a torch.optim.Optimizer")
    optim.laws_for(optimizer)
    if lr == "dynamics":
        check_dynamics(optimizer)
    if scheduler is not None:
        check_scheduler(scheduler, optimizer)
    _factors(optimizer, lr)


def _factors(optimizer: Optimizer, lr: str | float) -> list[float] | None:
    """What the rates of each group are multiplied by."""
    if not isinstance(lr, str):
        return [float(lr)] * len(optimizer.param_groups)
    if lr != "tenth":
        return None
    factors = []
    for i, group in enumerate(optimizer.param_groups):
        now, initial = float(group["lr"]), float(group.get("initial_lr", group["lr"]))
        if now == 0:
            raise ValueError(f"lr (='tenth'): the rate of optimizer.param_groups[{i}] is 0 now; give a factor instead")
        factors.append(0.1 * initial / now)
    return factors


# -- moving averages ---------------------------------------------------------------------------------------------------


def _unwrapped(ema: Any, notes: list[str]) -> tuple[Ema | None, Callable[[Any], Any]]:
    """The average as a module or state dict of the model's kind, and what makes of a grown one what was given."""
    if ema is None or not isinstance(ema, AveragedModel | Mapping):
        if ema is not None and not isinstance(ema, nn.Module):
            raise TypeError(f"ema (={type(ema).__name__}) must be a module or a state dict")
        return _original("ema", ema, notes), lambda grown: grown
    if isinstance(ema, AveragedModel):
        module = _original("ema", ema.module, notes)
        return module, lambda grown: deepcopy(ema, {id(ema.module): grown})
    prefix = "module." if "n_averaged" in ema else ""
    rest = {key: value for key, value in ema.items() if not key.startswith(prefix)}
    inner = {key.removeprefix(prefix): value for key, value in ema.items() if key not in rest}
    copies: dict[str, Any] = deepcopy(rest, {})
    return inner, lambda grown: {**copies, **{prefix + key: value for key, value in grown.items()}}


def _grown_ema(plan: GrowthPlan, ema: Ema | None) -> Ema | None:
    if ema is None:
        return None
    try:
        return plan.apply(ema) if isinstance(ema, nn.Module) else plan.grow_state_dict(ema)
    except ValueError as error:
        raise ValueError(f"ema is not of the model's kind: {error}") from error


# -- the report --------------------------------------------------------------------------------------------------------


def _compared(
    model: nn.Module, student: nn.Module, ema: Any, new_ema: Any, example_inputs: Inputs, exact: bool
) -> Report | None:
    pairs = {"model": (model, student)}
    if isinstance(ema, nn.Module):
        pairs["ema"] = ema, new_ema
    reports = {name: compare_growth(*pair, example_inputs) for name, pair in pairs.items()}
    for name, report in reports.items():
        if exact and report is not None and not report.ok:
            raise RuntimeError(
                f"the grown {name} is not its teacher's equal: {report}. Nothing was changed. Please report the model; "
                "verify=False gives the student without this check"
            )
    return reports["model"]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _state_bytes(optimizer: Optimizer | None) -> int:
    if optimizer is None:
        return 0
    return _bytes(v for entries in optimizer.state.values() for v in entries.values() if isinstance(v, Tensor))
