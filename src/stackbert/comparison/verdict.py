"""What a comparison shows, in sentences, and what it does not."""

from collections.abc import Mapping

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
    """What the finished runs of a comparison show.

    Args:
        results: a row for each validation loss: variant, fraction, seed, step, seconds, flops,
            tokens, loss, masked_lm.
        budget: of each run at a share of 1.
        entropy: unigram entropy of the validation text, in nats.
        tried: learning_rate (a factor) and loss of scratch, if it tried several.
        missing: why runs have not finished, one sentence each.
        recipe: that all vary.
        variants: name → its recipe; the first after scratch makes the headline.
    """
    if not losses(results, SCRATCH):
        return ["Scratch has no finished run yet, so there is nothing to say."]
    table, fast = standings(results)[1:], speeds(results, budget.unit)
    of = "scratch's " + {"seconds": "time", "step": "steps", "flops": "FLOPs"}[budget.unit]
    gap = plateau_gap(results, entropy)
    ended = f"{abs(gap):.2f} nats {'below' if gap >= 0 else 'above'} the unigram entropy"
    plateau = (
        f"This comparison shows nothing: scratch ended {ended}, which is on the plateau (less than "
        f"{PLATEAU} below it), where models know only word frequencies and depth does not matter. "
        "Give it a longer budget."
    )
    past = f"Scratch ended {ended} of the validation text ({entropy:.3f}), past the plateau."
    first = next((name for name in variants if name != SCRATCH), "")
    return [
        *([plateau] if gap < PLATEAU else []),
        *_headline(table[table["variant"] == first], budget),
        *_full_schedules(fast.dropna(subset="share"), of),
        *_crossings(fast[~fast["variant"].isin(fast.dropna(subset="share")["variant"])], of),
        *_order(table[table["fraction"] == 1.0]),
        *([past] if gap >= PLATEAU else []),
        *_one_seed(table),
        *_rate_at_edge(tried),
        *_missing(missing),
        *_schedules(recipe, variants),
    ]


def plateau_gap(results: pd.DataFrame, entropy: float) -> float:
    """Nats that scratch's masked-LM loss ends below the unigram entropy, mean over its seeds."""
    scratch = results[(results["variant"] == SCRATCH) & (results["fraction"] == 1.0)]
    last = scratch.groupby("seed")["masked_lm"].last()
    return float(entropy - sum(last) / len(last))


def _headline(own: pd.DataFrame, budget: Budget) -> list[str]:
    """A variant at the whole budget, or at the largest share it was run at."""
    whole = own[own["fraction"] == 1.0]
    for row in (own if whole.empty else whole)[:1].itertuples():
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
    return []


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
    found, crossed = [], []
    for name, own in fast.groupby("variant", sort=False):
        exact = [share.value for share in own["crossing"] if share.bound == "="]
        if len(exact) == len(own):
            crossed.append(f"{interval(exact).mean:.3g} ({name})")
        else:
            seeds = f"{len(exact)} of {counted(len(own), 'seed')}"
            found.append(f"The learning curve of {name} reaches scratch's final loss with {seeds}.")
    if crossed:
        found.append(
            "In the middle of their schedules, learning curves cross scratch's final loss at "
            f"{', '.join(crossed)} of {of}. This is not a fair figure, because scratch's schedule "
            "has ended there; runs at several fractions give a fair one."
        )
    return found


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


def _one_seed(table: pd.DataFrame) -> list[str]:
    """Which variants have one seed only, and at which shares if others of theirs have more."""
    names = []
    for name, own in table.groupby("variant"):
        lone = own[own["outcome"] == "one seed"]
        shares = ", ".join(f"{fraction:.4g}" for fraction in lone["fraction"])
        if shares:
            names.append(f"{name}" if len(lone) == len(own) else f"{name} at {shares}")
    # If all have one seed, every sentence about them says it.
    lonely = (table["outcome"] == "one seed").all() or not names
    return [] if lonely else [f"One seed only: {'; '.join(names)}; their place is uncertain."]


def _rate_at_edge(tried: pd.DataFrame) -> list[str]:
    if tried["loss"].isna().all():
        return []
    best = tried["loss"].idxmin()
    if best not in (tried.index[0], tried.index[-1]):
        return []
    return [
        f"Scratch's best learning rate, {tried.loc[best, 'learning_rate']:g} times the recipe's, "
        "is at the edge of those tried; one beyond it may be better."
    ]


def _missing(missing: list[str]) -> list[str]:
    shown = "; ".join(missing[:4]) + ("; …" if len(missing) > 4 else "")
    runs = f"{counted(len(missing), 'planned run')} did not finish"
    return [f"{runs}, and the verdict leaves out: {shown}."] if missing else []


def _schedules(recipe: Recipe, variants: Mapping[str, Recipe]) -> list[str]:
    undecayed, other = [], []
    for name, own in sorted(variants.items()):
        if learning_rate_factor(own, own.total_steps) >= 0.01:
            undecayed.append(name)
        if (own.schedule, own.optimizer) != (recipe.schedule, recipe.optimizer):
            other.append(name)
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
