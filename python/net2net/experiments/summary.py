"""What the runs say: a table of variants, and a verdict on every claim. Pure arithmetic on results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from net2net.experiments.experiment import Claim, Experiment
from net2net.experiments.runs import Result
from net2net.training import History

LAST = 3  # a run's final figures are means over at most so many last evaluations, for one alone is noisy

#: Student's t for a two-sided interval of 95 %, for 1, 2, ... degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
       2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. The 95 % confidence interval is `mean` +- `margin` (None with fewer than two seeds)."""

    mean: float
    margin: float | None
    seeds: int

    @staticmethod
    def of(values: Sequence[float], spread: float = 0.0) -> Estimate | None:
        """None if there are no values. `spread`: their standard deviation is taken to be so large at least."""
        if not values:
            return None
        n = len(values)
        margin = None
        if n > 1:
            margin = T95[min(n - 1, len(T95)) - 1] * max(statistics.stdev(values), spread) / math.sqrt(n)
        return Estimate(statistics.fmean(values), margin, n)


def final(steps: Sequence[int], values: Sequence[float]) -> float:
    """What a run came to: the mean of its last evaluations.

    These are the last quarter of those that followed training, rounded up, and at most `LAST`. Of a short run that is
    the last one alone, for those before are of a network that was still learning, and what was before any step is never
    in it.

    Args:
        steps: of the evaluations, at least one; see `History`.
        values: accuracies or losses, one for each.
    """
    trained = sum(step > 0 for step in steps)
    return statistics.fmean(values[-min(LAST, max(1, math.ceil(trained / 4))) :])


def mean_accuracy(history: History) -> float:
    """The area under the validation accuracy over mini-batches, by trapezoids, divided by their number."""
    steps, accuracy = history.step, history.val_accuracy
    if steps[-1] == steps[0]:
        return accuracy[-1]
    area = sum((accuracy[i] + accuracy[i + 1]) / 2 * (steps[i + 1] - steps[i]) for i in range(len(steps) - 1))
    return area / (steps[-1] - steps[0])


#: What a run is judged by: accuracies are in validation.
MEASURES: dict[str, Callable[[History], float]] = {
    "final accuracy": lambda history: final(history.step, history.val_accuracy),
    "final training loss": lambda history: final(history.step, history.train_loss),
    "mean accuracy": mean_accuracy,
}


@dataclass(frozen=True)
class Row:
    """A variant, over its seeds.

    Attributes:
        lr: the first learning rate.
        seeds: finished runs, those that diverged included.
        diverged: how many of them did; they are in none of the figures.
        to_teacher: of every seed that got there, the mini-batches to the accuracy of its teacher's last evaluation:
            that very network is what students begin with, so one that computes the same has it at 0.
        to_reference: likewise to the final accuracy of its reference.
        speed_up: the reference's mean number of mini-batches to its own final accuracy, divided by this variant's, over
            the seeds in which both got there; infinite if it was there before any step; None if no seed did.
        first_loss: validation loss before any step.
        final, train, loss: at the end, validation and training accuracy, and training loss.
        less, more: of training loss and validation accuracy at the end, the difference from the variant that all are
            compared with; None if there is none.
    """

    variant: str
    parameters: int
    lr: float
    seeds: int
    diverged: int
    to_teacher: list[int]
    to_reference: list[int]
    speed_up: float | None
    first_loss: Estimate | None
    final: Estimate | None
    train: Estimate | None
    loss: Estimate | None
    less: Estimate | None = None
    more: Estimate | None = None


@dataclass(frozen=True)
class Verdict:
    """`difference`: of the claim's measure, first less second, over the seeds that both have."""

    claim: Claim
    difference: Estimate | None

    @property
    def words(self) -> str:
        """What the runs say to it. Without an interval, or with one that holds 0, they cannot tell more from less."""
        d = self.difference
        if d is None:
            return "not run"
        if d.margin is None:
            return "one seed cannot tell"
        if d.margin < 1e-9 * abs(d.mean):
            return "undecided"  # seeds that agree to the last digit do so by chance: they tell nothing of the spread
        if abs(d.mean) <= d.margin:
            return "no difference found" if self.claim.sign == 0 else "undecided"
        return "confirmed" if d.mean * self.claim.sign > 0 else "contradicted"


