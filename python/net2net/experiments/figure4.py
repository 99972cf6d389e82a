"""The paper's figure 4: Net2WiderNet, from a narrow Inception to the standard one (section 3.2).

Beside the paper's curves there is one with its own noise. The others have the library's, with which the function stays
exactly the same.
"""

from __future__ import annotations

from net2net.experiments import students
from net2net.experiments.config import ReproduceConfig
from net2net.experiments.experiment import Claim, Experiment
from net2net.experiments.networks import NARROW, Size

USUAL = 0.1  # the paper's advice for the student's rate


def experiment(config: ReproduceConfig) -> Experiment:
    """Student and random pad at each of the rates."""
    standard, shares = Size(), config.grid.shares
    nearest = min(shares, key=lambda share: abs(share - USUAL))
    wider = {share: students.wider(standard, share) for share in shares}
    padded = {share: students.padded(standard, share) for share in shares}
    noisy = students.wider(standard, nearest, f"the paper's noise, {students.rate(nearest)}", noise="paper")
    scratch = students.random_init(standard)
    extra = [students.predicting(standard)] if config.grid.feature_prediction else []
    best, pad = wider[nearest].name, padded[nearest].name
    return Experiment(
        "figure4",
        "Figure 4: a wider network from a narrow one",
        students.teacher(Size(NARROW)),
        [*wider.values(), noisy, *padded.values(), scratch, *extra],
        scratch.name,
        [
            *(
                Claim(
                    f"Net2WiderNet converges faster than random pad at {students.rate(share)}",
                    wider[share].name,
                    padded[share].name,
                    "mean accuracy",
                    1,
                )
                for share in shares
            ),
            Claim("Net2WiderNet converges faster than a random start", best, scratch.name, "mean accuracy", 1),
            Claim("random pad converges faster than a random start", pad, scratch.name, "mean accuracy", 1),
            Claim("Net2WiderNet ends at the accuracy of a random start", best, scratch.name, "final accuracy", 0),
            *(
                Claim("feature prediction is no better than a random start", v.name, scratch.name, "mean accuracy", 0)
                for v in extra
            ),
        ],
    )
