"""Scores with their standard errors, and paired tests of two models on the same items."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A mean over groups of (sum of values) / (sum of weights), kept by item.

    Accuracy is correct words over words, F1 twice the hits over found and true ones, a loss nats
    over tokens; the items are sentences, as words of one sentence are not independent. Errors are
    those of the linearised ratio (Cochran, Sampling Techniques, chapter 6).
    """

    values_NG: F64
    weights_NG: F64

    @property
    def value(self) -> float:
        """The score itself."""
        return float((self.values_NG.sum(0) / self.weights_NG.sum(0)).mean())

    @property
    def influence_N(self) -> F64:
        """By how much each item moves the score; they sum to zero."""
        totals_G = self.weights_NG.sum(0)
        ratios_G = self.values_NG.sum(0) / totals_G
        moved_NG: F64 = (self.values_NG - ratios_G * self.weights_NG) / totals_G
        return moved_NG.mean(1)

    @property
    def error(self) -> float:
        """Standard error over items."""
        return _error(self.influence_N)


def difference(one: Score, other: Score) -> tuple[float, float, float]:
    """`one` minus `other` on the same items, its standard error, and a two-sided p (normal)."""
    change = one.value - other.value
    error = _error(one.influence_N - other.influence_N)
    if error == 0:
        return change, error, float(change == 0)
    return change, error, float(2 * norm.sf(abs(change) / error))


def _error(influence_N: F64) -> float:
    items = len(influence_N)
    return math.sqrt((influence_N**2).sum() * items / (items - 1)) if items > 1 else math.nan