def rows(experiment: Experiment, results: Sequence[Result]) -> list[Row]:
    """One for every variant that has results, in the experiment's order."""
    by_variant = by_variant_and_seed(results)
    return [
        _row(experiment, by_variant[variant.name], by_variant)
        for variant in experiment.all
        if variant.name in by_variant
    ]


def verdicts(experiment: Experiment, results: Sequence[Result]) -> list[Verdict]:
    """One for every claim. Differences in accuracy are taken to spread by one image of the validation set at least, for
    less cannot be seen: two seeds that agree by chance would have an interval of no width."""
    by_variant = by_variant_and_seed(results)
    image = one_image(results)
    return [
        Verdict(
            c,
            difference(
                by_variant.get(c.first, {}),
                by_variant.get(c.second, {}),
                c.measure,
                image if c.measure.endswith("accuracy") else 0.0,
            ),
        )
        for c in experiment.claims
    ]


def one_image(results: Sequence[Result]) -> float:
    """What one image is of the validation set: the largest share of which all validation accuracies are multiples."""
    accuracies = {accuracy for result in results for accuracy in result.history.val_accuracy}
    return 1 / math.lcm(*(Fraction(accuracy).limit_denominator(10**6).denominator for accuracy in accuracies))


def difference(
    first: dict[int, Result], second: dict[int, Result], measure: str, spread: float = 0.0
) -> Estimate | None:
    """Of a measure, `first` less `second`, over the seeds that both have; those that diverged have none. For `spread`
    see `Estimate.of`."""
    values = [
        {seed: MEASURES[measure](r.history) for seed, r in runs.items() if r.error is None} for runs in (first, second)
    ]
    return Estimate.of(
        [values[0][seed] - values[1][seed] for seed in sorted(values[0].keys() & values[1].keys())], spread
    )


def by_variant_and_seed(results: Sequence[Result]) -> dict[str, dict[int, Result]]:
    """The results by the name of their variant, and by their seed."""
    found: dict[str, dict[int, Result]] = {}
    for result in results:
        found.setdefault(result.variant, {})[result.seed] = result
    return found


def _row(experiment: Experiment, mine: dict[int, Result], by_variant: dict[str, dict[int, Result]]) -> Row:
    good = {seed: r for seed, r in mine.items() if r.error is None}
    to_teacher = _steps(good, _goals(by_variant.get(experiment.teacher.name, {}), lambda h: h.val_accuracy[-1]))
    references = by_variant.get(experiment.reference, {})
    goals = _goals(references, MEASURES["final accuracy"])
    to_reference, theirs = _steps(good, goals), _steps(references, goals)
    both = sorted(to_reference.keys() & theirs.keys())
    mean = statistics.fmean([to_reference[seed] for seed in both]) if both else None
    speed_up = None
    if mean is not None:
        speed_up = statistics.fmean([theirs[seed] for seed in both]) / mean if mean else math.inf
    one = next(iter(mine.values()))
    histories = [r.history for r in good.values()]
    return Row(
        one.variant,
        one.parameters,
        one.lr,
        len(mine),
        len(mine) - len(good),
        list(to_teacher.values()),
        list(to_reference.values()),
        speed_up,
        Estimate.of([h.val_loss[0] for h in histories]),
        Estimate.of([final(h.step, h.val_accuracy) for h in histories]),
        Estimate.of([final(h.step, h.train_accuracy) for h in histories]),
        Estimate.of([final(h.step, h.train_loss) for h in histories]),
        *(
            difference(mine, by_variant.get(experiment.against or "", {}), measure)
            for measure in ("final training loss", "final accuracy")
        ),
    )


def _goals(runs: dict[int, Result], goal: Callable[[History], float]) -> dict[int, float]:
    """By seed: an accuracy of a run that is to be reached; those that diverged have none."""
    return {seed: goal(run.history) for seed, run in runs.items() if run.error is None}


def _steps(runs: dict[int, Result], goals: dict[int, float]) -> dict[int, int]:
    """By seed: the mini-batches until a run first had the goal; those that never had it are left out."""
    found = {}
    for seed, run in runs.items():
        if seed not in goals or run.error is not None:
            continue
        # A mean of equal numbers may be a rounding error above them.
        steps = run.history.steps_to_reach(goals[seed] - 1e-9)
        if steps is not None:
            found[seed] = steps
    return found
