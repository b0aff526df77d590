"""The report on one pre-training run, or on several side by side."""

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import altair as alt
import pandas as pd

from stackbert.batches.batches import validation_entropy
from stackbert.corpus.store import open_corpus
from stackbert.errors import UserError
from stackbert.pretraining.layers import layer_table
from stackbert.pretraining.ledger import read_ledger, stage_table
from stackbert.pretraining.record import RunRecord, read_run
from stackbert.recipe import Recipe
from stackbert.recipes import flat_fields
from stackbert.reports.charts import AXES, clipping_note, loss_curves, specification
from stackbert.reports.page import Chart, Page, Table
from stackbert.units import counted, format_duration

_POINTS = 250  # of a training loss: more than a screen shows
_NUMBERS = dict.fromkeys(("loss", "loss before", "loss after", "loss grown"), "{:.3f}")
_NUMBERS |= dict.fromkeys(("steps", "step", "source depth", "target depth"), "{:,.0f}")
_NUMBERS |= {"jump": "{:+.3f}", "share": "{:.1%}", "mfu": "{:.0%}"}
_NUMBERS |= {"tokens": "{:.3g}", "flops": "{:.3g}"}


class RunData(NamedTuple):
    """A run directory, read."""

    name: str
    record: RunRecord
    depths: str  # "2 → 4 → 8 layers"; a depth that stays is named once
    ledger: pd.DataFrame
    stages: pd.DataFrame  # empty if none has ended
    finished: bool
    evaluations: pd.DataFrame  # that gave a loss
    last: pd.Series  # the line of the ledger that says how far the run came
    layers: pd.DataFrame


