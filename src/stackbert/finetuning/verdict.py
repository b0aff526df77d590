"""What a study says: a table of scores with their noise, and plain sentences."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from stackbert.intervals import interval
from stackbert.tables import table_text
from stackbert.units import counted, format_duration

if TYPE_CHECKING:
    from stackbert.finetuning.study import FinetuneResult


def score_table(
    result: "FinetuneResult", *, headline: bool = True, base: str | None = None
) -> pd.DataFrame:
    """A row for every task, split, metric and model or control, in points of a hundred.

    Intervals are Student's, of 95 %, over seeds; with groups over pre-training seeds, each the mean
    of its runs. Differences are paired. A run that is not above guessing has failed; it counts in
    the mean all the same, and one that diverged counts as guessing.

    Args:
        result: of a study.
        headline: the headline metrics, or all others.
        base: the model or control that the others are compared with; by default the first model.

    Returns:
        Columns as their names say; the outcome is "better", "worse", "no difference" (beyond
        noise), "one seed", or "no information" where no model is above guessing by more than its
        interval (of one run, at all).
    """
    models = list(dict.fromkeys(model.name for model in result.models))
    base = base or models[0]
    scores = result.scores.assign(score=100 * result.scores["score"])
    unit = "member" if scores["member"].nunique() > 1 else "seed"
    rows = []
    for (task, split, metric), runs in scores.groupby(["task", "split", "metric"], sort=False):
        record, guess = result.tasks[task], 100 * float(runs["guess"].iloc[0])
        if metric not in (record.metrics[:1] if headline else record.metrics[1:]):
            continue
        # A row a seed or member; a control without an encoder has one score for all of them.
        values = runs.pivot_table(index=unit, columns="model", values="score")
        values = values[[name for name in models if name in values]]
        is_informative = any(_low(values[name]) > guess for name in values)
        for control, found in record.controls.items():
            values[control] = 100 * found[split][metric]
        for name in values:
            own = runs[runs["model"] == name]
            mean, low, high = interval(values[name].dropna())
            row: dict[str, Any] = {
                "task": record.title + split.removeprefix("dev").replace("_", " "),
                "metric": metric,
                "model": name,
                "mean": mean,
                "low": low,
                "high": high,
                "runs": len(own),
                "failed": int((own["score"] <= guess).sum()),
                "guess": guess,
                "lr": ", ".join(f"{rate:g}" for rate in sorted(set(own["learning_rate"]))),
                "informative": is_informative,
            }
            pairs = (values[name] - values.get(base, math.nan)).dropna()
            if name != base and len(pairs):
                row["difference"], low, high = interval(pairs)
                row |= {"difference_low": low, "difference_high": high, "pairs": len(pairs)}
                row["outcome"] = _outcome(low, high) if is_informative else "no information"
            rows.append(row)
    return pd.DataFrame(rows)


def _low(values: "pd.Series[float]") -> float:
    mean, low, _ = interval(values.dropna())
    return mean if math.isnan(low) else low


def _outcome(low: float, high: float) -> str:
    if math.isnan(low):
        return "one seed"
    return "better" if low > 0 else "worse" if high < 0 else "no difference"


def summary(result: "FinetuneResult") -> str:
    """The score table as text, with fewer columns, for a terminal."""
    points = ("mean", "low", "high", "guess", "difference", "from", "to")
    table = score_table(result).rename(columns={"difference_low": "from", "difference_high": "to"})
    table = table.drop(columns=["pairs", "informative"], errors="ignore")
    return table_text(table, formats=dict.fromkeys(points, "{:.1f}"))


def sentences(result: "FinetuneResult") -> list[str]:
    """What can be said, the most important first."""
    if result.scores.empty:
        return ["No run has finished yet."]
    table = score_table(result)
    names = list(dict.fromkeys(model.name for model in result.models if not model.untrained))
    base, *others = names
    lines = []
    for other in others:
        told = _told(table[table["model"] == other])
        nothing = f"These tasks cannot tell {other} and {base} apart."
        lines.append(f"{other} against {base}: {told}." if told else nothing)
    if not others:
        rows = table[table["model"] == base].itertuples()
        lines.append(f"{base}: {', '.join(f'{row.task} {row.mean:.1f}' for row in rows)}.")
    if controls := [name for name in table["model"].unique() if name not in names]:
        lines += _against_controls(result, names, controls)
    if silent := list(table.loc[~table["informative"], "task"].unique()):
        lines.append(
            f"No information: {', '.join(silent)}. No model beats guessing the commonest answer by "
            "more than its interval."
        )
    return lines + _caveats(result)


def _told(rows: pd.DataFrame) -> str:
    """What the tasks that carry information say: "better on CoLA +1.1 (+0.9 to +1.3)"."""
    found: dict[str, list[str]] = {}
    if "outcome" not in rows:
        return ""
    for row in rows[rows["outcome"].notna() & rows["informative"]].to_dict("records"):
        low, high = _signed(row["difference_low"]), _signed(row["difference_high"])
        inside = [f"{low} to {high}"] if row["pairs"] > 1 else []
        inside += [row["base"]] if "base" in row else []
        shown = f"{row['task']} {_signed(row['difference'])}"
        shown += f" ({', '.join(inside)})" if inside else ""
        found.setdefault(row["outcome"], []).append(shown)
    one = "one seed in common, which says nothing of noise,"
    return "; ".join(
        f"{one if outcome == 'one seed' else outcome} on {', '.join(shown)}"
        for outcome, shown in found.items()
    )


def _against_controls(
    result: "FinetuneResult", names: Sequence[str], controls: Sequence[str]
) -> list[str]:
    """What pre-training adds: every model against the control that it is least surely above."""
    tables = [score_table(result, base=control).assign(base=control) for control in controls]
    table = pd.concat(tables)
    table = table[table["model"].isin(names) & table["outcome"].notna() & table["informative"]]
    if table.empty:
        return []
    # One seed in common has no bounds and shows nothing, so it comes first.
    table = table.sort_values(["difference_low", "difference"], na_position="first")
    told = table.drop_duplicates(["model", "task"]).sort_index()
    lines = []
    for name, rows in told.groupby("model", sort=False):
        above = (rows["outcome"] == "better").sum()
        lines.append(
            f"{name} is above every control ({', '.join(controls)}) beyond noise on {above} of "
            f"{counted(len(rows), 'measure')}. Against the closest: {_told(rows)}."
        )
    above = set(told.loc[told["outcome"].isin(["better", "one seed"]), "task"])
    if silent := [task for task in told["task"].unique() if task not in above]:
        lines.append(
            f"On {', '.join(silent)} no model is above every control, so we make no claim that "
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
