"""The report on fine-tuning: the sentences, scores with their intervals, differences, settings."""

from pathlib import Path

import pandas as pd

from stackbert.finetuning.result import FinetuneResult, read_finetune
from stackbert.reports.charts import intervals
from stackbert.reports.page import Chart, Page, Table

_POINTS = dict.fromkeys(
    ("mean", "low", "high", "guess", "difference", "difference_low", "difference_high"),
    "{:.1f}",
)
_NOTE = (
    "Points of a hundred on the dev set; low and high are a 95 % interval over seeds. A failed run "
    "ended no better than guessing the commonest answer and counts all the same."
)


def finetune_page(folder: Path) -> Page:
    """The report of a folder that `stackbert finetune` wrote, whatever has finished of it.

    Raises:
        UserError: it holds no fine-tuning.
    """
    result = read_finetune(folder)
    parts: list[Chart | Table] = []
    if len(result.scores):
        table = result.table()
        parts += [
            *_charts(table),
            Table("Scores", table.drop(columns="informative"), _NOTE, _POINTS),
        ]
        other = result.table(headline=False).drop(columns="informative", errors="ignore")
        parts.append(Table("Other metrics", other, formats=_POINTS, folded=True))
        parts.append(_failed(result))
    parts += [_settings(result), Table("Runs", result.runs, folded=True)]
    models = "; ".join(model.name for model in result.models)
    facts = {name: str(value) for name, value in result.machine.items()}
    return Page(
        f"Fine-tuning of {models}",
        tuple(result.verdict()),
        tuple(part for part in parts if isinstance(part, Chart) or len(part.frame)),
        facts,
    )


def _charts(table: pd.DataFrame) -> list[Chart]:
    rows = table.assign(row=table["task"] + " (" + table["metric"] + ")")
    charts = [
        Chart("Scores", intervals(rows, y="row", title="points of a hundred", colour="model"))
    ]
    if "difference" in table and table["difference"].notna().any():
        told = rows[rows["difference"].notna()].drop(columns=["mean", "low", "high"])
        told = told.rename(
            columns={"difference": "mean", "difference_low": "low", "difference_high": "high"}
        )
        spec = intervals(told, y="row", title="points", zero="no difference", colour="model")
        charts.append(Chart("Differences", spec, "To the first model, paired by seed."))
    return charts


def _failed(result: FinetuneResult) -> Table:
    bad = result.scores[result.scores["score"] <= result.scores["guess"]]
    columns = ["task", "model", "seed", "split", "metric", "score", "guess"]
    formats = {"score": "{:.3f}", "guess": "{:.3f}"}
    return Table("Runs that are not above guessing", bad[columns], formats=formats, folded=True)


def _settings(result: FinetuneResult) -> Table:
    rows = {
        task.title: {**task.sizes, **task.settings.model_dump()} for task in result.tasks.values()
    }
    frame = pd.DataFrame(rows).astype(str).reset_index(names="setting")
    return Table("Rows and settings", frame, folded=True)
