"""What a few seeds can show: means with intervals, and the budget at which two models are equal."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t

CONFIDENCE = 0.95
Bound = Literal["=", "<=", ">"]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval (Student's t)."""

    mean: float
    low: float | None
    """None for a single value, which says nothing about the noise."""
    high: float | None
    number: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; never true of a single value."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Share:
    """A share of scratch's budget, exact or a bound."""

    value: float
    bound: Bound = "="

    def __str__(self) -> str:
        sign = {"=": "", "<=": "at most ", ">": "more than "}[self.bound]
        return f"{sign}{self.value:.3g}"


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of independent values.

    Args:
        values: at least one; for paired runs their differences.
    """
    mean = statistics.fmean(values)
    number = len(values)
    if number < 2:
        return Interval(mean, None, None, number)
    spread = statistics.stdev(values)
    if spread == 0.0:
        return Interval(mean, mean, mean, number)
    half = float(t.ppf((1.0 + CONFIDENCE) / 2.0, number - 1)) * spread / math.sqrt(number)
    return Interval(mean, mean - half, mean + half, number)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Interval | None:
    """Mean and interval of a - b over the seeds that both have; None if they share none.

    Runs of one seed share their first weights (as far as the depths allow), the order of the rows
    and the masks, so much of their noise is common and cancels in the difference.
    """
    common = sorted(a.keys() & b.keys())
    return interval([a[seed] - b[seed] for seed in common]) if common else None


def share_for(losses: Mapping[float, float], target: float) -> Share:
    """The share of the budget from which on a variant's final loss is at or below `target`.

    Between two budgets the loss is taken to be straight over the logarithm of the budget. Beyond
    the budgets that were run nothing is extrapolated: the answer is a bound. Where noise makes the
    loss cross the target more than once, the last crossing counts, for the first would flatter.

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


def crossing(curve: Sequence[tuple[float, float]], target: float, budget: float) -> Share:
    """Where a learning curve first reaches `target`, as a share of scratch's budget.

    The cheap figure, because it needs no further runs, but not a fair one: it compares a model in
    the middle of its schedule with one at the end of its own.

    Args:
        curve: (spent, loss) of the run at the whole budget, in order.
        target: scratch's final loss.
        budget: what scratch spent, in the same unit.
    """
    before: tuple[float, float] | None = None
    for spent, loss in curve:
        if loss <= target:
            if before is None:
                return Share(spent / budget)
            part = (before[1] - target) / (before[1] - loss)
            return Share((before[0] + part * (spent - before[0])) / budget)
        before = spent, loss
    return Share(curve[-1][0] / budget, ">")
