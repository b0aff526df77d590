"""The mean of a few values, and how far noise may have moved it."""

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t


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
