"""The paper's figure 6: beyond the standard network, sqrt(2) times as wide or four pairs deeper (section 3.4).

The larger networks are not trained from a random start, as in the paper; the standard one's own training is shown. The
paper adds its pairs "on top of every inception module" without saying where; here they stand wherever a pair stands, so
that `inception_bn(extra_pairs=4)` is the same network.
"""

from __future__ import annotations

from net2net.experiments import students
from net2net.experiments.config import ReproduceConfig
from net2net.experiments.experiment import Claim, Experiment
from net2net.experiments.networks import WIDE, Size

PAIRS = 4


def experiment(config: ReproduceConfig) -> Experiment:
    """Both students at each of the rates."""
    original = students.teacher(Size(), "the original")
    explored = [
        make(size, share)
        for make, size in ((students.wider, Size(WIDE)), (students.deeper, Size(extra_pairs=PAIRS)))
        for share in config.grid.shares
    ]
    return Experiment(
        "figure6",
        "Figure 6: networks beyond the standard one",
        original,
        explored,
        original.name,
        [
            claim
            for v in explored
            for claim in (
                Claim(f"{v.name} converges faster than the original", v.name, original.name, "mean accuracy", 1),
                Claim(f"{v.name} ends above the original", v.name, original.name, "final accuracy", 1),
            )
        ],
    )
