"""What a comparison shows, in sentences, and what it does not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from stackbert.comparison.processes import counted
from stackbert.comparison.results import Results, grown_variants
from stackbert.comparison.statistics import (
    Interval,
    Share,
    crossing,
    interval,
    paired,
    share_for,
)
from stackbert.comparison.variants import SCRATCH
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.recipe import Recipe
from stackbert.recipe_files import parse_recipe
from stackbert.reporting.wording import duration

PLATEAU = 0.5
"""Nats under the unigram entropy that scratch must end, or the comparison shows nothing: before
attention forms, a model knows word frequencies alone, and there depth does not matter at all."""
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


@dataclass(frozen=True)
class Verdict:
    """A comparison's result."""

    sentences: tuple[str, ...]
    standings: tuple[Standing, ...]
    """Best first."""
    speeds: tuple[Speed, ...]
    on_plateau: bool


def judge(results: Results) -> Verdict:
    """What the finished runs of a comparison show."""
    scratch = results.losses(SCRATCH)
    if not scratch:
        nothing = "Scratch has no finished run yet, so there is nothing to say."
        return Verdict((nothing,), (), (), False)
    standings = [
        standing
        for name in grown_variants(results)
        for fraction in results.fractions(name)
        if (standing := _standing(results, name, fraction, scratch)) is not None
    ]
    standings.sort(key=lambda s: (-s.fraction, s.difference.mean))
    speeds = [s for name in grown_variants(results) if (s := _speed(results, name, scratch))]
    runs = [run for run in results.runs if run.variant == SCRATCH and run.fraction == 1.0]
    gap = results.record.entropy - sum(run.masked_lm for run in runs) / len(runs)
    on_plateau = gap < PLATEAU
    sentences = [
        *_plateau(gap, on_plateau),
        *(_about(s, results) for s in _leading(results, standings)),
        *(_speed_sentence(s, results) for s in speeds),
        *_order(standings),
        *_caveats(results, standings, gap, on_plateau),
        *_schedules(results),
    ]
    return Verdict(tuple(sentences), tuple(standings), tuple(speeds), on_plateau)


def _standing(
    results: Results, name: str, fraction: float, scratch: dict[int, float]
) -> Standing | None:
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


def _speed(results: Results, name: str, scratch: dict[int, float]) -> Speed | None:
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


def _leading(results: Results, standings: Sequence[Standing]) -> Iterable[Standing]:
    """The first variant asked for, at the whole budget or at the largest share it was run at."""
    for name in grown_variants(results)[:1]:
        own = [s for s in standings if s.variant == name]
        yield from [s for s in own if s.fraction == 1.0][:1] or own[:1]


def _about(standing: Standing, results: Results) -> str:
    budget = results.record.budget
    on = (
        f"on the same budget ({budget})"
        if standing.fraction == 1.0
        else f"on {standing.fraction:.3g} of scratch's budget ({budget})"
    )
    own, scratch = standing.pair
    ends = (
        f"{standing.variant} ends at a validation loss of {own:.3f} nats and scratch at "
        f"{scratch:.3f}, {on}"
    )
    gap = standing.difference
    if standing.outcome == "one seed":
        return f"{ends}: {_signed(gap.mean)} nats with one seed, so nothing is known of the noise."
    within = f"95 % interval {_signed(gap.low)} to {_signed(gap.high)}, {gap.number} seeds"
    if standing.outcome == "no difference":
        return f"{ends}: no difference beyond noise ({_signed(gap.mean)} nats, {within})."
    return f"{ends}: {standing.outcome} by {abs(gap.mean):.3f} nats ({within})."


def _speed_sentence(speed: Speed, results: Results) -> str:
    of = {"seconds": "the time", "steps": "the steps", "flops": "the FLOPs"}
    what = f"{of[results.record.budget.unit]} that scratch takes"
    if not speed.by_seed:
        exact = [share.value for share in speed.crossing.values() if share.bound == "="]
        if len(exact) < len(speed.crossing):
            part = f"with {len(exact)} of {counted(len(speed.crossing), 'seed')}"
            return f"The curve of {speed.variant} reaches scratch's final loss {part}."
        return (
            f"The curve of {speed.variant} crosses scratch's final loss at "
            f"{interval(exact).mean:.3g} of {what}; not a fair figure, as only one of the two has "
            "ended its schedule there. Runs at several fractions give that."
        )
    name = f"{speed.variant} with its whole schedule reaches scratch's final loss in"
    if speed.mean is not None and speed.mean.low is not None:
        return (
            f"{name} {speed.mean.mean:.3g} of {what} (95 % interval {speed.mean.low:.3g} to "
            f"{speed.mean.high:.3g}, {speed.mean.number} seeds)."
        )
    each = ", ".join(
        f"not within {share.value:.3g} (seed {seed})"
        if share.bound == ">"
        else f"{share} (seed {seed})"
        for seed, share in sorted(speed.by_seed.items())
    )
    return f"{name} these shares of {what}: {each}."


