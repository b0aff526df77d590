"""What a study says: a table of scores with their noise, and plain sentences."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from scipy.stats import t

from stackbert.finetuning.tasks import GLUE
from stackbert.units import counted, format_duration

if TYPE_CHECKING:
    from stackbert.finetuning.study import FinetuneResult

METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "f1_macro": "macro F1",
    "matthews": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "exact_match": "exact match",
}


class _Measure(NamedTuple):
    """A number that models are judged by, in points of a hundred."""

    task: str
    """Title: "MNLI", or "MNLI mismatched" for its other half."""
    metric: str
    guess: float
    """What always giving the commonest answer scores; NaN of an average."""
    values: pd.DataFrame
    """A row a seed (of groups a pre-training seed, the mean over its runs), a column a model."""
    runs: pd.DataFrame
    """Their rows among the scores."""
    informative: bool
    """Whether a model is above guessing by more than its interval; of one run, at all."""


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
        task, metric, model, mean, low, high, median, runs, failed, guess, difference,
        difference_low, difference_high, pairs, and outcome: "better", "worse", "no difference"
        beyond noise, "one seed", or "no information" where no model is above guessing by more than
        its interval; of checkpoints instead run, step, seconds and depth of pre-training.
    """
    models = {model.name: model for model in result.models}
    base = base or result.models[0].name
    rows = []
    for measure in _measures(result, headline):
        for name in (name for name in models if name in measure.values):
            mean, low, high = _interval(measure.values[name])
            runs = measure.runs[measure.runs["model"] == name]
            row: dict[str, Any] = {"task": measure.task, "metric": measure.metric, "model": name}
            row |= {"mean": mean, "low": low, "high": high, "median": measure.values[name].median()}
            row |= {"runs": len(runs), "failed": int((runs["score"] <= runs["guess"]).sum())}
            row |= {"guess": measure.guess}
            if models[name].run is not None:
                row |= models[name].model_dump(include={"run", "step", "seconds", "depth"})
            elif base in measure.values and name != base:
                pairs = (measure.values[name] - measure.values[base]).dropna()
                mean, low, high = _interval(pairs)
                row |= {"difference": mean, "difference_low": low, "difference_high": high}
                row |= {"pairs": len(pairs), "outcome": _outcome(low, high, measure.informative)}
            rows.append(row)
    return pd.DataFrame(rows)


def summary(result: "FinetuneResult") -> pd.DataFrame:
    """The score table as text, with fewer columns, for a terminal."""
    table = score_table(result)
    halves = (table["high"] - table["mean"]).map(" ± {:.1f}".format, na_action="ignore")
    table["mean ± 95 %"] = table["mean"].map("{:.1f}".format) + halves.fillna("")
    table["guess"] = table["guess"].map("{:.1f}".format, na_action="ignore")
    differences = ["difference", "difference_low", "difference_high"]
    for name in table.columns.intersection(differences):
        table[name] = table[name].map(_signed, na_action="ignore")
    columns = ["task", "metric", "model", "step", "mean ± 95 %", "runs", "failed", "guess"]
    table = table[[c for c in (*columns, *differences, "outcome") if c in table]]
    return table.rename(columns={"difference_low": "from", "difference_high": "to"}).fillna("")


def _signed(value: float) -> str:
    """A difference in points: "+1.3", "−0.4", "0.0"."""
    shown = f"{value:+.1f}".replace("-", "−")
    return shown[1:] if shown[1:] == "0.0" else shown


def _interval(values: "pd.Series[float]") -> tuple[float, float, float]:
    """Mean and bounds of its 95 % interval; the bounds of one value are NaN."""
    mean, number = float(values.mean()), int(values.count())
    half = float(t.ppf(0.975, number - 1) * values.sem()) if number > 1 else math.nan
    return mean, mean - half, mean + half


def _outcome(low: float, high: float, informative: bool) -> str:
    if not informative or math.isnan(low):
        return "one seed" if informative else "no information"
    return "better" if low > 0 else "worse" if high < 0 else "no difference"


