"""A comparison as a page: verdict first, then curves, figures, tables."""

import itertools
from collections.abc import Iterable
from pathlib import Path

from stackbert.comparison.costs import Unit
from stackbert.comparison.figures import loss_by_budget
from stackbert.comparison.folder import read_record
from stackbert.comparison.processes import counted
from stackbert.comparison.results import Results, Run, read_results
from stackbert.comparison.statistics import interval
from stackbert.comparison.variants import SCRATCH, differences
from stackbert.comparison.verdict import Verdict, judge, spent_sentence
from stackbert.recipe_files import parse_recipe
from stackbert.reporting import wording
from stackbert.reporting.content import Band, Curve, Curves, Figure, Page, Point, Table

_COSTS: dict[Unit, str] = {"seconds": "Time", "flops": "FLOPs", "steps": "Steps"}


def comparison_page(folder: Path) -> Page:
    """The report of a comparison's folder, whatever has ended of it.

    Raises:
        UserError: it is no comparison, or no run of it has ended.
    """
    if read_record(folder).question.kind == "switches":
        from stackbert.comparison.switching import switches_page

        return switches_page(folder)
    results = read_results(folder)
    verdict = judge(results)
    record = results.record
    parts: list[Curves | Figure | Table] = []
    if results.runs:
        parts.append(_curves(results))
    if verdict.standings:
        parts += [
            Figure(
                "Final loss by budget",
                loss_by_budget(results),
                "Every point is the mean of runs that went through their whole schedule in that "
                "share of the budget; bars are 95 % intervals.",
            ),
            _standings(results, verdict),
        ]
    if verdict.speeds:
        parts.append(_speeds(verdict, record.budget.unit))
    parts += [
        _growths(results.runs),
        reference_table(results),
        _differences(results),
        *_tried(results),
        runs_table(results.runs, results.missing),
        recipe_table(results),
    ]
    return Page(
        f"Comparison of {record.question.recipe.name}",
        (*verdict.sentences, spent_sentence(results)),
        tuple(part for part in parts if not isinstance(part, Table) or part.rows),
        facts(results),
    )


def _curves(results: Results) -> Curves:
    curves = [
        Curve(
            run.variant,
            f"seed {run.seed}, {run.fraction:.3g} of the budget",
            run.points,
            main=run is _shown(results, run.variant),
        )
        for run in results.runs
    ]
    grown = next((n for n in results.variants if n != SCRATCH and results.fractions(n)), None)
    run = _shown(results, grown) if grown else None
    note = "Validation loss; seconds are steps times the reference seconds of their kind."
    if run is not None:
        share = "the whole" if run.fraction == 1.0 else f"{run.fraction:.3g} of the"
        note += f" The bands are the stages of {run.variant} on {share} budget."
    return Curves("Loss", tuple(curves), bands(run) if run else (), note)


def _shown(results: Results, variant: str) -> Run | None:
    """The run that stands for a variant: its first seed, at the whole budget if it has that."""
    fractions = results.fractions(variant)
    return results.first(variant, 1.0 if 1.0 in fractions else max(fractions))


def bands(run: Run) -> tuple[Band, ...]:
    """The stages of a run, between its evaluations at their ends."""
    at: dict[float, Point] = {}
    for point in run.points:
        at.setdefault(point.steps, point)
    ends = itertools.pairwise(run.recipe.boundaries)
    return tuple(
        Band(wording.layers(stage.depth), at[first], at[end])
        for stage, (first, end) in zip(run.recipe.stages, ends, strict=True)
        if first in at and end in at
    )


def _standings(results: Results, verdict: Verdict) -> Table:
    scratch = interval(list(results.losses(SCRATCH).values()))
    rows = [
        (SCRATCH, "1", str(scratch.number), _plus_minus(scratch.mean, scratch.high), "", "", "")
    ]
    for s in verdict.standings:
        gap = s.difference
        between = "" if gap.low is None else f"{gap.low:+.3f} to {gap.high:+.3f}"
        rows.append(
            (
                s.variant,
                f"{s.fraction:.3g}",
                str(s.loss.number),
                _plus_minus(s.loss.mean, s.loss.high),
                f"{gap.mean:+.3f}",
                between,
                s.outcome,
            )
        )
    return Table(
        "Final validation loss",
        ("variant", "budget", "seeds", "loss ± 95 %", "− scratch", "95 % interval", "verdict"),
        tuple(rows),
        "Differences are paired by seed and taken to scratch at its whole budget.",
    )


def _plus_minus(mean: float, high: float | None) -> str:
    return f"{mean:.3f}" if high is None else f"{mean:.3f} ± {high - mean:.3f}"


