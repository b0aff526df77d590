"""What a comparison shows, in sentences, and what it does not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stackbert.comparison.processes import counted
from stackbert.comparison.results import Results, grown_variants
from stackbert.comparison.standings import Speed, Standing, speed_of, standing_of
from stackbert.comparison.statistics import interval
from stackbert.comparison.variants import SCRATCH
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.recipe import Recipe
from stackbert.recipe_files import parse_recipe
from stackbert.reporting.wording import duration

PLATEAU = 0.5
"""Nats under the unigram entropy that scratch must end, or the comparison shows nothing: before
attention forms, a model knows word frequencies alone, and there depth does not matter at all."""


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
        if (standing := standing_of(results, name, fraction, scratch)) is not None
    ]
    standings.sort(key=lambda s: (-s.fraction, s.difference.mean))
    speeds = [s for name in grown_variants(results) if (s := speed_of(results, name, scratch))]
    runs = [run for run in results.runs if run.variant == SCRATCH and run.fraction == 1.0]
    gap = results.record.entropy - sum(run.masked_lm for run in runs) / len(runs)
    on_plateau = gap < PLATEAU
    sentences = [
        *_plateau(gap, on_plateau),
        *(_about(s, results) for s in _leading(results, standings)),
        *(_speed_sentence(s, results) for s in speeds if s.by_seed),
        *_crossings([s for s in speeds if not s.by_seed], results),
        *_order(standings),
        *_caveats(results, standings, gap, on_plateau),
        *_schedules(results),
    ]
    return Verdict(tuple(sentences), tuple(standings), tuple(speeds), on_plateau)


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


def _of_what(results: Results) -> str:
    of = {"seconds": "the time", "steps": "the steps", "flops": "the FLOPs"}
    return f"{of[results.record.budget.unit]} that scratch takes"


def _speed_sentence(speed: Speed, results: Results) -> str:
    what = _of_what(results)
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


def _crossings(speeds: Sequence[Speed], results: Results) -> list[str]:
    """Of variants that were run on the whole budget only, and so have no fairer figure."""
    found, crossed = [], []
    for speed in speeds:
        exact = [share.value for share in speed.crossing.values() if share.bound == "="]
        if len(exact) == len(speed.crossing):
            crossed.append(f"{interval(exact).mean:.3g} ({speed.variant})")
        else:
            part = f"with {len(exact)} of {counted(len(speed.crossing), 'seed')}"
            found.append(f"The curve of {speed.variant} reaches scratch's final loss {part}.")
    if crossed:
        found.append(
            "Before their schedules have ended, curves cross scratch's final loss at "
            f"{', '.join(crossed)} of {_of_what(results)}; not a fair figure, as scratch's own "
            "schedule has ended there. Runs at several fractions give that."
        )
    return found


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