def page(folders: Sequence[Path]) -> Page:
    """Fill a page with what the ledgers of run directories say, finished or not."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = list(map(str, folders))
    runs = list(map(_read, folders, names))
    return _page_of_one(runs[0]) if len(runs) == 1 else _page_of_several(runs)


def _read(folder: Path, name: str) -> RunData:
    record, ledger = read_run(folder), read_ledger(folder)
    evaluations = ledger[(ledger["kind"] == "evaluation") & ledger["loss"].notna()]
    if evaluations.empty:
        raise UserError(f"{folder} has no validation loss yet: there is nothing to show.")
    try:
        stages = stage_table(folder)
    except UserError:  # no stage has ended
        stages = pd.DataFrame()
    *earlier, deepest = dict.fromkeys(stage.depth for stage in record.recipe.stages)
    depths = " → ".join([*map(str, earlier), counted(deepest, "layer")])
    finished = len(stages) == len(record.recipe.stages)
    last = ledger[ledger["kind"].isin(("evaluation", "step"))].iloc[-1]
    layers = layer_table(folder)
    return RunData(name, record, depths, ledger, stages, finished, evaluations, last, layers)


def validation_points(ledger: pd.DataFrame) -> pd.DataFrame:
    """Every validation loss of a run; at a growth two, so that the jump is a line straight up."""
    rows = ledger[ledger["kind"].isin(("evaluation", "growth"))].rename(columns={"step": "steps"})
    grown = rows["kind"] == "growth"
    rows["loss"] = rows["loss"].mask(grown, rows["loss_after"])
    rows["seconds"] = rows["seconds"].mask(grown)  # right above the evaluation before it
    rows[list(AXES)] = rows[list(AXES)].ffill()
    return rows.loc[rows["loss"].notna(), [*AXES, "loss"]]


def training_points(ledger: pd.DataFrame) -> pd.DataFrame:
    """The loss on what was trained on; neighbours are averaged where there are very many."""
    rows = ledger[(ledger["kind"] == "step") & ledger["loss"].notna()]
    rows = rows.rename(columns={"step": "steps"})[[*AXES, "loss"]].reset_index(drop=True)
    return rows.groupby(rows.index // (len(rows) // _POINTS + 1)).mean()


def stage_bands(recipe: Recipe, points: pd.DataFrame) -> pd.DataFrame:
    """The stages that have begun, each as far as `points` (validation losses) reach."""
    at = points.drop_duplicates("steps").set_index("steps", drop=False)[list(AXES)]
    reached, rows = at["steps"].max(), []
    boundaries = itertools.pairwise(recipe.boundaries)
    for stage, (first, end) in zip(recipe.stages, boundaries, strict=True):
        if first not in at.index or reached <= first:
            break
        start, stop = at.loc[first], at.loc[end if end in at.index else reached]
        ends = {**start.add_prefix("start_"), **stop.add_prefix("end_")}
        rows.append({"label": counted(stage.depth, "layer"), **ends})
    return pd.DataFrame(rows)


def _page_of_one(run: RunData) -> Page:
    recipe, record = run.record.recipe, run.record
    validation, training = validation_points(run.ledger), training_points(run.ledger)
    validation = validation.assign(group="validation loss", run="validation", main=True)
    training = training.assign(group="training loss", run="training", main=False)
    points = pd.concat([validation, training]).assign(detail=run.depths)
    note = "Time is training alone. A vertical piece is a growth. " + clipping_note(points)
    stages = (
        "Share of the training time. MFU: of this machine's measured rate of matrix products. Loss "
        "grown, loss: validation losses right after growing and at the end."
    )
    growths = "Back below: steps until an evaluation was below the loss before growing."
    wall = "From the opening of the run's folder to its last checkpoint, in all its processes."
    fields = pd.DataFrame(flat_fields(recipe).items(), columns=["field", "value"]).astype(str)
    parts: tuple[Chart | Table, ...] = (
        Chart("Loss", loss_curves(points, stage_bands(recipe, validation)), note),
        Table("Stages", _stages(run), stages, _NUMBERS),
        Table("Growth", _growths(run), growths, _NUMBERS),
        *_layers(run),
        Table("Where the time went", _wall(run.ledger), wall, _NUMBERS),
        Table("Recipe, as run", fields, folded=True),
    )
    facts = {
        "Run": f"{run.name}: {recipe.name}, {run.depths}",
        "Corpus": f"{Path(record.corpus_folder).name}, fingerprint {record.request.corpus}",
        "Matrix products": f"{record.matrix_rate / 1e9:,.0f} GFLOP/s measured",
        **record.machine,
    }
    return Page(f"Pre-training run {run.name}", tuple(_verdict(run)), parts, facts)


def _layers(run: RunData) -> list[Chart]:
    """What each layer does to the stream, a line an evaluation."""
    if run.layers.empty:
        return []
    names = {"norm": "norm of a token's vector", "cosine": "cosine with its embedding"}
    rows = run.layers.rename(columns=names).melt(["step", "layer"], [*names.values()], "measure")
    layer = alt.Axis(tickMinStep=1, format="d", grid=False)
    shades = alt.Scale(scheme="blues", domainMin=-rows["step"].max() / 3)
    lines = alt.Chart(rows).encode(
        x=alt.X("layer:Q", title="layer (0: embeddings)", axis=layer),
        y=alt.Y("value:Q", title=None),
        color=alt.Color("step:Q", scale=shades, legend=alt.Legend(orient="top")),
        detail="step:N",
        tooltip=["step:Q", "layer:Q", alt.Tooltip("value:Q", format=".3f")],
    )
    drawn = lines.mark_line(point=True).properties(width=330, height=220)
    drawn = drawn.facet(column=alt.Column("measure:N", title=None, sort=[*names.values()]))
    note = "Means over tokens of some validation rows. Healthy layers turn their input slowly."
    spec = specification(drawn.resolve_scale(y="independent"), height=None)
    return [Chart("Layer by layer", spec, note)]


def _verdict(run: RunData) -> list[str]:
    last, loss = run.last, run.evaluations.iloc[-1]
    cost = f"{last['step']:,.0f} steps and {format_duration(last['seconds'])} of training"
    state = f"{counted(int(last['depth']), 'layer')}, validation loss {loss['loss']:.3f} nats"
    if not run.finished:
        return [f"Unfinished after {cost} of {run.record.recipe.total_steps:,} steps: {state}."]
    sentences = [f"{state} after {cost}.", *run.evaluations["warning"].iloc[-1:].dropna()]
    if len(run.stages) > 1:
        deep = run.stages.iloc[-1]
        alone = format_duration(run.stages["steps"].sum() * deep["seconds"] / deep["steps"])
        sentences.append(
            f"As many steps of the last stage would have taken {alone} at this run's speed. "
            "Whether they would have ended at the same loss, stackbert compare measures."
        )
    with contextlib.suppress(UserError):  # the corpus may have been moved
        corpus = open_corpus(run.record.corpus_folder)
        if corpus.fingerprint == run.record.request.corpus:
            entropy = validation_entropy(run.record.recipe, corpus)
            gap = entropy - loss["masked_lm"]
            sentences.append(
                f"A model that knows word frequencies alone has {entropy:.3f} nats on the held-out "
                f"text; this one is {abs(gap):.3f} {'below' if gap >= 0 else 'above'} that."
            )
    return sentences


def _stages(run: RunData) -> pd.DataFrame:
    if run.stages.empty:
        return run.stages
    seconds = run.stages["seconds"]
    table = run.stages.assign(seconds=seconds / seconds.sum(), time=seconds.map(format_duration))
    return table.rename(columns={"seconds": "share", "loss_grown": "loss grown"})


def _growths(run: RunData) -> pd.DataFrame:
    columns = ["source_depth", "target_depth", "operator", "step", "loss_before", "loss_after"]
    rows = run.ledger[run.ledger["kind"] == "growth"].reindex(columns=columns)
    waited = []
    for growth in rows.to_dict("records"):
        later = run.evaluations[run.evaluations["step"] > growth["step"]]
        steps = later.loc[later["loss"] < growth["loss_before"], "step"] - growth["step"]
        waited.append(counted(int(steps.iloc[0]), "step") if len(steps) else "not yet")
    rows = rows.assign(jump=rows["loss_after"] - rows["loss_before"], back_below_after=waited)
    return rows.rename(columns=lambda name: name.replace("_", " "))


def _wall(ledger: pd.DataFrame) -> pd.DataFrame:
    walls = ledger["wall"].dropna()
    work = walls.iloc[-1].items() if len(walls) else []
    table = pd.DataFrame(work, columns=["work", "time"]).sort_values("time", ascending=False)
    table["share"] = table["time"] / table["time"].sum()
    table = table[table["share"] >= 0.0005]
    return table.assign(time=table["time"].map(format_duration))


def _page_of_several(runs: list[RunData]) -> Page:
    curves = {run.name: validation_points(run.ledger).assign(detail=run.depths) for run in runs}
    points = pd.concat(curves, names=["run"]).reset_index("run").assign(main=True)
    points["group"] = points["run"]
    note = f"Validation loss. Time is training alone. {clipping_note(points)}"
    rows = pd.DataFrame(
        {
            "run": run.name,
            "recipe": run.record.recipe.name,
            "corpus": run.record.request.corpus[:12],
            "depth": run.depths,
            "steps": run.last["step"],
            "tokens": run.last["tokens"],
            "flops": run.last["flops"],
            "time": format_duration(run.last["seconds"]),
            "loss": run.evaluations["loss"].iloc[-1],
            "finished": run.finished,
        }
        for run in runs
    )
    fields = pd.DataFrame({run.name: flat_fields(run.record.recipe) for run in runs}).astype(str)
    differing = fields[fields.nunique(axis=1) > 1].reset_index(names="field")
    lowest, highest = rows["loss"].min(), rows["loss"].max()
    verdict = (
        f"{len(runs)} runs, last validation losses {lowest:.3f} to {highest:.3f} nats.",
        "This is no verdict on the recipes: the runs may differ in text, budget, seed and much "
        "else. stackbert compare gives variants one measured budget and says what is noise.",
    )
    parts = (
        Chart("Loss", loss_curves(points), note),
        Table("Runs", rows, "The last validation loss, in nats.", _NUMBERS),
        Table("Where the recipes differ", differing),
    )
    return Page(f"{len(runs)} pre-training runs", verdict, parts)