def _speeds(verdict: Verdict, unit: Unit) -> Table:
    def shares(values: Iterable[object]) -> str:
        return ", ".join(str(value) for value in values)

    rows = []
    for s in verdict.speeds:
        mean = ""
        if s.mean is not None:
            mean = f"{s.mean.mean:.3g}"
            if s.mean.low is not None:
                mean += f" ({s.mean.low:.3g} to {s.mean.high:.3g})"
        rows.append((s.variant, shares(s.by_seed.values()), mean, shares(s.crossing.values())))
    return Table(
        f"{_COSTS[unit]} to the same loss, as a share of scratch's",
        ("variant", "each seed", "mean (95 % interval)", "curves cross at"),
        tuple(rows),
        "From runs at several budgets, each with its whole schedule, straight between them over "
        "the logarithm of the budget. 'Curves cross at' is the cheaper figure: where the curve of "
        "the run at the whole budget, its rate not yet decayed, goes below scratch's final loss.",
    )


def _growths(runs: Iterable[Run]) -> Table:
    rows = [
        (
            f"{run.variant}, {run.fraction:.3g}, seed {run.seed}",
            f"{growth.source_depth} → {growth.target_depth}",
            f"{growth.step:,}",
            f"{growth.before:.3f}",
            f"{growth.after:.3f}",
            f"{growth.after - growth.before:+.3f}",
            "not again"
            if growth.recovered is None
            else f"at most {counted(growth.recovered, 'step')}",
        )
        for run in runs
        for growth in run.growths
    ]
    return Table(
        "Growth",
        ("run", "layers", "step", "loss before", "after", "jump", "back below in"),
        tuple(rows),
        "Recovery is seen at the next evaluation only.",
        folded=len(rows) > 8,
    )


def reference_table(results: Results) -> Table:
    """The reference times, with what was read."""
    rows = [
        (
            str(row.kind.depth),
            f"{row.kind.sequences} × {row.kind.sequence_length}",
            f"{row.kind.mask_rate:g}",
            f"{1000 * row.seconds:.1f}",
            f"{1000 * min(row.readings):.1f} to {1000 * max(row.readings):.1f}",
            str(len(row.readings)),
            f"{row.flops / 1e9:.1f}",
        )
        for row in sorted(results.record.reference.steps, key=lambda row: row.kind.depth)
    ]
    record = results.record
    grown = ", ".join(
        f"{row.source_depth} → {row.target_depth} {row.seconds:.2f} s"
        for row in record.reference.growths
    )
    return Table(
        "Reference: what a step takes here",
        ("layers", "rows", "masked", "ms", "readings", "number", "GFLOPs"),
        tuple(rows),
        f"Measured as the runs are made ({_side_by_side(results)}), all kinds in turn; the medians "
        f"count. Growth: {grown or 'none'}.",
    )


def _differences(results: Results) -> Table:
    base = results.record.question.recipe
    rows = [
        (name, field, theirs, own)
        for name, raw in results.record.recipes.items()
        for field, (theirs, own) in differences(
            parse_recipe(raw, f"variant '{name}'"), base
        ).items()
    ]
    return Table(
        "What differs from the recipe",
        ("variant", "field", "recipe", "variant's"),
        tuple(rows),
        "Everything else is the same for all: text, order of the rows, masks, seeds, evaluation.",
    )


def _tried(results: Results) -> list[Table]:
    tried = results.record.tried
    rows = [(f"{t.rate:g}", "did not end" if t.loss is None else f"{t.loss:.3f}") for t in tried]
    table = Table(
        "Learning rates that scratch tried",
        ("times the recipe's", "final loss"),
        tuple(rows),
        f"One seed each; all variants are run at {results.record.rate:g}.",
    )
    return [table] if rows else []


def runs_table(runs: Iterable[Run], missing: Iterable[str]) -> Table:
    """Every run that has ended, and those that have not."""
    rows = [
        (
            run.variant,
            f"{run.fraction:.3g}",
            str(run.seed),
            ", ".join(f"{s.depth}:{s.steps:,}" for s in run.recipe.stages),
            f"{run.points[-1].tokens:,.0f}",
            f"{run.points[-1].flops:.3g}",
            wording.duration(run.points[-1].seconds),
            f"{run.loss:.4f}",
        )
        for run in runs
    ]
    return Table(
        "Runs",
        ("variant", "budget", "seed", "layers:steps", "tokens", "FLOPs", "reference time", "loss"),
        tuple(rows),
        " ".join(f"{sentence}." for sentence in missing),
        folded=True,
    )


def recipe_table(results: Results) -> Table:
    """The recipe that all vary, line by line."""
    lines = results.record.question.recipe.to_yaml().splitlines()
    return Table("Recipe", ("",), tuple((line,) for line in lines), folded=True)


def _side_by_side(results: Results) -> str:
    record = results.record
    return f"{counted(record.question.jobs, 'run')} at a time, {counted(record.threads, 'thread')}"


def facts(results: Results) -> dict[str, str]:
    """Versions, hardware, corpus, budget."""
    record = results.record
    machine = {name: str(value) for name, value in record.machine.items() if name != "threads"}
    budget = {"budget": f"{record.budget} of each run at a share of 1"}
    return {
        **machine,
        **(budget if record.question.kind == "variants" else {}),
        "side by side": _side_by_side(results),
        "corpus": f"{Path(record.corpus_folder).name} (fingerprint {record.question.corpus})",
        "unigram entropy": f"{record.entropy:.3f} nats (validation text)",
        "precision": record.settings.precision,
        "compiled": "yes" if record.settings.compile else "no",
    }
