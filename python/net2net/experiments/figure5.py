"""The paper's figure 5: Net2DeeperNet, two more pairs of layers wherever a pair stands (section 3.3)."""

from __future__ import annotations

from net2net.experiments import students
from net2net.experiments.config import ReproduceConfig
from net2net.experiments.experiment import Claim, Experiment
from net2net.experiments.networks import Size

PAIRS = 2


def experiment(config: ReproduceConfig) -> Experiment:
    """The student at each of the rates."""
    deep, shares = Size(extra_pairs=PAIRS), config.grid.shares
    deeper = [students.deeper(deep, share) for share in shares]
    scratch = students.random_init(deep)
    return Experiment(
        "figure5",
        "Figure 5: a deeper network from the standard one",
        students.teacher(Size()),
        [*deeper, scratch],
        scratch.name,
        [
            Claim(
                f"{v.method} converges faster than a random start, at {v.detail}",
                v.name,
                scratch.name,
                "mean accuracy",
                1,
            )
            for v in deeper
        ],
    )
