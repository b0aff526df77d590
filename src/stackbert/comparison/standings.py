"""Where each variant stands against scratch: its loss, and the time to the same loss."""

from statistics import fmean

import pandas as pd

from stackbert.comparison.reference import Unit
from stackbert.comparison.statistics import crossing, interval, share_for
from stackbert.comparison.variants import SCRATCH


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
        row = {
            "variant": name,
            "fraction": fraction,
            "seeds": loss.number,
            "loss": loss.mean,
            "loss_low": loss.low,
            "loss_high": loss.high,
            "pairs": gap.number,
            "own": fmean(own[seed] for seed in common),
            "scratch": fmean(scratch[seed] for seed in common),
            "difference": gap.mean,
            "low": gap.low,
            "high": gap.high,
            "outcome": "" if name == SCRATCH else gap.outcome,
        }
        rows.append(row)
    rows.sort(key=lambda row: (row["variant"] != SCRATCH, -row["fraction"], row["difference"]))
    bounds = ["loss_low", "loss_high", "low", "high"]
    return pd.DataFrame(rows).astype(dict.fromkeys(bounds, float)) if rows else pd.DataFrame()


def speeds(results: pd.DataFrame, unit: Unit) -> pd.DataFrame:
    """The share of scratch's budget after which a variant has scratch's loss, a row for each seed.

    Columns: variant, seed; share (a `Share` from runs at several budgets, each with its full
    schedule; None where there is one budget); crossing (a `Share`: where the learning curve of the
    run at the whole budget reaches scratch's final loss; None without such a run).
    """
    rows, scratch = [], losses(results, SCRATCH)
    spent = results[results["fraction"] == 1.0].groupby(["variant", "seed"])[unit].max()
    for name, runs in results[results["variant"] != SCRATCH].groupby("variant", sort=False):
        for seed, own in runs[runs["seed"].isin(scratch)].groupby("seed"):
            final = own.groupby("fraction")["loss"].last().to_dict()
            curve = list(own.loc[own["fraction"] == 1.0, [unit, "loss"]].itertuples(index=False))
            share = share_for(final, scratch[seed]) if len(final) > 1 else None
            crossed = crossing(curve, scratch[seed], spent[SCRATCH, seed]) if curve else None
            if share or crossed:
                rows.append((name, seed, share, crossed))
    return pd.DataFrame(rows, columns=["variant", "seed", "share", "crossing"], dtype=object)
