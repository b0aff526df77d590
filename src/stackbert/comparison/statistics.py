"""What a handful of seeds can say: means, intervals, and the budget at which two are equal."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stackbert.comparison.costs import Unit
from stackbert.reporting.content import Point

CONFIDENCE = 0.95
Bound = Literal["=", "<=", ">"]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval (Student's t)."""

    mean: float
    low: float | None
    """None of one value alone, which says nothing about noise."""
    high: float | None
    number: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; never of one value."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Share:
    """A share of scratch's budget, or what is known about it."""

    value: float
    bound: Bound = "="

    def __str__(self) -> str:
        sign = {"=": "", "<=": "at most ", ">": "more than "}[self.bound]
        return f"{sign}{self.value:.3g}"


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of independent values.

    Args:
        values: at least one; of paired runs their differences.
    """
    mean = statistics.fmean(values)
    number = len(values)
    if number < 2:
        return Interval(mean, None, None, number)
    spread = statistics.stdev(values)
    if spread == 0.0:
        return Interval(mean, mean, mean, number)
    from scipy.stats import t

    half = float(t.ppf((1.0 + CONFIDENCE) / 2.0, number - 1)) * spread / math.sqrt(number)
    return Interval(mean, mean - half, mean + half, number)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Interval | None:
    """Mean and interval of a - b over the seeds that both have; None if there is none.

    Runs of one seed share their first weights (as far as the depths do), the order of the rows
    and the masks, so much of their noise is common and falls out of the difference.
    """
    common = sorted(a.keys() & b.keys())
    return interval([a[seed] - b[seed] for seed in common]) if common else None


def share_for(losses: Mapping[float, float], target: float) -> Share:
    """The share of the budget from which on a variant's final loss is at or below `target`.

    Between two budgets the loss is taken to be straight over the logarithm of the budget. Beyond
    those that were run nothing is made up: the answer is then a bound. Where noise lets the loss
    cross the target more than once, the last crossing counts, for the first would flatter.

    Args:
        losses: share of the budget → final loss of a run whose schedule ended there.
        target: scratch's final loss.

    Raises:
        ValueError: no losses.
    """
    if not losses:
        raise ValueError("no runs to interpolate between")
    shares = sorted(losses, reverse=True)
    if losses[shares[0]] > target:
        return Share(shares[0], ">")
    for high, low in itertools.pairwise(shares):
        above, below = losses[low], losses[high]
        if above > target:
            part = (above - target) / (above - below)
            return Share(math.exp(math.log(low) + part * (math.log(high) - math.log(low))))
    return Share(shares[-1], "<=")


def crossing(points: Sequence[Point], target: float, budget: float, unit: Unit) -> Share:
    """Where a loss curve first goes below `target`, as a share of scratch's budget.

    The cheaper figure, for it needs no further runs, and not a fair one: it sets a model in the
    middle of its schedule against one at the end of its own.

    Args:
        points: of the run at the whole budget, in order.
        target: scratch's final loss.
        budget: what scratch's run cost.
        unit: of the budget.
    """
    before: Point | None = None
    for point in points:
        at = float(getattr(point, unit))
        if point.loss <= target:
            if before is None or before.loss <= target:
                return Share(at / budget)
            begun = float(getattr(before, unit))
            part = (before.loss - target) / (before.loss - point.loss)
            return Share((begun + part * (at - begun)) / budget)
        before = point
    return Share(float(getattr(points[-1], unit)) / budget, ">")
