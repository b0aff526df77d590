"""When to switch (Gong et al., ICML 2019, Fig. 7), for a recipe on the user's text.

For every growth of the recipe: the shallow model is trained t steps, grown, and trained a fixed
number of steps more. Beside each such run stands the deep model from scratch on the same budget,
which the paper's figure does not have. Every run decays its learning rate over its own length; the
paper reads its losses in the middle of a schedule.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stackbert.comparison.begin import Say, check_grows, open_record
from stackbert.comparison.compare import make_runs
from stackbert.comparison.costs import Budget, Reference, filling
from stackbert.comparison.figures import lines_with_intervals
from stackbert.comparison.folder import Question, write_record
from stackbert.comparison.report_page import (
    facts,
    recipe_table,
    reference_table,
    runs_table,
)
from stackbert.comparison.results import Results, read_results
from stackbert.comparison.runs import PlannedRun, planned, seeded, with_runs
from stackbert.comparison.statistics import Interval, interval, paired
from stackbert.comparison.variants import at_rate, untuned
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.errors import UserError
from stackbert.files import held_folder
from stackbert.recipe import Recipe, Stage
from stackbert.reporting import wording
from stackbert.reporting.content import Curves, Figure, Page, Table


@dataclass(frozen=True)
class Switch:
    """One point of the figure."""

    source: int
    target: int
    at: int
    """Steps of the shallow model."""
    grown: Interval
    scratch: Interval | None
    difference: Interval | None
    """Grown minus scratch on the same budget, paired by seed."""


def compare_switches(
    recipe: Recipe,
    *,
    corpus: str | Path | Corpus,
    out: str | Path,
    switch_at: Sequence[int],
    then: int | None = None,
    seeds: int = 1,
    rate: float = 1.0,
    jobs: int = 1,
    say: Say | None = None,
) -> tuple[Switch, ...]:
    """Train, for every growth of a recipe, shallow models of several lengths and grow them.

    Args:
        recipe: its growths, model, optimiser; its steps give the length of the warm-up's share.
        corpus: a folder that `build_corpus` made, or an opened corpus.
        out: folder; an unfinished comparison there goes on.
        switch_at: steps of the shallow model.
        then: steps after the growth; by default those of the recipe's first stage.
        seeds: runs of each point.
        rate: factor of the recipe's learning rates.
        jobs: runs side by side.
        say: hears of progress.

    Raises:
        UserError: wrong input.
        Interrupted: asked to stop; the same call goes on.

    Example:
        >>> import stackbert as sb
        >>> sb.compare_switches(  # doctest: +SKIP
        ...     sb.load_recipe("small-cpu"), corpus="corpus", out="when", switch_at=[100, 400]
        ... )
    """
    tell = say or (lambda text: None)
    if not switch_at or min(switch_at) < 1 or seeds < 1 or jobs < 1:
        raise UserError("Switches need steps, seeds and jobs of at least 1.")
    check_grows(recipe)
    recipe = untuned(recipe)
    more = recipe.stages[0].steps if then is None else then
    if more < 1:
        raise UserError(f"There must be steps after the growth, not {more}.")
    opened = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    folder = Path(out)
    fingerprint = opened.manifest.fingerprint
    question = Question("switches", recipe, fingerprint, None, jobs, (rate,), more)
    times = sorted(set(switch_at))
    grown = {
        (a.depth, b.depth, t): _grown(at_rate(recipe, rate), a, b, t, more)
        for a, b in _growing(recipe)
        for t in times
    }
    with held_folder(folder, f"comparing in {folder}"):
        named = {_name(*place): made for place, made in grown.items()}
        record = open_record(folder, question, named, opened, tell)
        record = replace(record, rate=rate)
        runs = [
            planned(name, 1.0, seeded(each, seed), record.settings, fingerprint)
            for seed in range(seeds)
            for place, made in grown.items()
            for name, each in (
                (_name(*place), made),
                (_scratch_name(*place), _alone(made, record.reference)),
            )
        ]
        record = with_runs(record, _cheapest_first(runs, record.reference))
        write_record(folder, record)
        make_runs(folder, record, _cheapest_first(runs, record.reference), opened, tell)
    return read_switches(read_results(folder))


def read_switches(results: Results) -> tuple[Switch, ...]:
    """The points that have ended."""
    found = []
    for name in results.variants:
        place = _place(name)
        losses = results.losses(name)
        if place is None or not losses:
            continue
        scratch = results.losses(_scratch_name(*place))
        found.append(
            Switch(
                *place,
                interval(list(losses.values())),
                interval(list(scratch.values())) if scratch else None,
                paired(losses, scratch),
            )
        )
    return tuple(sorted(found, key=lambda s: (s.source, s.target, s.at)))


def switches_page(folder: Path) -> Page:
    """The report of a folder that `compare_switches` made."""
    results = read_results(folder)
    switches = read_switches(results)
    then = results.record.question.then
    parts: list[Curves | Figure | Table] = []
    for (a, b), group in itertools.groupby(switches, key=lambda s: (s.source, s.target)):
        points = list(group)
        parts += [
            Figure(
                f"{a} → {b} layers",
                _figure(points),
                f"Final validation loss of {a} layers trained so many steps, grown to {b}, and "
                f"trained {then:,} more; beside it {b} layers from scratch for the same time.",
            ),
            _table(a, b, points),
        ]
    parts += [
        reference_table(results),
        runs_table(results.runs, results.missing),
        recipe_table(results),
    ]
    return Page(
        f"When to switch: {results.record.question.recipe.name}",
        sentences(switches),
        tuple(part for part in parts if not isinstance(part, Table) or part.rows),
        facts(results),
    )


def sentences(switches: Iterable[Switch]) -> tuple[str, ...]:
    """What the points say, growth by growth."""
    found = []
    for (a, b), group in itertools.groupby(switches, key=lambda s: (s.source, s.target)):
        each = [_point(s.at, s.difference) for s in group if s.difference is not None]
        if each:
            found.append(
                f"{a} → {b} layers, beside scratch for the same time, by the steps before growing: "
                f"{', '.join(each)}."
            )
    if found and any(s.grown.number < 2 for s in switches):
        found.append("With one seed a point, nothing is known of the noise.")
    return tuple(found) or ("No run has ended yet.",)


def _point(at: int, difference: Interval) -> str:
    noise = difference.number > 1 and not difference.excludes_zero
    return f"{at:,}: {wording.difference(difference.mean)}{' (within noise)' if noise else ''}"


def _growing(recipe: Recipe) -> list[tuple[Stage, Stage]]:
    pairs = itertools.pairwise(recipe.stages)
    return [(a, b) for a, b in pairs if b.depth > a.depth]


def _grown(recipe: Recipe, shallow: Stage, deep: Stage, steps: int, then: int) -> Recipe:
    stages = (
        shallow.model_copy(update={"steps": steps}),
        deep.model_copy(update={"steps": then}),
    )
    return _of_length(recipe, stages)


def _alone(grown: Recipe, reference: Reference) -> Recipe:
    """The deep model from scratch for as long as a grown run takes."""
    alone = grown.model_copy(
        update={"stages": (grown.stages[-1].model_copy(update={"steps": grown.total_steps}),)}
    )
    return filling(alone, reference, Budget(reference.cost(grown, "seconds"), "seconds"))


def _of_length(recipe: Recipe, stages: tuple[Stage, ...]) -> Recipe:
    """Other stages, with the warm-up's share of the steps and the schedule's shape kept."""
    total = sum(stage.steps for stage in stages)
    scaled = recipe.scaled(max(total, len(recipe.stages)))
    return scaled.model_copy(update={"stages": stages})


def _cheapest_first(runs: Iterable[PlannedRun], reference: Reference) -> tuple[PlannedRun, ...]:
    return tuple(sorted(runs, key=lambda run: reference.cost(run.recipe, "seconds")))


def _name(source: int, target: int, at: int) -> str:
    return f"{source}-to-{target}-at-{at}"


def _scratch_name(source: int, target: int, at: int) -> str:
    return f"scratch-{_name(source, target, at)}"


def _place(name: str) -> tuple[int, int, int] | None:
    words = name.split("-")
    if len(words) != 5 or words[0] == "scratch":
        return None
    return int(words[0]), int(words[2]), int(words[4])


def _figure(points: Sequence[Switch]) -> dict[str, object]:
    rows = []
    for s in points:
        for label, found in (("grown", s.grown), ("scratch, same time", s.scratch)):
            if found is not None:
                rows.append(
                    {
                        "variant": label,
                        "steps": s.at,
                        "loss": found.mean,
                        "low": found.low,
                        "high": found.high,
                        "seeds": found.number,
                    }
                )
    return lines_with_intervals(
        rows,
        x="steps",
        x_title="steps before the growth (logarithmic)",
        order=("grown", "scratch, same time"),
    )


def _table(source: int, target: int, points: Sequence[Switch]) -> Table:
    rows = tuple(
        (
            f"{s.at:,}",
            f"{s.grown.mean:.3f}",
            "" if s.scratch is None else f"{s.scratch.mean:.3f}",
            "" if s.difference is None else f"{s.difference.mean:+.3f}",
            str(s.grown.number),
        )
        for s in points
    )
    return Table(
        f"{source} → {target}: final validation loss",
        ("steps before", "grown", "scratch, same time", "difference", "seeds"),
        rows,
    )
