"""How to tell replicas apart: noise, optimizer state and learning rate of a widened student, in all combinations.

The network is figure 4's.
"""

from __future__ import annotations

from typing import Any

from net2net.experiments import students
from net2net.experiments.config import ReproduceConfig
from net2net.experiments.experiment import Claim, Experiment, Setting, Start, Variant
from net2net.experiments.networks import NARROW, Size
from net2net.experiments.replicas import ReplicaDistance
from net2net.widen_plan import WidenPlan

DYADIC = "dyadic, no noise"

#: Arguments of `plan_widen`, by the names that the results have.
NOISES: dict[str, dict[str, Any]] = {
    "uniform, no noise": {"noise": "none"},
    "the paper's noise 0.05": {"noise": "paper", "noise_scale": 0.05},
    "the paper's noise 0.2": {"noise": "paper", "noise_scale": 0.2},
    DYADIC: {"noise": "none", "split": "dyadic"},
    "cancelling 0.1": {"noise": "cancelling", "noise_scale": 0.1},
    "cancelling 0.25": {"noise": "cancelling", "noise_scale": 0.25},
    "cancelling 0.5": {"noise": "cancelling", "noise_scale": 0.5},
    # With more, what replicas differ by through rounding grows from layer to layer (see `plan_widen`).
    "cancelling 0.7": {"noise": "cancelling", "noise_scale": 0.7},
}
#: Arguments of `grow`.
STATES = {"exact state": "exact", "replicas' momentum reset": "replicas_reset", "no state": "reset"}
RATES = {"rate kept": "keep", "a tenth": "tenth", "the teacher's dynamics": "dynamics"}

#: Where one thing is changed at a time, these are what the others are.
CENTRES = ("the paper's noise 0.05", "cancelling 0.5")
STATE, RATE = "exact state", "a tenth"


def experiment(config: ReproduceConfig) -> Experiment:
    """All combinations if `config.grid.every`; else all kinds of noise, and all states and rates for two of them."""
    combinations = [
        (noise, state, rate)
        for noise in NOISES
        for state in STATES
        for rate in RATES
        if config.grid.every or _is_near(noise, state, rate)
    ]
    variants = [_variant(*combination) for combination in combinations]
    scratch = students.random_init(Size())
    usual = {noise: f"{noise}, {STATE}, {RATE}" for noise in NOISES}
    paper, ours = (usual[noise] for noise in CENTRES)
    loss, accuracy = "final training loss", "final accuracy"
    return Experiment(
        "symmetry",
        "Telling replicas apart",
        students.teacher(Size(NARROW)),
        [*variants, scratch],
        scratch.name,
        [
            Claim("no noise ends with a higher loss than the paper's", usual["uniform, no noise"], paper, loss, 1),
            Claim("dyadic shares end with a lower loss than the paper's noise", usual[DYADIC], paper, loss, -1),
            Claim("cancelling noise ends with a lower loss than the paper's", ours, paper, loss, -1),
            Claim("cancelling noise ends with a higher accuracy than the paper's", ours, paper, accuracy, 1),
        ],
        ("curves", "replicas", "final"),
        list(usual.values()),  # a random start is far below all of them
        paper,
    )


def _is_near(noise: str, state: str, rate: str) -> bool:
    """Whether at most one thing is other than usual."""
    usual = (state == STATE) + (rate == RATE)
    return usual == 2 or (usual == 1 and noise in CENTRES)


def _variant(noise: str, state: str, rate: str) -> Variant:
    def start(setting: Setting) -> Start:
        size = Size()
        grown = students.grown(
            setting, size, None, widen=students.widening(setting, size, **NOISES[noise]), state=STATES[state],
            lr=RATES[rate],
        )  # fmt: skip
        plan = grown.plans[0]
        assert isinstance(plan, WidenPlan)
        loop = setting.config.loop
        return Start(grown.state, ReplicaDistance(plan, grown.batch, loop.eval_every, loop.steps))

    return Variant(noise, f"{state}, {rate}", start)