def _measures(result: "FinetuneResult", headline: bool) -> Iterator[_Measure]:
    scores = result.scores.assign(score=100 * result.scores["score"])
    scores["guess"] *= 100
    unit = "member" if scores["member"].nunique() > 1 else "seed"
    by_task: dict[str, list[pd.DataFrame]] = {}
    informative = False
    for (task, split, metric), runs in scores.groupby(["task", "split", "metric"], sort=False):
        record = result.tasks[task]
        values = runs.pivot_table(index=unit, columns="model", values="score", sort=False)
        title = record.title + split.removeprefix("dev").replace("_", " ")
        guess = float(runs["guess"].iloc[0])
        columns = [values[name] for name in values]
        above = any((x[0] if math.isnan(x[1]) else x[1]) > guess for x in map(_interval, columns))
        if metric in (record.metrics[:1] if headline else record.metrics[1:]):
            yield _Measure(title, METRICS[metric], guess, values, runs, above)
        if metric in record.metrics and task in GLUE and task != "wnli":
            by_task.setdefault(task, []).append(values)
            informative |= above
    if headline and len(by_task) > 1:
        # GLUE's own average is over tasks, each the mean over its metrics and halves. WNLI is left
        # out, as by Devlin et al. (2019): learning from its training set misleads on its dev set.
        means = [sum(frames) / len(frames) for frames in by_task.values()]
        average = (sum(means) / len(means)).dropna(axis=1, how="all")
        yield _Measure("GLUE average", "mean", math.nan, average, scores[:0], informative)


def sentences(result: "FinetuneResult") -> list[str]:
    """What can be said, the most important first."""
    if result.scores.empty:
        return ["No run has finished yet."]
    table = score_table(result)
    names = list(dict.fromkeys(model.name for model in result.models if not model.untrained))
    control = next((model.name for model in result.models if model.untrained), None)
    lines: list[str] = []
    if result.models[0].run is None:
        base, *others = names
        for other in others:
            nothing = f"These tasks cannot tell {other} and {base} apart."
            lines += _compared(table, other, base) or [nothing]
        if not others:
            rows = table[table["model"] == base].itertuples()
            lines.append(f"{base}: {', '.join(f'{row.task} {row.mean:.1f}' for row in rows)}.")
        if control:
            lines += _beyond_control(score_table(result, base=control), names, control)
    silent = [m.task for m in _measures(result, True) if not m.informative and len(m.runs)]
    if silent:
        lines.append(
            f"{_listed(silent)} {'carries' if len(silent) == 1 else 'carry'} no information: no "
            "model beats guessing the commonest answer by more than its interval."
        )
    return lines + _caveats(result)


def _compared(table: pd.DataFrame, name: str, base: str) -> list[str]:
    """What the measures that carry information say of two models."""
    how = {
        "better": f"{name} is better than {base}",
        "worse": f"{name} is worse than {base}",
        "no difference": f"{name} and {base} do not differ beyond noise",
        "one seed": f"{name} and {base} have one seed in common, which says nothing of noise",
    }
    rows = table[(table["model"] == name) & table["outcome"].isin(how)]
    counts = rows[rows["runs"] > 0]["outcome"].value_counts(sort=False)
    lines = []
    if counts.sum() > 1:
        shown = ", ".join(f"{outcome} on {count}" for outcome, count in counts.items())
        lines.append(f"{name} against {base}, {counts.sum()} measures: {shown}.")
    for row in rows.to_dict("records"):
        what = f"{row['task']} ({row['metric']})" if row["runs"] else row["task"]
        found = f"{_signed(row['difference'])} points"
        if row["pairs"] > 1:
            between = f"{_signed(row['difference_low'])} to {_signed(row['difference_high'])}"
            found += f" (95 % interval {between}, {row['pairs']:.0f} pairs)"
        lines.append(f"{what}: {how[row['outcome']]}, {found}.")
    if counts.sum() > 4:
        lines.append("One interval in twenty leaves out zero by chance alone.")
    return lines


def _beyond_control(table: pd.DataFrame, names: Sequence[str], control: str) -> list[str]:
    """What pre-training adds: every model against the first one with random weights."""
    lines = [line for name in names for line in _compared(table, name, control)]
    told = table[table["outcome"].notna() & (table["outcome"] != "no information")]
    told = told[told["runs"] > 0]
    above = told[told["outcome"].isin(["better", "one seed"])]["task"]
    silent = list(told[~told["task"].isin(above)]["task"].unique())
    if silent:
        lines.append(
            f"{_listed(silent)}: no model beats {control}, the first model with random weights, so "
            "we make no claim that pre-training helps; the task's own training rows are enough for "
            "such a score."
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
            f"{len(failed)} of {counted(len(runs), 'run')} failed: they ended no better than "
            f"guessing ({where}). They count in every mean."
        )
    if runs["diverged"].any():
        lines.append(f"{counted(runs['diverged'].sum(), 'run')} diverged and count as guessing.")
    if result.unfinished:
        lines.append(f"Not finished: {counted(result.unfinished, 'run')}.")
    if result.missing:
        lines.append(f"There is no data for {_listed(result.missing)}.")
    lines += [note for task in result.tasks.values() for note in task.notes]
    seconds = float(runs["seconds"].sum() + runs["predicting"].sum())
    return [*lines, f"{counted(len(runs), 'run')} took {format_duration(seconds)}."]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
