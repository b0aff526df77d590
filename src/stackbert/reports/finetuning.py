"""The report on fine-tuning: the sentences, scores with their intervals, differences, settings."""

from pathlib import Path

import pandas as pd

from stackbert.finetuning.result import read_finetune
from stackbert.reports.charts import intervals
from stackbert.reports.page import Chart, Page, Table

_BOUNDS = {"difference": "mean", "difference_low": "low", "difference_high": "high"}
_POINTS = dict.fromkeys(("guess", *_BOUNDS, *_BOUNDS.values()), "{:.1f}")
_NOTE = (
    "Points of a hundred on the dev set; low and high are a 95 % interval over seeds. A failed run "
    "ended no better than guessing the commonest answer and counts all the same."
)


def page(folder: Path) -> Page:
    """The report of a folder that `stackbert finetune` wrote, whatever has finished of it."""
    result = read_finetune(folder)
    table, other = result.table(), result.table(headline=False)
    tasks = result.tasks.values()
    settings = pd.DataFrame({task.title: task.sizes | dict(task.settings) for task in tasks})
    settings = settings.astype(str).reset_index(names="setting")
    parts = (
        *(_charts(table) if len(table) else ()),
        Table("Scores", table, _NOTE, _POINTS),
        Table("Other metrics", other, formats=_POINTS, folded=True),
        Table("Rows and settings", settings, folded=True),
        Table("Runs", result.runs, folded=True),
    )
    models = "; ".join(model.name for model in result.models)
    return Page(f"Fine-tuning of {models}", tuple(result.verdict()), parts, result.machine)


def _charts(table: pd.DataFrame) -> list[Chart]:
    rows = table.assign(row=table["task"] + " (" + table["metric"] + ")")
    options = {"y": "row", "colour": "model"}
    charts = [Chart("Scores", intervals(rows, title="points of a hundred", **options))]
    if "difference" in rows:
        told = rows.dropna(subset="difference")
        told = told.drop(columns=[*_BOUNDS.values()]).rename(columns=_BOUNDS)
        spec = intervals(told, title="points", zero="no difference", **options)
        charts.append(Chart("Differences", spec, "To the first model, paired by seed."))
    return charts
