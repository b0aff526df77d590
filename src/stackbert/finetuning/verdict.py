"""What a study says: a table of scores with their noise, and plain sentences."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from stackbert.finetuning.tasks import GLUE
from stackbert.intervals import interval
from stackbert.tables import table_text
from stackbert.units import counted, format_duration

if TYPE_CHECKING:
    from stackbert.finetuning.study import FinetuneResult


class _Measure(NamedTuple):
    """A number that models are judged by, in points of a hundred."""

    task: str
    metric: str
    guess: float
    values: pd.DataFrame  # a row a seed (of groups a pre-training seed), a column a model
    runs: pd.DataFrame  # their rows among the scores; none of an average


def score_table(
    result: "FinetuneResult", *, headline: bool = True, base: str | None = None
) -> pd.DataFrame:
    """A row for every measure and model, in points of a hundred.

    Intervals are Student's, of 95 %, over seeds; with groups over pre-training seeds, each the mean
    of its runs. Differences are paired. A run that is not above guessing has failed; it counts in
    the mean all the same, and one that diverged counts as guessing.

    Args:
        result: of a study.
        headline: the headline metrics and GLUE's average, or all other metrics.
        base: the model that the others are compared with; by default the first.

    Returns:
        Columns as their names say; the outcome is "better", "worse", "no difference" (beyond
        noise), "one seed", or "no information" where no model is above guessing by more than its
        interval.
    """
    base = base or result.models[0].name
    rows = []
    for measure in _measures(result, headline):
        for name, values in measure.values.items():
            mean, low, high = interval(values.dropna())
            runs = measure.runs[measure.runs["model"] == name]
            row: dict[str, Any] = {
                "task": measure.task,
                "metric": measure.metric,
                "model": name,
                "mean": mean,
                "low": low,
                "high": high,
                "median": values.median(),
                "runs": len(runs),
                "failed": int((runs["score"] <= runs["guess"]).sum()),
                "guess": measure.guess,
            }
            pairs = (values - measure.values.get(base, math.nan)).dropna()
            if name != base and len(pairs):
                row["difference"], low, high = interval(pairs)
                row |= {"difference_low": low, "difference_high": high, "pairs": len(pairs)}
                row["outcome"] = _outcome(low, high)
            rows.append(row)
    table = pd.DataFrame(rows)
    if "outcome" in table:
        told = _is_informative(table) | table["outcome"].isna()
        table["outcome"] = table["outcome"].where(told, "no information")
    return table


def _outcome(low: float, high: float) -> str:
    if math.isnan(low):
        return "one seed"
    return "better" if low > 0 else "worse" if high < 0 else "no difference"


def _is_informative(table: pd.DataFrame) -> "pd.Series[bool]":
    """Whether a model is above guessing by more than its interval; of one run, at all."""
    is_above = table["low"].fillna(table["mean"]) > table["guess"]
    # An average is informative if one of its tasks is.
    return is_above.groupby(table["task"]).transform("any") | (
        table["guess"].isna() & is_above.any()
    )


def _measures(result: "FinetuneResult", headline: bool) -> Iterator[_Measure]:
    scores = result.scores.assign(score=100 * result.scores["score"])
    scores["guess"] *= 100
    names = list(dict.fromkeys(model.name for model in result.models))
    unit = "member" if scores["member"].nunique() > 1 else "seed"
    by_task: dict[str, list[pd.DataFrame]] = {}
    for (task, split, metric), runs in scores.groupby(["task", "split", "metric"], sort=False):
        record = result.tasks[task]
        values = runs.pivot_table(index=unit, columns="model", values="score")
        values = values[[name for name in names if name in values]]
        if metric in (record.metrics[:1] if headline else record.metrics[1:]):
            title = record.title + split.removeprefix("dev").replace("_", " ")
            yield _Measure(title, metric, float(runs["guess"].iloc[0]), values, runs)
        if metric in record.metrics and task in GLUE and task != "wnli":
            by_task.setdefault(task, []).append(values)
    if headline and len(by_task) > 1:
        # GLUE's own average is over tasks, each the mean over its metrics and halves. WNLI is left
        # out, as by Devlin et al. (2019): learning from its training set misleads on its dev set.
        tasks = [sum(frames) / len(frames) for frames in by_task.values()]
        average = (sum(tasks) / len(tasks)).dropna(axis=1, how="all")
        yield _Measure("GLUE average", "mean", math.nan, average, scores[:0])


def summary(result: "FinetuneResult") -> str:
    """The score table as text, with fewer columns, for a terminal."""
    points = ("mean", "low", "high", "guess", "difference", "from", "to")
    table = score_table(result).rename(columns={"difference_low": "from", "difference_high": "to"})
    table = table.drop(columns=["median", "pairs"], errors="ignore")
    return table_text(table, formats=dict.fromkeys(points, "{:.1f}"))


def sentences(result: "FinetuneResult") -> list[str]:
    """What can be said, the most important first."""
    if result.scores.empty:
        return ["No run has finished yet."]
    table = score_table(result)
    names = list(dict.fromkeys(model.name for model in result.models if not model.untrained))
    controls = [name for name in dict.fromkeys(table["model"]) if name not in names]
    base, *others = names
    lines = []
    for other in others:
        told = _told(table[table["model"] == other])
        nothing = f"These tasks cannot tell {other} and {base} apart."
        lines.append(f"{other} against {base}: {told}." if told else nothing)
    if not others:
        rows = table[table["model"] == base].itertuples()
        lines.append(f"{base}: {', '.join(f'{row.task} {row.mean:.1f}' for row in rows)}.")
    if controls:
        lines += _against_controls(result, names, controls)
    if silent := list(table["task"][~_is_informative(table) & table["guess"].notna()].unique()):
        lines.append(
            f"{_listed(silent)} {'carries' if len(silent) == 1 else 'carry'} no information: no "
            "model beats guessing the commonest answer by more than its interval."
        )
    return lines + _caveats(result)


def _told(rows: pd.DataFrame) -> str:
    """What the measures that carry information say: "better on CoLA +1.1 (+0.9 to +1.3)"."""
    found: dict[str, list[str]] = {}
    for row in rows[rows["outcome"].notna()].to_dict("records"):
        if row["outcome"] != "no information":
            low, high = _signed(row["difference_low"]), _signed(row["difference_high"])
            inside = [f"{low} to {high}"] if row["pairs"] > 1 else []
            inside += [row["base"]] if "base" in row else []
            shown = f"{row['task']} {_signed(row['difference'])}"
            shown += f" ({', '.join(inside)})" if inside else ""
            found.setdefault(row["outcome"], []).append(shown)
    noiseless = "one seed in common, which says nothing of noise,"
    return "; ".join(
        f"{noiseless if outcome == 'one seed' else outcome} on {', '.join(shown)}"
        for outcome, shown in found.items()
    )


def _against_controls(
    result: "FinetuneResult", names: Sequence[str], controls: Sequence[str]
) -> list[str]:
    """What pre-training adds: every model against the control that it is least surely above."""
    tables = [score_table(result, base=control).assign(base=control) for control in controls]
    table = pd.concat(tables).query("model in @names and runs > 0 and outcome != 'no information'")
    groups = table[table["outcome"].notna()].groupby(["model", "task"], sort=False)
    by = ["difference_low", "difference"]
    closest = [group.sort_values(by, na_position="first")[:1] for _, group in groups]
    if not closest:
        return []
    told, lines = pd.concat(closest), []
    for name, rows in told.groupby("model", sort=False):
        above = (rows["outcome"] == "better").sum()
        lines.append(
            f"{name} is above every control ({', '.join(controls)}) beyond noise on {above} of "
            f"{counted(len(rows), 'measure')}. Against the closest: {_told(rows)}."
        )
    above = told[told["outcome"].isin(["better", "one seed"])]["task"]
    if silent := [task for task in dict.fromkeys(told["task"]) if task not in set(above)]:
        lines.append(
            f"{_listed(silent)}: no model is above every control, so we make no claim that "
            "pre-training helps; the task's own training rows are enough for such a score."
        )
    return lines


def _caveats(result: "FinetuneResult") -> list[str]:
    runs, lines = result.runs, []
    dev = result.scores[result.scores["split"] == "dev"]
    headlines = [result.tasks[task].metrics[0] for task in dev["task"]]
    failed = dev[(dev["metric"] == headlines) & (dev["score"] <= dev["guess"])]
    if len(failed):
        counts = failed["task"].value_counts(sort=False).items()
        where = ", ".join(f"{result.tasks[task].title} {count}" for task, count in counts)
        lines.append(
            f"{len(failed)} of {counted(len(runs), 'run')} failed: they diverged "
            f"({runs['diverged'].sum()}) or ended no better than guessing ({where}). They count in "
            "every mean."
        )
    if result.unfinished:
        lines.append(f"Not finished: {counted(result.unfinished, 'run')}.")
    lines += [note for task in result.tasks.values() for note in task.notes]
    seconds = float(runs["seconds"].sum() + runs["predicting"].sum())
    return [*lines, f"{counted(len(runs), 'run')} took {format_duration(seconds)}."]


def _signed(value: float) -> str:
    """A difference in points: "+1.3", "−0.4"."""
    return f"{value:+.1f}".replace("-", "−")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
