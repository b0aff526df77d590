"""What a few seeds can show: differences with intervals, and the budget to an equal loss."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import t

from stackbert.comparison.variants import SCRATCH, is_fixed
from stackbert.intervals import interval

PLATEAU = 0.5
"""Nats below the unigram entropy that a model must end, or its comparison shows nothing: before
attention forms, a model knows only word frequencies, and depth does not matter."""
SIGNIFICANT = 0.05
ENVELOPE = "the envelope"
_COLUMNS = ["variant", "fraction", "seeds", "loss", "loss_low", "loss_high"]
_COLUMNS += ["pairs", "own", "reference", "difference", "low", "high", "p"]


@dataclass(frozen=True)
class Share:
    """A share of the budget, exact or a bound."""

    value: float
    bound: Literal["=", "<=", ">"] = "="

    def __str__(self) -> str:
        sign = {"=": "", "<=": "at most ", ">": "more than "}[self.bound]
        return f"{sign}{self.value:.3g}"


def p_value(values: Sequence[float]) -> float:
    """Of a mean of zero, two-sided (Student's t); NaN of a single value."""
    mean, low, _ = interval(values)
    half, freedom = mean - low, len(values) - 1
    if half == 0.0:
        return float(mean == 0.0)
    return float(2.0 * t.sf(abs(mean) / half * t.ppf(0.975, freedom), freedom))


def share_for(losses: Mapping[float, float], target: float) -> Share:
    """The share of the budget from which on a variant's final loss is at or below `target`.

    Beyond the budgets that were run nothing is extrapolated: the answer is a bound. Where noise
    makes the loss cross the target more than once, the last crossing counts, for the first would
    flatter. `losses`: share of the budget → final loss of a run whose schedule ended there.
    """
    shares = sorted(losses, reverse=True)
    if losses[shares[0]] > target:
        return Share(shares[0], ">")
    for high, low in itertools.pairwise(shares):
        if losses[low] > target:
            return Share(_between(low, high, losses[low] - target, losses[low] - losses[high]))
    return Share(shares[-1], "<=")


def _between(low: float, high: float, fallen: float, fall: float) -> float:
    """The share where a loss has fallen so far, as it is straight over the budget's logarithm."""
    return math.exp(math.log(low) + fallen / fall * (math.log(high) - math.log(low)))


def final_losses(
    results: pd.DataFrame, variant: str, fraction: float = 1.0, of: str = "loss"
) -> dict[int, float]:
    """Seed → last validation loss, or another column."""
    own = results[(results["variant"] == variant) & (results["fraction"] == fraction)]
    last: dict[int, float] = own.groupby("seed")[of].last().to_dict()
    return last


def without_controls(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of variants that are no controls."""
    return results[~results["variant"].map(is_fixed).astype(bool)]


def standings(results: pd.DataFrame, yardstick: str = SCRATCH, share: float = 1.0) -> pd.DataFrame:
    """Final losses: a row for each variant and share of the budget, the yardstick first.

    Differences are paired by seed and taken to the yardstick at one share of the budget: runs of
    one seed share their first weights (as far as the depths allow), the order of the rows and the
    masks, so much of their noise cancels. The p values of variants that are no controls are
    corrected for their number at that share.

    Columns: variant, fraction, seeds, loss, loss_low, loss_high (mean and 95 % interval over all
    its seeds); pairs, own, reference (means over the seeds that the yardstick has, too);
    difference, low, high, p; outcome (better, worse, no difference, one seed; "" the yardstick's).
    """
    yard, rows = final_losses(results, yardstick, share), []
    for (name, fraction), runs in results.groupby(["variant", "fraction"], sort=False):
        own = runs.groupby("seed")["loss"].last().to_dict()
        common = sorted(own.keys() & yard.keys())
        if not common or (name == yardstick and fraction != share):
            continue
        gaps = [own[seed] - yard[seed] for seed in common]
        means = fmean(own[seed] for seed in common), fmean(yard[seed] for seed in common)
        spread = len(own), *interval(list(own.values()))
        rows.append((name, fraction, *spread, len(gaps), *means, *interval(gaps), p_value(gaps)))
    rows.sort(key=lambda row: (row[0] != yardstick, -row[1], row[9]))
    table = pd.DataFrame(rows, columns=_COLUMNS)
    looked_at = without_controls(table[table["fraction"] == share])
    table["p"] = holm(looked_at["p"].dropna()).combine_first(table["p"])
    better = np.where(table["difference"] < 0.0, "better", "worse")
    certain = np.where(table["p"] < SIGNIFICANT, better, "no difference")
    outcome = np.where(table["p"].isna(), "one seed", certain)
    return table.assign(outcome=np.where(table["variant"] == yardstick, "", outcome))


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for their number (Holm, 1979, sequentially rejective)."""
    ordered = p.sort_values()
    return (ordered * range(len(p), 0, -1)).cummax().clip(upper=1.0)


def crossings(results: pd.DataFrame) -> pd.DataFrame:
    """Where mean losses over the budget cross: two controls', a variant's and the envelope's.

    The envelope is the lowest loss of any control. Columns: share (of the largest budget), below
    (lower from there on), above.
    """
    final = results.groupby(["variant", "fraction", "seed"])["loss"].last()
    means = final.groupby(["fraction", "variant"]).mean().unstack()
    fixed = [name for name in means if is_fixed(name)]
    pairs = [*itertools.combinations(fixed, 2)]
    pairs += [(name, ENVELOPE) for name in means if not is_fixed(name)]
    means[ENVELOPE] = means[fixed].min(axis="columns")
    rows = []
    for first, second in pairs:
        gaps = (means[first] - means[second]).dropna()
        for (low, before), (high, after) in itertools.pairwise(gaps.items()):
            if before * after < 0.0:
                share = _between(low, high, before, before - after)
                rows.append((share, *((first, second) if after < 0.0 else (second, first))))
    return pd.DataFrame(sorted(rows), columns=["share", "below", "above"])
