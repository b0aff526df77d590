"""The report on an evaluation: the sentences, probes by layer, the other scores."""

from pathlib import Path

import altair as alt
import pandas as pd

from stackbert.evaluation.evaluate import read_evaluation
from stackbert.reports.charts import colours, intervals, specification
from stackbert.reports.page import Chart, Page, Table

_NOTE = (
    "Probes (their last layer) and pairs in hundredths, losses in nats; ± is a standard error over "
    "sentences, pairs or passages."
)


def page(folder: Path) -> Page:
    """The report of a folder that `stackbert evaluate` wrote; UserError if it is another."""
    result = read_evaluation(folder)
    parts: list[Chart | Table] = []
    for table in result.tables().values():
        is_probes = "embeddings" in table
        parts += _by_layer(result.layers) if is_probes else _intervals(table)
        formats = dict.fromkeys(table.select_dtypes("float"), "{:.4g}")
        parts.append(Table("Probes" if is_probes else "Other scores", table, _NOTE, formats))
    parts.append(Table("Models", result.models, formats={"seconds": "{:.0f}"}, folded=True))
    facts = result.machine | result.settings
    title = f"Evaluation of {'; '.join(result.models['model'])}"
    return Page(title, tuple(result.sentences()), tuple(parts), facts)


def _by_layer(layers: pd.DataFrame) -> list[Chart]:
    """A chart a probe, a line a model, dashed for its random weights."""
    charts = []
    for test, rows in layers.groupby("test", sort=False):
        rows = _with_bounds(rows[rows["metric"] == rows["metric"].iloc[0]])
        numbers = alt.Axis(values=sorted(set(rows["layer"])), format="d")
        base = alt.Chart(rows).encode(
            x=alt.X("layer:Q", title="layer (0: embeddings)", axis=numbers),
            y=alt.Y("score:Q", title=rows["metric"].iloc[0], scale=alt.Scale(zero=False)),
            color=colours("model", list(dict.fromkeys(rows["model"]))),
            strokeDash=alt.StrokeDash("weights:N", title=None, sort=["trained", "random"]),
            tooltip=["model:N", "weights:N", "layer:Q", alt.Tooltip("score:Q", format=".1f")],
        )
        bars = base.mark_rule().encode(y="low:Q", y2="high:Q", strokeDash=alt.value([1, 0]))
        charts.append(Chart(f"{test}, by layer", specification(alt.layer(bars, base.mark_line()))))
    return charts


def _intervals(scores: pd.DataFrame) -> list[Chart]:
    rows = scores[scores["metric"] != "nats per token"]  # per byte they compare
    rows = _with_bounds(rows).rename(columns={"score": "mean"})
    return [
        Chart(test, intervals(of_test, y="metric", title="score, 95 % interval", colour="model"))
        for test, of_test in rows.groupby("test", sort=False)
    ]


def _with_bounds(rows: pd.DataFrame) -> pd.DataFrame:
    noise = 1.96 * rows["±"]
    return rows.assign(low=rows["score"] - noise, high=rows["score"] + noise)
