"""A study as tables, for the terminal and for a report."""

import io
from pathlib import Path

from stackbert.comparison.statistics import Interval
from stackbert.finetuning.folder import Contender
from stackbert.finetuning.results import FinetuneResults, Score, read_finetune
from stackbert.finetuning.settings import FinetuneSettings
from stackbert.finetuning.verdict import (
    difference_points,
    metric_name,
    points,
    range_points,
    statements,
)
from stackbert.reporting.content import Figure, Page, Table
from stackbert.reporting.wording import duration

_LISTED = 20
"""Rows from which a table is closed until clicked."""


def score_table(results: FinetuneResults, *, headline: bool = True) -> Table:
    """A row for every task and contender: the mean with its noise, and the distance to the first.

    Args:
        results: of models side by side.
        headline: the headline metrics; else all others.
    """
    base, *others = results.contenders
    columns = ("task", "metric", "model", "mean ± 95 %", "median", "runs", "failed", "guessing")
    more = (f"− {base.name}", "95 % interval", "verdict") if others else ()
    rows = [
        (*_score_cells(score), *(_difference_cells(results, score, base) if others else ()))
        for measure in results.measures(headline=headline)
        for contender in results.contenders
        if (score := results.score(contender, measure)) is not None
    ]
    several = any(len(contender.members) > 1 for contender in results.contenders)
    over = "pre-training seeds, each the mean of its fine-tuning runs" if several else "seeds"
    return Table(
        "Scores" if headline else "Other metrics",
        columns + more,
        tuple(rows),
        f"Points of a hundred on the dev split. Intervals are over {over}; differences are paired. "
        "'Guessing' is what always giving the commonest answer scores; a run that is not above it "
        "has failed, and counts all the same.",
        folded=not headline,
    )


def average_table(results: FinetuneResults) -> Table:
    """GLUE's average for every contender; no rows where fewer than two tasks have ended."""
    from stackbert.comparison.statistics import interval

    rows = []
    for contender in results.contenders:
        values = list(results.average_values(contender).values())
        if values:
            found = interval(values)
            rows.append((contender.name, _plus_minus(found), str(found.number)))
    return Table(
        "GLUE's average over these tasks",
        ("model", "mean ± 95 %", "seeds"),
        tuple(rows),
        "Each task's mean over its metrics, then the mean over the tasks (WNLI left out), over the "
        "seeds that all of them have. Of fewer tasks than GLUE's it compares with nothing else.",
    )


def along_table(results: FinetuneResults) -> Table:
    """A row a checkpoint: how far its pre-training was, and its scores."""
    measures = results.measures()
    rows = []
    for contender in results.contenders:
        at = contender.members[0].progress
        if at is not None:
            scores = (results.score(contender, measure) for measure in measures)
            cells = ("" if score is None else _with_failures(score) for score in scores)
            rows.append((at.run, f"{at.step:,}", duration(at.seconds), str(at.depth), *cells))
    names = (f"{measure.title} {metric_name(measure.metric)}" for measure in measures)
    return Table(
        "Scores along pre-training",
        ("run", "step", "time", "layers", *names),
        tuple(rows),
        "Time is of pre-training, by the run's own clock. Mean ± 95 % over seeds, in points; in "
        "brackets the runs that failed, if any.",
    )


def runs_table(results: FinetuneResults) -> Table:
    """Every run that has ended."""
    rows = []
    for run in results.runs:
        task = results.record.tasks[run.task]
        scores = run.result.scores.get("dev", {})
        shown = ", ".join(f"{metric_name(m)} {points(scores[m])}" for m in task.metrics if scores)
        losses = [loss for loss in run.result.losses if loss is not None]
        rows.append(
            (
                task.title,
                run.member.name,
                str(run.seed),
                shown or "diverged",
                f"{run.result.steps:,}",
                f"{losses[-1]:.3f}" if losses else "",
                duration(run.result.seconds),
                duration(run.result.predicting),
            )
        )
    columns = ("task", "model", "seed", "dev", "steps", "last loss", "training", "predicting")
    return Table("Runs", columns, tuple(rows), folded=len(rows) > _LISTED)


