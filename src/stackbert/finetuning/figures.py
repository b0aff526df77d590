"""A study's figures as Vega-Lite specifications: scores, differences, scores along pre-training."""

from typing import TYPE_CHECKING, Any

from stackbert.finetuning.results import FinetuneResults, Measure
from stackbert.finetuning.verdict import differences, metric_name
from stackbert.reporting.wording import time_unit

if TYPE_CHECKING:
    from stackbert.reporting.charts import Rows

_ROW = 22
"""Pixels for a contender in a task's place."""
_ROOM = 60


def scores_figure(results: FinetuneResults) -> dict[str, Any]:
    """Every contender's mean on every task, with its 95 % interval, and what guessing scores."""
    import altair as alt

    from stackbert.reporting.charts import GREY, colours, specification

    rows = [
        {
            "task": _label(measure),
            "model": contender.name,
            "score": 100 * score.mean.mean,
            "low": _hundredfold(score.mean.low),
            "high": _hundredfold(score.mean.high),
            "guess": 100 * measure.guess,
            "runs": score.runs,
            "failed": score.failed,
        }
        for measure in results.measures()
        for contender in results.contenders
        if (score := results.score(contender, measure)) is not None
    ]
    names = [contender.name for contender in results.contenders]
    tasks = list(dict.fromkeys(str(row["task"]) for row in rows))
    base = alt.Chart(alt.NamedData(name="scores")).encode(
        y=alt.Y("task:N", title=None, sort=tasks),
        yOffset=alt.YOffset("model:N", sort=names),
        color=colours("model", names),
    )
    near = alt.Scale(zero=False)
    title = "score, points"
    bars = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2, opacity=0.6)
        .encode(x=alt.X("low:Q", title=title, scale=near), x2="high:Q")
    )
    hover = [
        alt.Tooltip("task:N"),
        alt.Tooltip("model:N"),
        *(alt.Tooltip(f"{field}:Q", format=".1f") for field in ("score", "low", "high", "guess")),
        alt.Tooltip("runs:Q"),
        alt.Tooltip("failed:Q"),
    ]
    dots = base.mark_point(filled=True, size=70, opacity=1.0).encode(
        x=alt.X("score:Q", title=title, scale=near), tooltip=hover
    )
    guesses = (
        alt.Chart(alt.NamedData(name="scores"))
        .mark_tick(color=GREY, thickness=2)
        .encode(
            y=alt.Y("task:N", title=None, sort=tasks),
            x=alt.X("guess:Q", title=title, scale=near),
        )
    )
    height = _ROOM + len(tasks) * max(28, _ROW * len(names))
    chart = alt.LayerChart(layer=[guesses, bars, dots])
    return specification(chart, height=height, datasets={"scores": rows})


def differences_figure(results: FinetuneResults) -> dict[str, Any]:
    """Every other contender minus the first, with intervals; zero is a line."""
    import altair as alt

    from stackbert.reporting.charts import GREY, colours, specification

    base, *others = results.contenders
    rows = [
        {
            "task": _label(each.measure),
            "model": other.name,
            "difference": 100 * each.interval.mean,
            "low": _hundredfold(each.interval.low),
            "high": _hundredfold(each.interval.high),
            "verdict": each.outcome,
        }
        for other in others
        for each in differences(results, other, base)
    ]
    names = [contender.name for contender in results.contenders]  # colours as in the others
    tasks = list(dict.fromkeys(str(row["task"]) for row in rows))
    title = f"points above {base.name}"
    drawn = alt.Chart(alt.NamedData(name="differences")).encode(
        y=alt.Y("task:N", title=None, sort=tasks),
        yOffset=alt.YOffset("model:N", sort=names[1:]),
        color=colours("model", names, legend=len(others) > 1),
    )
    bars = (
        drawn.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2, opacity=0.6)
        .encode(x=alt.X("low:Q", title=title), x2="high:Q")
    )
    hover = [
        alt.Tooltip("task:N"),
        alt.Tooltip("model:N"),
        *(alt.Tooltip(f"{name}:Q", format="+.1f") for name in ("difference", "low", "high")),
        alt.Tooltip("verdict:N"),
    ]
    dots = drawn.mark_point(filled=True, size=70, opacity=1.0).encode(
        x=alt.X("difference:Q", title=title), tooltip=hover
    )
    zero = alt.Chart(alt.NamedData(name="zero")).mark_rule(color=GREY).encode(x="at:Q")
    height = _ROOM + len(tasks) * max(28, _ROW * len(others))
    datasets: dict[str, Rows] = {"differences": rows, "zero": [{"at": 0}]}
    chart = alt.LayerChart(layer=[zero, bars, dots])
    return specification(chart, height=height, datasets=datasets)


def along_figure(results: FinetuneResults, measure: Measure, *, over: str) -> dict[str, Any]:
    """Score over pre-training: a line a run, a dot a checkpoint, with intervals (figure 6).

    Args:
        results: of checkpoints.
        measure: what is drawn.
        over: "seconds" or "steps" of pre-training.
    """
    import altair as alt

    from stackbert.reporting.charts import GREY, colours, specification

    points = [
        (contender.members[0].progress, score)
        for contender in results.contenders
        if (score := results.score(contender, measure)) is not None
    ]
    reach = max((at.seconds for at, _ in points if at), default=0.0)
    unit, seconds = time_unit(reach)
    title = f"{unit} of pre-training" if over == "seconds" else "steps of pre-training"
    rows = [
        {
            "run": at.run,
            "at": at.seconds / seconds if over == "seconds" else at.step,
            "step": at.step,
            "layers": at.depth,
            "score": 100 * score.mean.mean,
            "low": _hundredfold(score.mean.low),
            "high": _hundredfold(score.mean.high),
            "runs": score.runs,
            "failed": score.failed,
        }
        for at, score in points
        if at is not None
    ]
    names = list(dict.fromkeys(str(row["run"]) for row in rows))
    y_title = f"{_label(measure)}, points"
    base = alt.Chart(alt.NamedData(name="along")).encode(
        x=alt.X("at:Q", title=title), color=colours("run", names)
    )
    y = alt.Y("score:Q", title=y_title, scale=alt.Scale(zero=False))
    bars = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2, opacity=0.6)
        .encode(y=alt.Y("low:Q", title=y_title), y2="high:Q")
    )
    hover = [
        alt.Tooltip("run:N"),
        alt.Tooltip("step:Q", format=",.0f"),
        alt.Tooltip("layers:Q"),
        *(alt.Tooltip(f"{field}:Q", format=".1f") for field in ("score", "low", "high")),
        alt.Tooltip("runs:Q"),
        alt.Tooltip("failed:Q"),
    ]
    lines = base.mark_line(strokeWidth=2).encode(y=y)
    dots = base.mark_point(filled=True, size=70, opacity=1.0).encode(y=y, tooltip=hover)
    guess = alt.Chart(alt.NamedData(name="guess")).mark_rule(color=GREY, strokeDash=[5, 4])
    layers = [guess.encode(y=alt.Y("score:Q", title=y_title)), bars, lines, dots]
    datasets: dict[str, Rows] = {"along": rows, "guess": [{"score": 100 * measure.guess}]}
    return specification(alt.LayerChart(layer=layers), datasets=datasets)


def _label(measure: Measure) -> str:
    return f"{measure.title} ({metric_name(measure.metric)})"


def _hundredfold(value: float | None) -> float | None:
    return None if value is None else 100 * value
