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
from stackbert.intervals import interval as mean_interval

PLATEAU = 0.5
"""Nats below the unigram entropy that a model must end, or its comparison shows nothing: before
attention forms, a model knows only word frequencies, and depth does not matter."""
SIGNIFICANT = 0.05
ENVELOPE = "the envelope"
_BOUNDS = ["loss_low", "loss_high", "low", "high"]
_COLUMNS = ["variant", "fraction", "seeds", "loss", *_BOUNDS[:2]]
_COLUMNS += ["pairs", "own", "reference", "difference", *_BOUNDS[2:], "p"]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval (Student's t); a single value has none."""

    mean: float
    low: float | None
    high: float | None
    number: int

    @property
    def p(self) -> float:
        """Of a mean of zero, two-sided; NaN for a single value."""
        if self.low is None:
            return math.nan
        half = self.mean - self.low
        if half == 0.0:
            return float(self.mean == 0.0)
        freedom = self.number - 1
        return float(2.0 * t.sf(abs(self.mean) / half * t.ppf(0.975, freedom), freedom))


@dataclass(frozen=True)
class Share:
    """A share of the budget, exact or a bound."""

    value: float
    bound: Literal["=", "<=", ">"] = "="

    def __str__(self) -> str:
        sign = {"=": "", "<=": "at most ", ">": "more than "}[self.bound]
        return f"{sign}{self.value:.3g}"


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of independent values; for paired runs give their differences."""
    mean, low, high = mean_interval(values)
    if math.isnan(low):
        return Interval(mean, None, None, len(values))
    return Interval(mean, low, high, len(values))


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


def losses(results: pd.DataFrame, variant: str, fraction: float = 1.0) -> dict[int, float]:
    """Seed → final validation loss."""
    own = results[(results["variant"] == variant) & (results["fraction"] == fraction)]
    last: dict[int, float] = own.groupby("seed")["loss"].last().to_dict()
    return last


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
    yard, rows = losses(results, yardstick, share), []
    for name, fraction in (
        results[["variant", "fraction"]].drop_duplicates().itertuples(index=False)
    ):
        own = losses(results, name, fraction)
        common = sorted(own.keys() & yard.keys())
        if not common or (name == yardstick and fraction != share):
            continue
        loss, gap = interval(list(own.values())), interval([own[s] - yard[s] for s in common])
        means = fmean(own[seed] for seed in common), fmean(yard[seed] for seed in common)
        spread = loss.number, loss.mean, loss.low, loss.high
        pairs = gap.number, *means, gap.mean, gap.low, gap.high, gap.p
        rows.append((name, fraction, *spread, *pairs))
    rows.sort(key=lambda row: (row[0] != yardstick, -row[1], row[9]))
    table = pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys(_BOUNDS, float))
    looked_at = table[(table["fraction"] == share) & ~table["variant"].map(is_fixed).astype(bool)]
    table["p"] = holm(looked_at["p"].dropna()).combine_first(table["p"])
    better = np.where(table["difference"] < 0.0, "better", "worse")
    certain = np.where(table["p"] < SIGNIFICANT, better, "no difference")
    outcome = np.where(table["p"].isna(), "one seed", certain)
    return table.assign(outcome=np.where(table["variant"] == yardstick, "", outcome))


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for their number (Holm, 1979, sequentially rejective)."""
    ordered = p.sort_values()
    return (ordered * range(len(p), 0, -1)).cummax().clip(upper=1.0)


def speeds(results: pd.DataFrame, yardstick: str = SCRATCH) -> pd.DataFrame:
    """The share of the budget after which a variant has the yardstick's loss.

    Columns: variant, seed, share (a `Share`). Of variants, but no controls, that ran at several
    budgets: in mid-schedule a loss is higher than at the end, so a learning curve does not tell.
    """
    rows, target = [], losses(results, yardstick)
    grown = results[~results["variant"].map(is_fixed).astype(bool)]
    for (name, seed), own in grown.groupby(["variant", "seed"], sort=False):
        final = own.groupby("fraction")["loss"].last().to_dict()
        if len(final) > 1 and seed in target:
            rows.append((name, seed, share_for(final, target[seed])))
    return pd.DataFrame(rows, columns=["variant", "seed", "share"])


def best_fixed(results: pd.DataFrame, share: float = 1.0) -> str:
    """The control with the lowest mean loss at a share of the budget; "" if none has finished.

    The mean is over the seeds that all controls have, if there are any.
    """
    rows = results[results["variant"].map(is_fixed).astype(bool) & (results["fraction"] == share)]
    final = rows.groupby(["seed", "variant"])["loss"].last().unstack()
    complete = final.dropna()
    means = (complete if len(complete) else final).mean()
    return str(means.idxmin()) if len(means) else ""


def plateau_gap(
    results: pd.DataFrame, entropy: float, variant: str = SCRATCH, share: float = 1.0
) -> float:
    """Nats that a variant's masked-LM loss ends below the unigram entropy, mean over its seeds."""
    own = results[(results["variant"] == variant) & (results["fraction"] == share)]
    return float(entropy - own.groupby("seed")["masked_lm"].last().mean())


def crossings(results: pd.DataFrame) -> pd.DataFrame:
    """Where mean losses over the budget cross: two controls', a variant's and the envelope's.

    The envelope is the lowest loss of any control; between budgets a loss is taken to be straight
    over the logarithm. Columns: share (of the largest budget), below (lower from there on), above.
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
                part = before / (before - after)
                share = math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
                rows.append((share, *((first, second) if after < 0.0 else (second, first))))
    return pd.DataFrame(sorted(rows), columns=["share", "below", "above"])
