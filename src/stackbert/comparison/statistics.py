"""What a few seeds can show: means with intervals, and the budget at which two models are equal."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval (Student's t)."""

    mean: float
    low: float | None
    """None for a single value, which says nothing about the noise."""
    high: float | None
    number: int

    @property
    def outcome(self) -> str:
        """Of differences in loss: "better", "worse", "no difference" or "one seed"."""
        if self.low is None or self.high is None:
            return "one seed"
        if self.low <= 0.0 <= self.high:
            return "no difference"
        return "better" if self.mean < 0.0 else "worse"


@dataclass(frozen=True)
class Share:
    """A share of scratch's budget, exact or a bound."""

    value: float
    bound: Literal["=", "<=", ">"] = "="

    def __str__(self) -> str:
        sign = {"=": "", "<=": "at most ", ">": "more than "}[self.bound]
        return f"{sign}{self.value:.3g}"


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of independent values; for paired runs give their differences."""
    mean, number = statistics.fmean(values), len(values)
    if number < 2:
        return Interval(mean, None, None, number)
    half = float(t.ppf(0.975, number - 1)) * statistics.stdev(values) / math.sqrt(number)
    return Interval(mean, mean - half, mean + half, number)


def share_for(losses: Mapping[float, float], target: float) -> Share:
    """The share of the budget from which on a variant's final loss is at or below `target`.

    Between two budgets the loss is taken to be straight over the logarithm of the budget. Beyond
    the budgets that were run nothing is extrapolated: the answer is a bound. Where noise makes the
    loss cross the target more than once, the last crossing counts, for the first would flatter.
    `losses`: share of the budget → final loss of a run whose schedule ended there.
    """
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

    `curve` is (spent, loss) of the run at the whole budget, in order. The cheap figure, but not a
    fair one: it compares a model in the middle of its schedule with one at the end of its own.
    """
    if curve[0][1] <= target:
        return Share(curve[0][0] / budget)
    for (before, above), (spent, loss) in itertools.pairwise(curve):
        if loss <= target:
            part = (above - target) / (above - loss)
            return Share((before + part * (spent - before)) / budget)
    return Share(curve[-1][0] / budget, ">")
