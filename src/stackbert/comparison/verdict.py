"""What a comparison shows and what it does not: tables of results in sentences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stackbert.comparison.reference import Budget, Reference, step_kinds
from stackbert.comparison.statistics import PLATEAU, without_controls
from stackbert.comparison.variants import SCRATCH, growths_of, is_fixed
from stackbert.intervals import interval
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.recipe import Recipe
from stackbert.units import counted, signed

SPREAD = 0.1
"""Share of the median over which readings may spread before that is said."""


def plateau(variant: str, gap: float) -> str:
    """Whether a control learned more than word frequencies; `gap` is in nats."""
    ended = f"ended {abs(gap):.2f} nats {'below' if gap >= 0 else 'above'} the unigram entropy"
    if gap >= PLATEAU:
        return f"{variant.capitalize()} {ended} of the validation text, past the plateau."
    return (
        f"A comparison with {variant} shows nothing: it {ended}, which is on the plateau (less "
        f"than {PLATEAU} below it), where models know only word frequencies and depth does not "
        "matter. Give it a longer budget."
    )


def headline(table: pd.DataFrame, variant: str, yardstick: str, budget: Budget) -> list[str]:
    """A variant's row of the standings at the largest share of the budget that it ran at."""
    own = table[table["variant"] == variant].nlargest(1, "fraction")
    if own.empty:
        return []
    row = next(own.itertuples())
    share = "the same" if row.fraction == 1.0 else f"{row.fraction:.3g} of the"
    return [
        f"{variant} ends at a validation loss of {row.own:.3f} nats and {yardstick} at "
        f"{row.reference:.3f}, on {share} budget ({budget}): {_outcome(row)}."
    ]


def too_deep(table: pd.DataFrame, depth: int) -> str:
    """That the first of the standings, a shallower control, ends below scratch of `depth`."""
    row = next(table[table["variant"] == SCRATCH].itertuples())
    best, small = table["variant"].iloc[0], f"this budget is too small for {depth} layers"
    if row.outcome == "worse":
        return f"{small.capitalize()}: against {best}, scratch is {_outcome(row)}."
    return f"Perhaps {small}: {best} ends lower than scratch, but not beyond noise."


def shares(speeds: pd.DataFrame, yardstick: str, budget: Budget) -> list[str]:
    """How much of the budget each variant needs for the yardstick's final loss."""
    unit = {"seconds": "time", "step": "steps", "flops": "FLOPs"}[budget.unit]
    found = []
    for name, own in speeds.groupby("variant", sort=False):
        mean, low, high = interval([share.value for share in own["share"]])
        if not math.isnan(low) and all(share.bound == "=" for share in own["share"]):
            value = f"{mean:.3g} of {yardstick}'s {unit}"
            value += f" (95 % interval {low:.3g} to {high:.3g}, {len(own)} seeds)"
        else:
            value = f"these shares of {yardstick}'s {unit}: " + ", ".join(
                f"{str(share).replace('more than', 'not within')} (seed {seed})"
                for seed, share in zip(own["seed"], own["share"], strict=True)
            )
        found.append(f"With its full schedule, {name} reaches {yardstick}'s final loss in {value}.")
    return found


def order(table: pd.DataFrame) -> list[str]:
    """All variants at the whole budget, and that several were looked at."""
    # By the differences, which are paired: variants may have been run with different seeds.
    whole = table[table["fraction"] == 1.0].sort_values("difference")
    notes = {"no difference": ", within noise", "one seed": ", one seed"}
    names = [
        row.variant
        + (f" ({signed(row.difference, 3)}{notes.get(row.outcome, '')})" if row.outcome else "")
        for row in whole.itertuples()
    ]
    looked_at = len(without_controls(whole))
    found = [
        f"On the same budget, from the lowest loss to the highest: {', '.join(names)}.",
        f"{looked_at} variants were looked at; what is called better or worse is so after Holm's "
        "correction for their number.",
    ]
    return found[: (len(whole) > 2) + (looked_at > 1)]


def envelope(table: pd.DataFrame, budget: Budget) -> str:
    """The best control, which leads the standings of one of several budgets, and who is near it."""
    if "plateau" in set(table["outcome"]):
        return f"At {budget} all that is shown is the plateau."
    best = next(table.itertuples())
    text = f"At {budget} the envelope is {best.variant} with {best.loss:.3f} nats"
    for row in without_controls(table).nsmallest(1, "difference").itertuples():
        text += f"; the best variant is {row.variant}: {_outcome(row)}"
    return f"{text}."


def crossings(places: pd.DataFrame, budget: Budget) -> list[str]:
    """Where mean losses over several budgets cross."""
    texts = [
        f"{p.below} goes below {p.above} at {budget.part(p.share)}" for p in places.itertuples()
    ]
    return _listed("Mean losses cross", texts, "; ")


def peculiar(recipe: Recipe, variants: Mapping[str, Recipe]) -> list[str]:
    """Variants in which more than growth differs, or that do not grow."""
    shapes = {name: {kind[1:] for kind in step_kinds(own)} for name, own in variants.items()}
    found = []
    for name, own in variants.items():
        notes = {
            "schedule": own.schedule != recipe.schedule,
            "optimiser": own.optimizer != recipe.optimizer,
            "rows, their length or the mask rate": shapes[name] != shapes[SCRATCH],
            "no growth": not is_fixed(name) and not growths_of(own),
            "a learning rate that does not fall to zero": (
                learning_rate_factor(own, own.total_steps) > 0.01
            ),
        }
        if any(notes.values()):
            found.append(f"{name} ({', '.join(note for note, holds in notes.items() if holds)})")
    return [f"More than growth is compared: {'; '.join(found)}."] if found else []


def rates(tried: pd.DataFrame) -> list[str]:
    """Variants whose best learning rate is at the edge of those that they tried."""
    edges = []
    for name, own in tried.dropna().groupby("variant", sort=False):
        best = own["loss"].argmin()
        if best in (0, len(own) - 1):
            edges.append(f"{name} ({own['learning_rate'].iloc[best]:g})")
    return _listed(
        "The best learning rate tried is at the edge, and one beyond may be better", edges
    )


def spread(reference: Reference) -> list[str]:
    """Kinds of step whose readings lie far apart."""
    widths = [
        f"{(row.slowest - row.fastest) / row.seconds:.0%} at depth {row.depth}"
        for row in reference.steps.itertuples()
        if row.slowest - row.fastest > SPREAD * row.seconds
    ]
    return _listed("Equal time holds no better than readings of a step's time spread", widths)


def unfinished(missing: Sequence[str]) -> list[str]:
    """The runs that the verdict leaves out."""
    runs = counted(len(missing), "planned run")
    return _listed(f"{runs} did not finish, and the verdict leaves out", missing, "; ")


def _listed(text: str, items: Sequence[str], comma: str = ", ") -> list[str]:
    shown = [*items[:4], *(["…"] if len(items) > 4 else [])]
    return [f"{text}: {comma.join(shown)}."] if items else []


def _outcome(row: Any) -> str:  # noqa: ANN401 (a row of the standings)
    gap = f"{signed(row.difference, 3)} nats"
    if row.outcome == "one seed":
        return f"{gap} with one seed, so the noise is unknown"
    within = f"95 % interval {signed(row.low, 3)} to {signed(row.high, 3)}, {row.pairs} seeds"
    if row.outcome == "no difference":
        return f"no difference beyond noise ({gap}, {within})"
    return f"{row.outcome} by {abs(row.difference):.3f} nats ({within})"