def settings_table(results: FinetuneResults) -> Table:
    """The settings of every task, a row a field."""
    tasks = list(results.record.tasks.values())
    rows = [
        (field, *(str(getattr(task.settings, field)) for task in tasks))
        for field in FinetuneSettings.model_fields
    ]
    sizes = [("training rows", *(f"{task.sizes['train']:,}" for task in tasks))]
    sizes += [("dev rows", *(f"{task.sizes['dev']:,}" for task in tasks))]
    sizes += [("seeds", *(str(task.seeds) for task in tasks))]
    columns = ("field", *(task.title for task in tasks))
    return Table("Settings", columns, (*sizes, *rows), folded=True)


def main_table(results: FinetuneResults) -> Table:
    """What is looked at first."""
    return along_table(results) if results.record.kind == "along" else score_table(results)


def as_text(table: Table) -> str:
    """A table for the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn

    drawn = Drawn(box=box.SIMPLE_HEAD, title=table.title, title_justify="left", pad_edge=False)
    numbers = [
        all(_is_number(row[place]) for row in table.rows) for place in range(len(table.columns))
    ]
    for name, is_number in zip(table.columns, numbers, strict=True):
        drawn.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*row)
    text = io.StringIO()
    console = Console(file=text, width=240, color_system=None, markup=False, highlight=False)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def finetune_page(folder: Path) -> Page:
    """The report of a folder that `finetune` wrote, as far as it has come.

    Raises:
        UserError: it is none, or damaged.
    """
    from stackbert.finetuning.figures import along_figure, differences_figure, scores_figure

    results = read_finetune(folder)
    figures: list[Figure] = []
    note = "Dots are means, bars 95 % intervals; the grey mark is what guessing scores."
    if results.runs and results.record.kind == "along":
        for measure in results.measures():
            for over in ("seconds", "steps"):
                title = f"{measure.title} over {over} of pre-training"
                figures.append(Figure(title, along_figure(results, measure, over=over), note))
    elif results.runs:
        figures.append(Figure("Scores by task", scores_figure(results), note))
        if len(results.contenders) > 1:
            figures.append(
                Figure(
                    f"Difference to {results.contenders[0].name}",
                    differences_figure(results),
                    "Paired by seed; a bar that crosses the line is no difference beyond noise.",
                )
            )
    tables = [main_table(results)]
    if results.record.kind == "models":
        tables += [average_table(results), score_table(results, headline=False)]
    tables += [runs_table(results), settings_table(results)]
    names = ", ".join(task.title for task in results.record.tasks.values())
    return Page(
        f"Fine-tuning on {names}",
        statements(results),
        (*figures, *(table for table in tables if table.rows)),
        _facts(results),
    )


def _score_cells(score: Score) -> tuple[str, ...]:
    return (
        score.measure.title,
        metric_name(score.measure.metric),
        score.contender.name,
        _plus_minus(score.mean),
        points(score.median),
        str(score.runs),
        str(score.failed) if score.failed else "",
        points(score.measure.guess),
    )


def _difference_cells(results: FinetuneResults, score: Score, base: Contender) -> tuple[str, ...]:
    if score.contender == base:
        return ("", "", "")
    found = results.difference(score.contender, base, score.measure)
    if found is None:
        return ("", "", "")
    mean = difference_points(found.interval.mean)
    return (mean, range_points(found.interval), found.outcome)


def _with_failures(score: Score) -> str:
    return _plus_minus(score.mean) + (f" ({score.failed})" if score.failed else "")


def _plus_minus(found: Interval) -> str:
    if found.high is None:
        return points(found.mean)
    return f"{points(found.mean)} ± {points(found.high - found.mean)}"


def _is_number(cell: str) -> bool:
    return not cell or cell.replace("−", "-").lstrip("+-")[:1].isdigit()


def _facts(results: FinetuneResults) -> dict[str, str]:
    machine = {name: str(value) for name, value in results.record.machine.items()}
    precisions = {task.settings.precision for task in results.record.tasks.values()}
    models = {
        member.name: f"{Path(member.folder).name}, fingerprint {member.fingerprint[:10]}"
        for member in results.record.members
    }
    return {**machine, "precision": ", ".join(sorted(precisions)), **models}
