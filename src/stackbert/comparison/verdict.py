"""What a comparison shows, in sentences, and what it does not."""

from collections.abc import Mapping
from statistics import fmean

import pandas as pd

from stackbert.comparison.reference import Budget
from stackbert.comparison.standings import losses, speeds, standings
from stackbert.comparison.statistics import interval
from stackbert.comparison.variants import SCRATCH
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.recipe import Recipe
from stackbert.units import counted

PLATEAU = 0.5
"""Nats below the unigram entropy that scratch must end, or the comparison shows nothing: before
attention forms, a model knows only word frequencies, and depth does not matter."""


def verdict(
    results: pd.DataFrame,
    *,
    budget: Budget,
    entropy: float,
    tried: pd.DataFrame,
    missing: list[str],
    recipe: Recipe,
    variants: Mapping[str, Recipe],
) -> list[str]:
    """What the finished runs of a comparison show; the arguments are fields of `Comparison`.

    The first variant after scratch makes the headline.
    """
    if not losses(results, SCRATCH):
        return ["Scratch has no finished run yet, so there is nothing to say."]
    table, fast = standings(results)[1:], speeds(results, budget.unit)
    of = "scratch's " + {"seconds": "time", "step": "steps", "flops": "FLOPs"}[budget.unit]
    first = next((name for name in variants if name != SCRATCH), "")
    several = fast["variant"].isin(fast.dropna(subset="share")["variant"])
    gap = plateau_gap(results, entropy)
    ended = f"{abs(gap):.2f} nats {'below' if gap >= 0 else 'above'} the unigram entropy"
    found = [
        *_headline(table[table["variant"] == first], budget),
        *_full_schedules(fast[several].dropna(subset="share"), of),
        *_crossings(fast[~several], of),
        *_order(table[table["fraction"] == 1.0]),
    ]
    if gap < PLATEAU:
        plateau = (
            f"This comparison shows nothing: scratch ended {ended}, which is on the plateau (less "
            f"than {PLATEAU} below it), where models know only word frequencies and depth does not "
            "matter. Give it a longer budget."
        )
        found.insert(0, plateau)
    else:
        end = f"of the validation text ({entropy:.3f}), past the plateau."
        found.append(f"Scratch ended {ended} {end}")
    if not tried["loss"].isna().all():
        best = tried["loss"].idxmin()
        if best in (tried.index[0], tried.index[-1]):
            found.append(
                f"Scratch's best learning rate, {tried.loc[best, 'learning_rate']:g} times the "
                "recipe's, is at the edge of those tried; one beyond it may be better."
            )
    if missing:
        found.append(
            f"{counted(len(missing), 'planned run')} did not finish, and the verdict leaves out: "
            f"{'; '.join(missing[:4])}{'; …' if len(missing) > 4 else ''}."
        )
    return found + _schedules(recipe, variants)


def plateau_gap(results: pd.DataFrame, entropy: float) -> float:
    """Nats that scratch's masked-LM loss ends below the unigram entropy, mean over its seeds."""
    scratch = results[(results["variant"] == SCRATCH) & (results["fraction"] == 1.0)]
    last = scratch.groupby("seed")["masked_lm"].last()
    return float(entropy - sum(last) / len(last))


def _headline(own: pd.DataFrame, budget: Budget) -> list[str]:
    """A variant at the whole budget, or at the largest share it was run at."""
    if own.empty:
        return []
    row = max(own.itertuples(), key=lambda row: (row.fraction == 1.0, row.fraction))
    share = "the same" if row.fraction == 1.0 else f"{row.fraction:.3g} of scratch's"
    ends = (
        f"{row.variant} ends at a validation loss of {row.own:.3f} nats and scratch at "
        f"{row.scratch:.3f}, on {share} budget ({budget})"
    )
    gap = f"{_signed(row.difference)} nats"
    within = f"95 % interval {_signed(row.low)} to {_signed(row.high)}, {row.pairs} seeds"
    if row.outcome == "one seed":
        return [f"{ends}: {gap} with one seed, so the noise is unknown."]
    if row.outcome == "no difference":
        return [f"{ends}: no difference beyond noise ({gap}, {within})."]
    return [f"{ends}: {row.outcome} by {abs(row.difference):.3f} nats ({within})."]


def _full_schedules(fast: pd.DataFrame, of: str) -> list[str]:
    found = []
    for name, own in fast.groupby("variant", sort=False):
        reaches = f"With its full schedule, {name} reaches scratch's final loss in"
        mean = interval([share.value for share in own["share"]])
        if mean.low is not None and all(share.bound == "=" for share in own["share"]):
            found.append(
                f"{reaches} {mean.mean:.3g} of {of} (95 % interval {mean.low:.3g} to "
                f"{mean.high:.3g}, {mean.number} seeds)."
            )
        else:
            each = ", ".join(
                f"{str(share).replace('more than', 'not within')} (seed {seed})"
                for seed, share in zip(own["seed"], own["share"], strict=True)
            )
            found.append(f"{reaches} these shares of {of}: {each}.")
    return found


def _crossings(fast: pd.DataFrame, of: str) -> list[str]:
    """Of variants that were run on the whole budget only, and so have no fairer figure."""
    crossed = []
    for name, own in fast.groupby("variant", sort=False):
        if all(share.bound == "=" for share in own["crossing"]):
            mean = fmean(share.value for share in own["crossing"])
            crossed.append(f"{mean:.3g} ({name})")
    if not crossed:
        return []
    return [
        "In the middle of their schedules, learning curves cross scratch's final loss at "
        f"{', '.join(crossed)} of {of}. This is not a fair figure, because scratch's schedule "
        "has ended there; runs at several fractions give a fair one."
    ]


def _order(whole: pd.DataFrame) -> list[str]:
    if len(whole) < 2:
        return []
    # By the differences, which are paired: variants may have been run with different seeds.
    notes = {"no difference": ", within noise", "one seed": ", one seed"}
    placed = [(0.0, SCRATCH)]
    for row in whole.itertuples():
        note = notes.get(row.outcome, "")
        placed.append((row.difference, f"{row.variant} ({_signed(row.difference)}{note})"))
    names = ", ".join(name for _, name in sorted(placed))
    return [f"On the same budget, from the lowest loss to the highest: {names}."]


def _schedules(recipe: Recipe, variants: Mapping[str, Recipe]) -> list[str]:
    undecayed = [
        n for n, own in variants.items() if learning_rate_factor(own, own.total_steps) > 0.01
    ]
    fixed = recipe.schedule, recipe.optimizer
    other = [name for name, own in variants.items() if (own.schedule, own.optimizer) != fixed]
    found = []
    if undecayed:
        found.append(
            f"The learning rate does not decay to zero in {', '.join(undecayed)}, so the loss is "
            "higher than the budget allows."
        )
    if other:
        found.append(
            f"Schedule or optimiser differ in {', '.join(other)}, so more than growth is compared "
            "there."
        )
    return found


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
