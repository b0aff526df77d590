"""Scores with standard errors, and paired tests of two models on the same items."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

F64 = npt.NDArray[np.float64]


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

    @property
    def error(self) -> float:
        """Its standard error."""
        return _error(self.influence_N)


def difference(one: Score, other: Score) -> tuple[float, float, float]:
    """`one` minus `other` on the same items, its standard error, and a two-sided p (normal)."""
    change, error = one.value - other.value, _error(one.influence_N - other.influence_N)
    return change, error, float(2 * norm.sf(abs(change) / error)) if error else float(change == 0)


def _error(influence_N: F64) -> float:
    items = len(influence_N)
    return math.sqrt(float((influence_N**2).sum()) * items / (items - 1))
