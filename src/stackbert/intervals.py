"""Means and scores, how far noise may have moved them, and what their differences say."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t

F64 = npt.NDArray[np.float64]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and bounds of its 95 % interval (Student's t) of independent values.

    For paired runs give their differences. A single value says nothing about the noise: its bounds
    are NaN.
    """
    mean, number = statistics.fmean(values), len(values)
    if number < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf(0.975, number - 1)) * statistics.stdev(values) / math.sqrt(number)
    return mean, mean - half, mean + half


def outcome(low: float, high: float) -> str:
    """What the interval of a difference says, where more is better."""
    if math.isnan(low):
        return "one seed"
    return "better" if low > 0 else "worse" if high < 0 else "no difference"


@dataclass(frozen=True)
class Score:
    """A sum of values over a sum of weights, kept by item: what each score here is.

    Accuracy is right words over words, F1 twice the hits over found and true ones, a loss nats over
    tokens. Items are sentences, as the words of one are not independent. Errors are those of a
    ratio (Cochran, Sampling Techniques, section 6.3).
    """

    values_N: F64
    weights_N: F64

    @property
    def value(self) -> float:
        """The score."""
        return float(self.values_N.sum() / self.weights_N.sum())

    @property
    def influence_N(self) -> F64:
        """How far each item moves the score; they sum to zero."""
        moved: F64 = (self.values_N - self.value * self.weights_N) / self.weights_N.sum()
        return moved

    def row(self) -> dict[str, float]:
        """The score and its standard error."""
        return {"score": self.value, "±": _error(self.influence_N)}


def difference(one: Score, other: Score) -> tuple[float, float, float]:
    """`one` minus `other` on the same items, its standard error, and a two-sided p (normal)."""
    change, error = one.value - other.value, _error(one.influence_N - other.influence_N)
    return change, error, float(2 * norm.sf(abs(change) / error)) if error else float(change == 0)


def _error(influence_N: F64) -> float:
    items = len(influence_N)
    return math.sqrt(float((influence_N**2).sum()) * items / (items - 1))
