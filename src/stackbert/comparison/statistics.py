"""What a few seeds can show: differences with intervals, and the budget to an equal loss."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

import pandas as pd
from scipy.stats import t

from stackbert.comparison.variants import SCRATCH

PLATEAU = 0.5
"""Nats below the unigram entropy that scratch must end, or the comparison shows nothing: before
attention forms, a model knows only word frequencies, and depth does not matter."""
_BOUNDS = ["loss_low", "loss_high", "low", "high"]
_COLUMNS = ["variant", "fraction", "seeds", "loss", *_BOUNDS[:2]]
_COLUMNS += ["pairs", "own", "scratch", "difference", *_BOUNDS[2:], "outcome"]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval (Student's t); a single value has none."""

    mean: float
    low: float | None
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
    """A share of the budget, exact or a bound."""

    value: float
    bound: Literal["=", "<=", ">"] = "="

    def __str__(self) -> str:
        sign = {"=": "", "<=": "at most ", ">": "more than "}[self.bound]
        return f"{sign}{self.value:.3g}"


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of independent values; for paired runs give their differences."""
    mean, number = fmean(values), len(values)
    if number < 2:
        return Interval(mean, None, None, number)
    half = float(t.ppf(0.975, number - 1)) * stdev(values) / math.sqrt(number)
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


def losses(results: pd.DataFrame, variant: str, fraction: float = 1.0) -> dict[int, float]:
    """Seed → final validation loss."""
    own = results[(results["variant"] == variant) & (results["fraction"] == fraction)]
    last: dict[int, float] = own.groupby("seed")["loss"].last().to_dict()
    return last


def standings(results: pd.DataFrame) -> pd.DataFrame:
    """Final losses: a row for each variant and share of the budget, scratch first, then the best.

    Differences are paired by seed and taken to scratch at its whole budget: runs of one seed share
    their first weights (as far as the depths allow), the order of the rows and the masks, so much
    of their noise is common and cancels. Columns: variant, fraction, seeds, loss, loss_low,
    loss_high (mean and 95 % interval over all its seeds); pairs, own, scratch (mean losses over the
    seeds that both have); difference, low, high; outcome ("better", "worse", "no difference", "one
    seed").
    """
    scratch, rows = losses(results, SCRATCH), []
    places = results[["variant", "fraction"]].drop_duplicates()
    for name, fraction in places.itertuples(index=False):
        own = losses(results, name, fraction)
        common = sorted(own.keys() & scratch.keys())
        if not common or (name == SCRATCH and fraction != 1.0):
            continue
        loss, gap = interval(list(own.values())), interval([own[s] - scratch[s] for s in common])
        means = fmean(own[seed] for seed in common), fmean(scratch[seed] for seed in common)
        outcome = "" if name == SCRATCH else gap.outcome
        spread = loss.number, loss.mean, loss.low, loss.high
        pairs = gap.number, *means, gap.mean, gap.low, gap.high
        rows.append((name, fraction, *spread, *pairs, outcome))
    rows.sort(key=lambda row: (row[0] != SCRATCH, -row[1], row[9]))
    return pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys(_BOUNDS, float))


def speeds(results: pd.DataFrame) -> pd.DataFrame:
    """The share of scratch's budget after which a variant has scratch's loss, a row for each seed.

    Columns: variant, seed, share (a `Share`). Of variants that ran at several budgets: in the
    middle of a schedule a loss is higher than at the end of one, so a learning curve does not tell.
    """
    rows, scratch = [], losses(results, SCRATCH)
    for name, runs in results[results["variant"] != SCRATCH].groupby("variant", sort=False):
        for seed, own in runs[runs["seed"].isin(scratch)].groupby("seed"):
            final = own.groupby("fraction")["loss"].last().to_dict()
            if len(final) > 1:
                rows.append((name, seed, share_for(final, scratch[seed])))
    return pd.DataFrame(rows, columns=["variant", "seed", "share"])


def plateau_gap(results: pd.DataFrame, entropy: float) -> float:
    """Nats that scratch's masked-LM loss ends below the unigram entropy, mean over its seeds."""
    scratch = results[(results["variant"] == SCRATCH) & (results["fraction"] == 1.0)]
    return float(entropy - scratch.groupby("seed")["masked_lm"].last().mean())
