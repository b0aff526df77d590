"""Where every variant stands beside scratch: its loss, and the time to the same loss."""

from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from stackbert.comparison.results import Results
from stackbert.comparison.statistics import (
    Interval,
    Share,
    crossing,
    interval,
    paired,
    share_for,
)
from stackbert.comparison.variants import SCRATCH

Outcome = Literal["better", "worse", "no difference", "one seed"]


@dataclass(frozen=True)
class Standing:
    """A variant at one share of the budget, beside scratch at the whole of it."""

    variant: str
    fraction: float
    loss: Interval
    """Over all its seeds."""
    difference: Interval
    """Its loss minus scratch's, paired by seed; below zero is better."""
    pair: tuple[float, float]
    """Mean losses, its own and scratch's, over the seeds that both have."""
    outcome: Outcome


@dataclass(frozen=True)
class Speed:
    """How much of scratch's budget a variant needs for scratch's loss."""

    variant: str
    by_seed: dict[int, Share]
    """From runs at several budgets, each with its whole schedule."""
    mean: Interval | None
    """Over the seeds; None where a seed gives a bound only."""
    crossing: dict[int, Share]
    """Where the curve of the run at the whole budget goes below scratch's final loss."""


def standing_of(
    results: Results, name: str, fraction: float, scratch: dict[int, float]
) -> Standing | None:
    """A variant's place at a share of the budget; None where no seed has both runs."""
    losses = results.losses(name, fraction)
    difference = paired(losses, scratch)
    if difference is None:
        return None
    outcome: Outcome = "no difference"
    if difference.number < 2:
        outcome = "one seed"
    elif difference.excludes_zero:
        outcome = "better" if difference.mean < 0 else "worse"
    common = sorted(losses.keys() & scratch.keys())
    pair = (fmean(losses[seed] for seed in common), fmean(scratch[seed] for seed in common))
    return Standing(name, fraction, interval(list(losses.values())), difference, pair, outcome)


def speed_of(results: Results, name: str, scratch: dict[int, float]) -> Speed | None:
    """What a variant saves; None where no finished run of it tells."""
    by_seed, crossings = {}, {}
    fractions = results.fractions(name)
    unit = results.record.budget.unit
    whole = results.first(SCRATCH)
    if whole is None:
        return None
    budget = getattr(whole.points[-1], unit)
    for seed, target in scratch.items():
        losses = {
            fraction: found[seed]
            for fraction in fractions
            if seed in (found := results.losses(name, fraction))
        }
        if len(losses) > 1:
            by_seed[seed] = share_for(losses, target)
        for run in results.runs:
            if (run.variant, run.fraction, run.seed) == (name, 1.0, seed):
                crossings[seed] = crossing(run.points, target, budget, unit)
    if not by_seed and not crossings:
        return None
    exact = [share.value for share in by_seed.values() if share.bound == "="]
    mean = interval(exact) if exact and len(exact) == len(by_seed) else None
    return Speed(name, by_seed, mean, crossings)