def _order(standings: Sequence[Standing]) -> list[str]:
    whole = [s for s in standings if s.fraction == 1.0]
    if len(whole) < 2:
        return []
    # By the differences, which are paired: variants may have been run with different seeds.
    said = {"no difference": ", within noise", "one seed": ", one seed"}
    placed = [
        (s.difference.mean, f"{s.variant} ({_signed(s.difference.mean)}{said.get(s.outcome, '')})")
        for s in whole
    ]
    names = ", ".join(name for _, name in sorted([*placed, (0.0, SCRATCH)]))
    return [f"On the same budget, from the lowest loss to the highest: {names}."]


def _plateau(gap: float, on_plateau: bool) -> list[str]:
    if not on_plateau:
        return []
    return [
        f"This comparison shows nothing: scratch ended {_under(gap)} the unigram entropy, "
        f"which is on the plateau (less than {PLATEAU} under it), where models know word "
        "frequencies alone and depth does not matter. Give it a longer budget."
    ]


def _one_seed(standings: Sequence[Standing]) -> list[str]:
    """Which variants have one seed only, and at which shares if others of theirs have more."""
    if all(s.outcome == "one seed" for s in standings):
        return []  # every sentence about them says it
    names = []
    for variant in sorted({s.variant for s in standings}):
        own = [s for s in standings if s.variant == variant]
        lone = [f"{s.fraction:.4g}" for s in own if s.outcome == "one seed"]
        if lone:
            names.append(variant if len(lone) == len(own) else f"{variant} at {', '.join(lone)}")
    return [f"One seed only: {'; '.join(names)}; their place is uncertain."] if names else []


def _caveats(
    results: Results, standings: Sequence[Standing], gap: float, on_plateau: bool
) -> list[str]:
    found = []
    if not on_plateau:
        found.append(
            f"Scratch ended {_under(gap)} the unigram entropy of the validation text "
            f"({results.record.entropy:.3f}), so past the plateau."
        )
    found += _one_seed(standings)
    tried = results.record.tried
    if tried and results.record.rate in (tried[0].rate, tried[-1].rate):
        found.append(
            f"The best learning rate for scratch, {results.record.rate:g} times the recipe's, is "
            "the edge of those tried; one beyond may be better for it."
        )
    if results.missing:
        gone = "; ".join(results.missing[:4]) + ("; …" if len(results.missing) > 4 else "")
        found.append(
            f"{counted(len(results.missing), 'planned run')} did not end, and what is said of "
            f"their variants leaves them out: {gone}."
        )
    return found


def _schedules(results: Results) -> list[str]:
    base = results.record.question.recipe
    recipes = {
        name: parse_recipe(raw, f"variant '{name}'") for name, raw in results.record.recipes.items()
    }
    found = []
    undecayed = sorted(name for name, recipe in recipes.items() if not _decays(recipe))
    if undecayed:
        found.append(
            f"The learning rate does not decay to zero in {', '.join(undecayed)}, so their losses "
            "are not what their budget can buy."
        )
    other = sorted(
        name
        for name, recipe in recipes.items()
        if (recipe.schedule, recipe.optimizer) != (base.schedule, base.optimizer)
    )
    if other:
        found.append(
            f"Schedule or optimiser differ in {', '.join(other)}, so growth is not all that is "
            "compared there."
        )
    return found


def _decays(recipe: Recipe) -> bool:
    return learning_rate_factor(recipe, recipe.total_steps) < 0.01


def _under(gap: float) -> str:
    return f"{gap:.2f} nats under" if gap >= 0 else f"{-gap:.2f} nats above"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}".replace("-", "−")


def spent_sentence(results: Results) -> str:
    """How much training the comparison took, by the reference table."""
    made = {run.folder: run.points[-1].seconds for run in results.runs}
    return (
        f"{counted(len(made), 'run')}, {duration(sum(made.values()))} of training by the reference "
        "table, those that only tried a learning rate apart."
    )
