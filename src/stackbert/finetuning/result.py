"""What a study found: its record, a table of scores with their noise, and plain sentences."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from stackbert.files import Record
from stackbert.finetuning.controls import Scores
from stackbert.finetuning.models import Model
from stackbert.finetuning.tasks import Settings
from stackbert.finetuning.train import RunResult
from stackbert.intervals import interval
from stackbert.tables import Frame, Tables, table_text
from stackbert.units import counted, format_duration

FINETUNE = "finetune.json"
RUN = ["task", "model", "member", "seed"]
COSTS = ["steps", "loss", "seconds", "predicting", "diverged", "tested", "learning_rate"]
COLUMNS = [*RUN, "split", "metric", "score", "guess", *COSTS]


class TaskRecord(BaseModel):
    """A task as it is run in a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    metrics: tuple[str, ...]  # the first is the headline
    settings: Settings
    sizes: dict[str, int]  # rows of each split
    fingerprints: dict[str, str]
    seeds: int  # runs of each model
    notes: tuple[str, ...]
    controls: Scores = Field(default_factory=dict)


class FinetuneResult(Record, Tables):
    """All runs that have ended in a folder: its finetune.json."""

    what: ClassVar[str] = "a folder of 'stackbert finetune'"
    version: ClassVar[int] = 3

    machine: dict[str, Any]
    models: tuple[Model, ...] = ()
    """The first is the one that others are compared with; the control comes last."""
    tasks: dict[str, TaskRecord] = Field(default_factory=dict)
    scores: Frame = pd.DataFrame(columns=COLUMNS)
    """A row for every run, split and metric: task, model, member, seed, split, metric, score,
    guess (what always giving the commonest answer scores; a run that diverged has this score), and
    of the run steps, loss, seconds of training, of predicting, diverged, tested, learning_rate."""

    @property
    def runs(self) -> pd.DataFrame:
        """A row a run: what it cost."""
        return self.scores.drop_duplicates(RUN)[[*RUN, *COSTS]]

    @property
    def unfinished(self) -> int:
        """Runs that were asked for and have not ended."""
        return len(self.models) * sum(task.seeds for task in self.tasks.values()) - len(self.runs)

    def with_run(self, run: tuple[str, str, int, int], given: RunResult, *, tested: bool) -> Self:
        """The study with one more run, or with one run anew."""
        costs = [tested if cost == "tested" else getattr(given, cost) for cost in COSTS]
        rows = list(self.scores[(self.scores[RUN] != run).any(axis=1)].itertuples(index=False))
        for split, guess in given.guesses.items():
            for metric, score in given.scores.get(split, guess).items():
                rows.append((*run, split, metric, score, guess[metric], *costs))
        task = self.tasks[run[0]]
        task = task.model_copy(update={"notes": tuple(dict.fromkeys((*task.notes, *given.notes)))})
        scores = pd.DataFrame(rows, columns=COLUMNS)
        return self.model_copy(update={"scores": scores, "tasks": self.tasks | {run[0]: task}})

    def table(self, *, headline: bool = True, base: str | None = None) -> pd.DataFrame:
        """A row for every task, split, metric and model or control, in points of a hundred.

        Intervals are Student's, of 95 %, over seeds; with groups over pre-training seeds, each the
        mean of its runs. Differences are paired. A run that is not above guessing has failed; it
        counts in the mean all the same, and one that diverged counts as guessing.

        Args:
            headline: the headline metrics, or all others.
            base: the model or control that others are compared with; by default the first model.

        Returns:
            Columns as their names say; the outcome is "better", "worse", "no difference" (beyond
            noise), "one seed", or "no information" where no model is above guessing by more than
            its interval (of one run, at all).
        """
        models = list(dict.fromkeys(model.name for model in self.models))
        base = base or models[0]
        scores = self.scores.assign(score=100 * self.scores["score"])
        unit = "member" if scores["member"].nunique() > 1 else "seed"
        rows = []
        for (task, split, metric), runs in scores.groupby(["task", "split", "metric"], sort=False):
            record, guess = self.tasks[task], 100 * float(runs["guess"].iloc[0])
            if metric not in (record.metrics[:1] if headline else record.metrics[1:]):
                continue
            # A row a seed or member; a control without an encoder has one score for all of them.
            values = runs.pivot_table(index=unit, columns="model", values="score")
            values = values[[name for name in models if name in values]]
            controls = {name: 100 * by[split][metric] for name, by in record.controls.items()}
            values = values.assign(**controls)
            bounds = {name: interval(values[name].dropna()) for name in values}
            is_informative = any(
                (mean if math.isnan(low) else low) > guess
                for name, (mean, low, _) in bounds.items()
                if name in models
            )
            title = record.title + split.removeprefix("dev").replace("_", " ")
            for name, (mean, low, high) in bounds.items():
                own = runs[runs["model"] == name]
                rates = ", ".join(f"{rate:g}" for rate in sorted(set(own["learning_rate"])))
                row: dict[str, Any] = {"task": title, "metric": metric, "model": name}
                row |= {"mean": mean, "low": low, "high": high}
                row |= {"runs": len(own), "failed": int((own["score"] <= guess).sum())}
                row |= {"guess": guess, "lr": rates, "informative": is_informative}
                pairs = (values[name] - values.get(base, math.nan)).dropna()
                if name != base and len(pairs):
                    mean, low, high = interval(pairs)
                    row |= {"difference": mean, "difference_low": low, "difference_high": high}
                    outcome = _outcome(low, high) if is_informative else "no information"
                    row |= {"pairs": len(pairs), "outcome": outcome}
                rows.append(row)
        return pd.DataFrame(rows)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The headline scores."""
        return {"scores": self.table()}

    def summary(self) -> str:
        """The table as text, with fewer columns, for a terminal."""
        table = self.table().drop(columns=["pairs", "informative"], errors="ignore")
        table = table.rename(columns={"difference_low": "from", "difference_high": "to"})
        points = ("mean", "low", "high", "guess", "difference", "from", "to")
        return table_text(table, formats=dict.fromkeys(points, "{:.1f}"))

    def verdict(self) -> list[str]:
        """What can be said, in sentences, the most important first."""
        if self.scores.empty:
            return ["No run has finished yet."]
        table = self.table()
        base, *others = dict.fromkeys(model.name for model in self.models if not model.untrained)
        lines = []
        for other in others:
            told = _told(table[table["model"] == other])
            nothing = f"These tasks cannot tell {other} and {base} apart."
            lines.append(f"{other} against {base}: {told}." if told else nothing)
        if not others:
            rows = table[table["model"] == base].itertuples()
            lines.append(f"{base}: {', '.join(f'{row.task} {row.mean:.1f}' for row in rows)}.")
        if controls := [name for name in table["model"].unique() if name not in (base, *others)]:
            lines += self._against_controls([base, *others], controls)
        if silent := list(table.loc[~table["informative"], "task"].unique()):
            lines.append(
                f"No information: {', '.join(silent)}. No model beats guessing the commonest "
                "answer by more than its interval."
            )
        return lines + self._caveats()

    def _against_controls(self, names: Sequence[str], controls: Sequence[str]) -> list[str]:
        """What pre-training adds: each model against the control that it is least surely above."""
        table = pd.concat([self.table(base=name).assign(base=name) for name in controls])
        table = table[table["model"].isin(names) & table["outcome"].notna() & table["informative"]]
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

    def _caveats(self) -> list[str]:
        runs, lines = self.runs, []
        dev = self.scores[self.scores["split"] == "dev"]
        headlines = [self.tasks[task].metrics[0] for task in dev["task"]]
        failed = dev[(dev["metric"] == headlines) & (dev["score"] <= dev["guess"])]
        if len(failed):
            counts = failed["task"].value_counts(sort=False).items()
            where = ", ".join(f"{self.tasks[task].title} {count}" for task, count in counts)
            lines.append(
                f"{len(failed)} of {counted(len(runs), 'run')} failed: they diverged "
                f"({runs['diverged'].sum()}) or ended no better than guessing ({where}). They "
                "count in every mean."
            )
        if self.unfinished:
            lines.append(f"Not finished: {counted(self.unfinished, 'run')}.")
        lines += [note for task in self.tasks.values() for note in task.notes]
        seconds = float(runs["seconds"].sum() + runs["predicting"].sum())
        return [*lines, f"{counted(len(runs), 'run')} took {format_duration(seconds)}."]


def read_finetune(folder: str | Path) -> FinetuneResult:
    """Read what `finetune` wrote, as far as it has come.

    Raises:
        UserError: the folder is another one, or its record is damaged.
    """
    return FinetuneResult.read(Path(folder) / FINETUNE)


def predictions_path(folder: str | Path, task: str, model: Model, seed: int) -> Path:
    """Where a run's predictions are: a JSON object a row, with split, key and prediction."""
    return Path(folder) / "results" / task / f"{model.key}-seed{seed}.jsonl"


def _outcome(low: float, high: float) -> str:
    if math.isnan(low):
        return "one seed"
    return "better" if low > 0 else "worse" if high < 0 else "no difference"


def _told(rows: pd.DataFrame) -> str:
    """What the tasks that carry information say: "better on CoLA +1.1 (+0.9 to +1.3)"."""
    found: dict[str, list[str]] = {}
    for row in rows.to_dict("records"):
        if not row["informative"] or pd.isna(row.get("outcome")):
            continue
        inside = [f"{_signed(row['difference_low'])} to {_signed(row['difference_high'])}"]
        inside = (inside if row["pairs"] > 1 else []) + ([row["base"]] if "base" in row else [])
        shown = f"{row['task']} {_signed(row['difference'])}"
        shown += f" ({', '.join(inside)})" if inside else ""
        found.setdefault(row["outcome"], []).append(shown)
    one = "one seed in common, which says nothing of noise,"
    return "; ".join(
        f"{one if outcome == 'one seed' else outcome} on {', '.join(shown)}"
        for outcome, shown in found.items()
    )


def _signed(value: float) -> str:
    """A difference in points: "+1.3", "−0.4"."""
    return f"{value:+.1f}".replace("-", "−")
