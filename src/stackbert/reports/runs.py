"""The report on one pre-training run, or on several side by side."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stackbert.batches.batches import validation_entropy
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.errors import UserError
from stackbert.pretraining.autotune import evaluation_interval
from stackbert.pretraining.ledger import read_ledger, stage_table
from stackbert.pretraining.record import RunRecord, read_run
from stackbert.recipe import Recipe
from stackbert.recipes import flat_fields
from stackbert.reports.charts import AXES, clipping_note, loss_curves
from stackbert.reports.page import Chart, Page, Table
from stackbert.units import counted, format_duration

Row = dict[str, object]

_POINTS = 250
"""Of a training loss: more than a screen shows."""
_NUMBERS = {
    "steps": "{:,.0f}",
    "tokens": "{:.3g}",
    "FLOPs": "{:.3g}",
    "loss": "{:.3f}",
    "share": "{:.1%}",
    "MFU": "{:.0%}",
    "at step": "{:,.0f}",
    "loss before": "{:.3f}",
    "loss after": "{:.3f}",
    "loss after growth": "{:.3f}",
    "loss at the end": "{:.3f}",
    "jump": "{:+.3f}",
}


@dataclass(frozen=True)
class RunData:
    """A run directory, read."""

    name: str
    record: RunRecord
    ledger: pd.DataFrame
    stages: pd.DataFrame
    """`stage_table`; empty if no stage has ended."""

    @property
    def recipe(self) -> Recipe:
        """As run."""
        return self.record.recipe

    @property
    def finished(self) -> bool:
        """Whether every stage has ended."""
        return len(self.stages) == len(self.recipe.stages)

    @property
    def evaluations(self) -> pd.DataFrame:
        """Those that gave a loss."""
        return self.ledger[(self.ledger.kind == "evaluation") & self.ledger.loss.notna()]

    @property
    def last(self) -> pd.Series:
        """The last line that says how far the run came."""
        return self.ledger[self.ledger.kind.isin(("evaluation", "step"))].iloc[-1]

    @property
    def depths(self) -> str:
        """ "2 → 4 → 8 layers"; a depth that stays is named once."""
        *earlier, last = dict.fromkeys(stage.depth for stage in self.recipe.stages)
        return " → ".join([*map(str, earlier), counted(last, "layer")])

    def corpus(self) -> Corpus | None:
        """The corpus, if it still lies where it lay and is the same."""
        try:
            corpus = open_corpus(self.record.corpus_folder)
        except UserError:
            return None
        return corpus if corpus.fingerprint == self.record.request.corpus else None


def read_runs(folders: Sequence[Path]) -> list[RunData]:
    """Read run directories; each is named after its folder, and by its path where two agree.

    Raises:
        UserError: one is not a run directory, is damaged, or has made no step yet.
    """
    short = [folder.resolve().name for folder in folders]
    runs = []
    for folder, name in zip(folders, short, strict=True):
        ledger = read_ledger(folder)
        if not (ledger.kind == "evaluation").any():
            raise UserError(f"{folder} has not evaluated its model yet: there is nothing to show.")
        try:
            stages = stage_table(folder)
        except UserError:  # no stage has ended
            stages = pd.DataFrame()
        name = name if short.count(name) == 1 else str(folder)
        runs.append(RunData(name, read_run(folder), ledger, stages))
    return runs


def validation_points(ledger: pd.DataFrame) -> pd.DataFrame:
    """Every validation loss of a run; at a growth two, so that the jump is a line straight up."""
    rows = ledger[ledger.kind.isin(("evaluation", "growth"))].copy()
    grown = rows.kind == "growth"
    rows.loc[grown, "loss"] = rows[grown].get("loss_after")
    rows.loc[grown, "seconds"] = None  # a growth stands exactly above the evaluation before it
    rows[["seconds", "tokens", "flops"]] = rows[["seconds", "tokens", "flops"]].ffill()
    rows = rows.rename(columns={"step": "steps"})
    return rows.loc[rows.loss.notna(), [*AXES, "loss"]]


def training_points(ledger: pd.DataFrame) -> pd.DataFrame:
    """The loss on what was trained on; neighbours are averaged where there are very many."""
    rows = ledger[(ledger.kind == "step") & ledger.loss.notna()].rename(columns={"step": "steps"})
    rows = rows[[*AXES, "loss"]].reset_index(drop=True)
    return rows.groupby(rows.index // (-(-len(rows) // _POINTS) or 1)).mean()


def stage_bands(recipe: Recipe, points: pd.DataFrame) -> pd.DataFrame:
    """The stages that have begun, each as far as `points` (validation losses) reach."""
    at = points.drop_duplicates("steps").set_index("steps", drop=False)
    rows = []
    for stage, first, end in zip(
        recipe.stages, recipe.boundaries, recipe.boundaries[1:], strict=False
    ):
        if first not in at.index or at.steps.max() <= first:
            break
        start, stop = at.loc[first], at.loc[end if end in at.index else at.steps.max()]
        row: dict[str, object] = {"label": counted(stage.depth, "layer")}
        for axis in AXES:
            row |= {f"start_{axis}": start[axis], f"end_{axis}": stop[axis]}
        rows.append(row)
    return pd.DataFrame(rows)


def run_page(folders: Sequence[Path]) -> Page:
    """Fill a page with what the ledgers of run directories say, finished or not.

    It does not claim which recipe is better; that takes runs of equal budget, which
    `stackbert compare` makes.

    Raises:
        UserError: a folder is not a run directory, or is damaged.
    """
    runs = read_runs(folders)
    alone = len(runs) == 1
    intervals = {evaluation_interval(run.recipe) for run in runs}
    every = " or ".join(f"{steps:,}" for steps in sorted(intervals))
    fields = pd.DataFrame({run.name: pd.Series(flat_fields(run.recipe)) for run in runs})
    fields = fields.astype(str).reset_index(names="field")
    differing = fields[fields.drop(columns="field").nunique(axis=1) > 1]
    tables = [
        _table(
            "Runs",
            runs,
            _overview,
            "Time is training alone; the loss is the last validation loss, in nats.",
        ),
        _table(
            "Stages",
            runs,
            _stages,
            "Only stages that have ended. MFU is the share of this machine's measured rate of "
            "matrix products that training used. Losses are validation losses, in nats.",
        ),
        _table(
            "Growth",
            runs,
            _growths,
            "Back below: steps until an evaluation found the validation loss below what it was "
            f"before. There is one every {every} steps, so it may have been earlier.",
        ),
        _table(
            "Where the time went",
            runs,
            _wall,
            "From the opening of the run's folder to its last checkpoint, in all its processes.",
        ),
        Table("Where the recipes differ", differing),
        Table("Recipe, as run", fields, folded=True),
    ]
    title = f"Pre-training run {runs[0].name}" if alone else f"{len(runs)} pre-training runs"
    sentences = _verdict(runs[0]) if alone else _verdict_of_several(runs)
    shown = [table for table in tables if len(table.frame)]
    return Page(title, tuple(sentences), (_curves(runs), *shown), _facts(runs))


def _curves(runs: list[RunData]) -> Chart:
    def curve(run: RunData, points: pd.DataFrame, group: str) -> pd.DataFrame:
        main = group != "training loss"
        return points.assign(group=group, run=group, detail=run.depths, main=main)

    note, bands = "Time is training alone.", None
    if any((run.ledger.kind == "growth").any() for run in runs):
        note += " A vertical piece is a growth: the loss right before and right after it."
    if len(runs) == 1:
        (run,) = runs
        note += " The training loss is the mean since the point before."
        validation = validation_points(run.ledger)
        bands = stage_bands(run.recipe, validation)
        curves = [
            curve(run, validation, "validation loss"),
            curve(run, training_points(run.ledger), "training loss"),
        ]
    else:
        curves = [curve(run, validation_points(run.ledger), run.name) for run in runs]
    points = pd.concat(curves)
    return Chart("Loss", loss_curves(points, bands), f"{note} {clipping_note(points)}".strip())


def _verdict(run: RunData) -> list[str]:
    last, loss = run.last, run.evaluations.iloc[-1]
    cost = f"{format_duration(last.seconds)} of training"
    done = f"{last.step:,.0f}"
    layers = counted(int(last.depth), "layer")
    if not run.finished:
        return [
            f"Unfinished: {done} of {run.recipe.total_steps:,} steps, {cost}, now at {layers}; "
            f"validation loss {loss.loss:.3f} nats at step {loss.step:,.0f}."
        ]
    sentences = [f"{layers}, validation loss {loss.loss:.3f} nats after {done} steps and {cost}."]
    if len(run.stages) > 1:
        deep = run.stages.iloc[-1]
        alone = format_duration(run.stages.steps.sum() * deep.seconds / deep.steps)
        sentences.append(
            f"As many steps at the last stage's depth and batches would have taken {alone} at this "
            "run's speed. Whether they would have ended at the same loss, one run cannot say; "
            "stackbert compare measures it."
        )
    opened = run.corpus()
    if opened is not None:
        entropy = validation_entropy(run.recipe, opened)
        side = "below" if loss.masked_lm <= entropy else "above"
        sentences.append(
            f"A model that knows word frequencies alone has {entropy:.3f} nats on the held-out "
            f"text; this one is {abs(entropy - loss.masked_lm):.3f} {side} that."
        )
    return sentences


def _verdict_of_several(runs: list[RunData]) -> list[str]:
    measured = {
        (
            run.record.request.corpus,
            run.recipe.evaluation.sequences,
            run.recipe.evaluation.mask_rate,
            run.recipe.longest_sequence,
            run.recipe.objective.next_sentence,
        )
        for run in runs
    }
    if len(measured) > 1:
        first = "These losses do not compare: not of the same held-out text, rows and masks."
    else:
        lowest, name = min((run.evaluations.loss.iloc[-1], run.name) for run in runs)
        first = f"{len(runs)} runs; the lowest last validation loss is {lowest:.3f} nats ({name})."
    unfinished = [run.name for run in runs if not run.finished]
    return [
        first,
        *([f"Unfinished: {', '.join(unfinished)}."] if unfinished else []),
        "This is no verdict on the recipes: the runs may differ in budget, seed and much else. "
        "stackbert compare gives every variant the same measured budget and says what is noise.",
    ]


def _table(
    title: str, runs: list[RunData], rows_of: Callable[[RunData], Iterable[Row]], note: str
) -> Table:
    """The rows of every run; with one run only, its name needs no column."""
    frame = pd.DataFrame([{"run": run.name, **row} for run in runs for row in rows_of(run)])
    if len(runs) == 1:
        frame = frame.drop(columns="run", errors="ignore")
    return Table(title, frame, note, _NUMBERS)


def _overview(run: RunData) -> Iterator[Row]:
    yield {
        "recipe": run.recipe.name,
        "depth": run.depths,
        "steps": run.last.step,
        "tokens": run.last.tokens,
        "FLOPs": run.last.flops,
        "time": format_duration(run.last.seconds),
        "loss": run.evaluations.loss.iloc[-1],
    }


def _stages(run: RunData) -> Iterator[Row]:
    for stage in run.stages.itertuples():
        yield {
            "depth": stage.depth,
            "steps": stage.steps,
            "tokens": stage.tokens,
            "time": format_duration(stage.seconds),
            "share": stage.seconds / run.stages.seconds.sum(),
            "MFU": stage.mfu,
            "loss after growth": stage.loss_grown,
            "loss at the end": stage.loss,
        }


def _growths(run: RunData) -> Iterator[Row]:
    for growth in run.ledger[run.ledger.kind == "growth"].itertuples():
        yield {
            "growth": f"{growth.source_depth:.0f} → {growth.target_depth:.0f}",
            "operator": growth.operator,
            "optimiser state": growth.optimizer_state,
            "at step": growth.step,
            "loss before": growth.loss_before,
            "loss after": growth.loss_after,
            "jump": growth.loss_after - growth.loss_before,
            "back below after": _recovery(run, growth.step, growth.loss_before),
        }


def _recovery(run: RunData, step: float, before: float) -> str:
    later = run.evaluations[(run.evaluations.step > step) & (run.evaluations.loss < before)]
    if len(later):
        return counted(int(later.step.iloc[0] - step), "step")
    return "never" if run.finished else "not yet"


def _wall(run: RunData) -> Iterator[Row]:
    for wall in run.ledger[run.ledger.kind.isin(("time", "end"))].get("wall", [])[-1:]:
        for work, seconds in sorted(wall.items(), key=lambda item: -item[1]):
            share = seconds / sum(wall.values())
            if share >= 0.0005:
                yield {"work": work, "time": format_duration(seconds), "share": share}


def _facts(runs: list[RunData]) -> dict[str, str]:
    """The foot. Where runs differ, each value is named once."""
    columns: dict[str, list[str]] = {}
    for run in runs:
        request, recipe, opened = run.record.request, run.recipe, run.corpus()
        corpus = f"{Path(run.record.corpus_folder).name}, fingerprint {request.corpus}"
        if opened is not None:
            corpus += f": {opened.manifest.train.tokens:,} training tokens"
        facts = {
            "Run": run.name,
            "Budget asked": request.budget or (f"{request.steps:,} steps" if request.steps else ""),
            "Corpus": corpus,
            "Precision": recipe.precision + (", compiled" if recipe.compile is True else ""),
            "Matrix products": f"{run.record.matrix_rate / 1e9:,.0f} GFLOP/s measured",
            **{name: str(value) for name, value in run.record.machine.items()},
        }
        for name, value in facts.items():
            columns.setdefault(name, []).append(value)
    named = {name: dict.fromkeys(filter(None, values)) for name, values in columns.items()}
    return {name: "; ".join(values) for name, values in named.items() if values}
