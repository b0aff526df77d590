"""What a comparison shows and what it does not: tables of results in sentences."""

from collections.abc import Mapping

import pandas as pd

from stackbert.comparison.reference import Budget
from stackbert.comparison.statistics import PLATEAU, interval
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.recipe import Recipe
from stackbert.units import counted


def plateau(gap: float) -> list[str]:
    """Whether scratch learned more than word frequencies; `gap` as of `plateau_gap`."""
    ended = f"ended {abs(gap):.2f} nats {'below' if gap >= 0 else 'above'} the unigram entropy"
    if gap >= PLATEAU:
        return [f"Scratch {ended} of the validation text, past the plateau."]
    return [
        f"This comparison shows nothing: scratch {ended}, which is on the plateau (less than "
        f"{PLATEAU} below it), where models know only word frequencies and depth does not matter. "
        "Give it a longer budget."
    ]


def headline(own: pd.DataFrame, budget: Budget) -> list[str]:
    """One variant's row of the standings at the largest share of the budget."""
    if own.empty:
        return []
    row = max(own.itertuples(), key=lambda row: row.fraction)
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


def shares(speeds: pd.DataFrame, budget: Budget) -> list[str]:
    """How much of the budget each variant needs for scratch's final loss."""
    of = "scratch's " + {"seconds": "time", "step": "steps", "flops": "FLOPs"}[budget.unit]
    found = []
    for name, own in speeds.groupby("variant", sort=False):
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


def order(whole: pd.DataFrame) -> list[str]:
    """All variants at the whole budget, scratch among them."""
    if len(whole) < 3:
        return []
    # By the differences, which are paired: variants may have been run with different seeds.
    notes = {"no difference": ", within noise", "one seed": ", one seed"}
    names = [
        f"{row.variant} ({_signed(row.difference)}{notes.get(row.outcome, '')})"
        if row.outcome
        else row.variant
        for row in whole.sort_values("difference").itertuples()
    ]
    return [f"On the same budget, from the lowest loss to the highest: {', '.join(names)}."]


def rates(tried: pd.DataFrame) -> list[str]:
    """Whether the best learning rate is at the edge of those that scratch tried."""
    if tried["loss"].isna().all():
        return []
    best = tried["loss"].argmin()
    if 0 < best < len(tried) - 1:
        return []
    return [
        f"Scratch's best learning rate, {tried['learning_rate'].iloc[best]:g} times the recipe's, "
        "is at the edge of those tried; one beyond it may be better."
    ]


def unfinished(missing: list[str]) -> list[str]:
    """The runs that the verdict leaves out."""
    if not missing:
        return []
    return [
        f"{counted(len(missing), 'planned run')} did not finish, and the verdict leaves out: "
        f"{'; '.join(missing[:4])}{'; …' if len(missing) > 4 else ''}."
    ]


def schedules(recipe: Recipe, variants: Mapping[str, Recipe]) -> list[str]:
    """Schedules that do not end at zero, or are not the recipe's."""
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
