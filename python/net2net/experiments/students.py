"""Where students and baselines begin, once there is a trained teacher: the ways that the experiments compare."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

import net2net
from net2net.experiments.experiment import Setting, Start, Variant, teacher_of
from net2net.experiments.networks import Size, count, deepening
from net2net.experiments.predicting import Predicting
from net2net.training import State
from net2net.training.runs import make_optimizer
from net2net.verify import compare_growth

WIDER, DEEPER = "Net2WiderNet", "Net2DeeperNet"
RANDOM_PAD, RANDOM_INIT = "random pad", "random initialisation"
PREDICTION = "feature prediction"


def teacher(size: Size, name: str = "teacher") -> Variant:
    """Trained from a random start for `--teacher-steps`."""
    return Variant(name, "", lambda setting: Start(setting.anew(size, setting.config.grid.teacher_steps)))


def random_init(size: Size) -> Variant:
    """The paper's second baseline: the student's network from a random start, at the teacher's rate."""
    return Variant(RANDOM_INIT, "", lambda setting: Start(setting.anew(size, setting.config.loop.steps)))


def wider(size: Size, share: float, detail: str = "", **how: Any) -> Variant:
    """Net2WiderNet, to the widths of `size`.

    Args:
        share: the first learning rate, as a share of the teacher's first.
        how: further arguments of `plan_widen`, such as `noise`.
    """

    def start(setting: Setting) -> Start:
        return Start(grown(setting, size, share, widen=widening(setting, size, **how)).state)

    return Variant(WIDER, detail or rate(share), start)


def deeper(size: Size, share: float) -> Variant:
    """Net2DeeperNet, to the depth of `size`: pairs of layers that change nothing, after every pair that is there."""

    def start(setting: Setting) -> Start:
        deepen = deepening(teacher_of(setting.taught().model), size.extra_pairs, setting.batches(), seed=setting.seed)
        return Start(grown(setting, size, share, deepen=deepen).state)

    return Variant(DEEPER, rate(share), start)


def padded(size: Size, share: float) -> Variant:
    """The paper's first baseline: the teacher's weights in larger tensors, all else random, and a fresh optimizer."""

    def start(setting: Setting) -> Start:
        taught = setting.taught().model
        plan = net2net.plan_widen(taught, setting.batches()[0][:2], **widening(setting, size))
        student = net2net.random_pad(taught, plan, seed=setting.seed)
        setting.networks.check(student, size)
        optimizer = make_optimizer(setting.config.optimizer, student, share)
        return Start(setting.state(student, optimizer, setting.config.loop.steps))

    return Variant(RANDOM_PAD, rate(share), start)


def predicting(size: Size) -> Variant:
    """The paper's section 2.1: from a random start, learning to predict the teacher's hidden layers too."""

    def start(setting: Setting) -> Start:
        student = setting.networks.make(size, setting.seed, setting.device)
        model = Predicting(
            setting.taught().model,
            student,
            setting.batches()[0][:2],
            setting.seed,
            setting.config.data.batch_size,
        )
        optimizer = make_optimizer(setting.config.optimizer, model)
        notes = {"parameters": count(student)}  # those of the heads are thrown away
        return Start(setting.state(model, optimizer, setting.config.loop.steps, notes))

    return Variant(PREDICTION, "", start)


def rate(share: float) -> str:
    """What the figures call it."""
    return f"rate {share:g}"


def widening(setting: Setting, size: Size, **how: Any) -> dict[str, Any]:
    """Arguments of `plan_widen`, to the widths of `size`."""
    return {"width": setting.networks.widths(size), "seed": setting.seed, **how}


class GrownStart(NamedTuple):
    """A grown student, the steps that led to it, and the images on which it was compared."""

    state: State
    plans: list[net2net.GrowthPlan]
    batch: Tensor


def grown(
    setting: Setting,
    size: Size,
    share: float | None,
    *,
    widen: dict[str, Any] | None = None,
    deepen: dict[str, Any] | None = None,
    state: str = "exact",
    lr: str = "keep",
) -> GrownStart:
    """The teacher, grown with its optimizer, and compared with it in eval mode.

    Args:
        share: the first learning rate, as a share of the teacher's first; None: what the rule `lr` says.
        widen, deepen, state, lr: see `net2net.grow`.
    """
    taught = setting.taught()
    batch = setting.batches()[0]
    result = net2net.grow(
        taught.model, batch[:2], widen=widen, deepen=deepen, optimizer=taught.optimizer, state=state, lr=lr
    )
    assert result.optimizer is not None
    setting.networks.check(result.model, size)
    if share is not None:
        for group in result.optimizer.param_groups:
            group["lr"] = setting.config.optimizer.lr * share
    compared = compare_growth(taught.model, result.model, batch)
    assert compared is not None
    notes = {"grown": {"seconds": result.report.seconds, "max_abs": compared.max_abs, "max_rel": compared.max_rel}}
    return GrownStart(
        setting.state(result.model, result.optimizer, setting.config.loop.steps, notes), result.plans, batch
    )
