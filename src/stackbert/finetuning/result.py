"""What a study found: its record, a table of scores with their noise, and plain sentences."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from stackbert.files import Record
from stackbert.finetuning.controls import GUESSING, Scores
from stackbert.finetuning.models import Model
from stackbert.finetuning.tasks import Settings
from stackbert.finetuning.train import RunResult
from stackbert.intervals import interval, outcome
from stackbert.tables import Frame, Tables, table_text
from stackbert.units import counted, format_duration, signed

FINETUNE = "finetune.json"
RUN = ["task", "model", "seed"]
COSTS = ["steps", "loss", "seconds", "diverged", "tested", "learning_rate"]
COLUMNS = [*RUN, "split", "metric", "score", *COSTS]


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
    controls: Scores


class FinetuneResult(Record, Tables):
    """All runs that have ended in a folder: its finetune.json."""

    what: ClassVar[str] = "a folder of 'stackbert finetune'"
    version: ClassVar[int] = 4

    machine: dict[str, Any]
    models: tuple[Model, ...] = ()
    """The first is the one that others are compared with; the control comes last."""
    tasks: dict[str, TaskRecord] = Field(default_factory=dict)
    scores: Frame = pd.DataFrame(columns=COLUMNS)
    """A row for every run, split and metric: task, model, seed, split, metric, score (of a run that
    diverged, that of guessing), and of the run steps, loss, seconds, diverged, tested (whether test
    splits were predicted), learning_rate."""

    @property
    def runs(self) -> pd.DataFrame:
        """A row a run: what it cost."""
        return self.scores.drop_duplicates(RUN)[[*RUN, *COSTS]]

    @property
    def unfinished(self) -> int:
        """Runs that were asked for and have not ended."""
        return len(self.models) * sum(task.seeds for task in self.tasks.values()) - len(self.runs)

    def with_run(self, run: tuple[str, str, int], given: RunResult, *, tested: bool) -> Self:
        """The study with one more run, or with one run anew."""
        task = self.tasks[run[0]]
        costs = [tested if cost == "tested" else getattr(given, cost) for cost in COSTS]
        rows = list(self.scores[(self.scores[RUN] != run).any(axis=1)].itertuples(index=False))
        for split, guess in task.controls[GUESSING].items():
            for metric, score in given.scores.get(split, guess).items():
                rows.append((*run, split, metric, score, *costs))
        task = task.model_copy(update={"notes": tuple(dict.fromkeys((*task.notes, *given.notes)))})
        scores = pd.DataFrame(rows, columns=COLUMNS)
        return self.model_copy(update={"scores": scores, "tasks": self.tasks | {run[0]: task}})

    def table(self, *, headline: bool = True, base: str | None = None) -> pd.DataFrame:
        """A row for every task, split, metric and model or control, in points of a hundred.

        Intervals are Student's, of 95 %, over seeds; differences are paired. A run that is not
        above guessing has failed; it counts in the mean all the same.

        Args:
            headline: the headline metrics, or all others.
            base: the model or control that others are compared with; by default the first model.

        Returns:
            Columns as their names say; the outcome is one of `intervals.outcome`, or "no
            information" where no model is above guessing by more than its interval (of one run, at
            all).
        """
        models = [model.name for model in self.models]
        base = base or models[0]
        rows = []
        for keys, runs in self.scores.groupby(["task", "split", "metric"], sort=False):
            task, split, metric = map(str, keys)
            record = self.tasks[task]
            if metric not in (record.metrics[:1] if headline else record.metrics[1:]):
                continue
            controls = {name: 100 * by[split][metric] for name, by in record.controls.items()}
            guess = controls.pop(GUESSING)
            # A row a seed; a control without an encoder has one score for all of them.
            values = 100 * runs.pivot(index="seed", columns="model", values="score")
            values = values[[name for name in models if name in values]].assign(**controls)
            bounds = {name: interval(values[name].dropna()) for name in values}
            is_informative = any(
                (mean if low != low else low) > guess
                for name, (mean, low, _) in bounds.items()
                if name in models
            )
            title = record.title + split.removeprefix("dev").replace("_", " ")
            for name, (mean, low, high) in bounds.items():
                own = runs[runs["model"] == name]
                rates = ", ".join(f"{rate:g}" for rate in sorted(set(own["learning_rate"])))
                row: dict[str, Any] = {"task": title, "metric": metric, "model": name}
                row |= {"mean": mean, "low": low, "high": high}
                row |= {"runs": len(own), "failed": int((100 * own["score"] <= guess).sum())}
                row |= {"guess": guess, "lr": rates, "informative": is_informative}
                pairs = (values[name] - values.get(base, float("nan"))).dropna()
                if name != base and len(pairs):
                    mean, low, high = interval(pairs)
                    row |= {"difference": mean, "difference_low": low, "difference_high": high}
                    found = outcome(low, high) if is_informative else "no information"
                    row |= {"pairs": len(pairs), "outcome": found}
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
        base, *others = [model.name for model in self.models if not model.untrained]
        lines = []
        for other in others:
            told = _told(table[table["model"] == other])
            nothing = f"These tasks cannot tell {other} and {base} apart."
            lines.append(f"{other} against {base}: {told}." if told else nothing)
        if not others:
            rows = table[table["model"] == base].itertuples()
            told = ", ".join(f"{row.task} {row.metric} {row.mean:.1f}" for row in rows)
            lines.append(f"{base}: {told}.")
        if controls := [name for name in table["model"].unique() if name not in (base, *others)]:
            lines += self._against_controls([base, *others], controls)
        if silent := list(table.loc[~table["informative"], "task"].unique()):
            lines.append(
                f"No information: {', '.join(silent)}. No model beats guessing the commonest "
                "answer by more than its interval."
            )
        if len(failed := table[table["failed"] > 0]):
            counts = failed.groupby("task", sort=False)["failed"].sum().items()
            where = ", ".join(f"{task} {count}" for task, count in counts)
            lines.append(
                f"Runs that diverged or ended no better than guessing: {where}. They count in "
                "every mean."
            )
        if self.unfinished:
            lines.append(f"Not finished: {counted(self.unfinished, 'run')}.")
        lines += [note for task in self.tasks.values() for note in task.notes]
        took = format_duration(float(self.runs["seconds"].sum()))
        return [*lines, f"{counted(len(self.runs), 'run')} took {took}."]

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
                f"{counted(len(rows), 'task')}. Against the closest: {_told(rows)}."
            )
        above = set(told.loc[told["outcome"].isin(["better", "one seed"]), "task"])
        if silent := [task for task in told["task"].unique() if task not in above]:
            lines.append(
                f"On {', '.join(silent)} no model is above every control, so we make no claim that "
                "pre-training helps; the task's own training rows are enough for such a score."
            )
        return lines


def read_finetune(folder: str | Path) -> FinetuneResult:
    """Read what `finetune` wrote, as far as it has come.

    Raises:
        UserError: the folder is another one, or its record is damaged.
    """
    return FinetuneResult.read(Path(folder) / FINETUNE)


def predictions_path(folder: str | Path, task: str, model: Model, seed: int) -> Path:
    """Where a run's predictions are: a JSON object a row, with split, key and prediction."""
    return Path(folder) / "results" / task / f"{model.key}-seed{seed}.jsonl"


def _told(rows: pd.DataFrame) -> str:
    """What the tasks that carry information say: "better on RTE (+1.1 points of accuracy, …)"."""
    found: dict[str, list[str]] = {}
    for row in rows.to_dict("records"):
        if not row["informative"] or pd.isna(row.get("outcome")):
            continue
        base = f"{row['base']}: " if "base" in row else ""
        shown = f"{base}{signed(row['difference'])} points of {row['metric'].replace('_', ' ')}"
        if row["pairs"] > 1:
            low, high = signed(row["difference_low"]), signed(row["difference_high"])
            shown += f", 95 % interval {low} to {high}"
        found.setdefault(row["outcome"], []).append(f"{row['task']} ({shown})")
    one = "one seed in common, which says nothing of noise,"
    return "; ".join(
        f"{one if outcome == 'one seed' else outcome} on {', '.join(shown)}"
        for outcome, shown in found.items()
    )
