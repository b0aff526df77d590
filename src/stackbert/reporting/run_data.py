"""What a run directory holds, as a report needs it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stackbert.corpus.manifest import Manifest
from stackbert.corpus.store import open_corpus
from stackbert.errors import UserError
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.rundir import RunRecord, read_record
from stackbert.pretraining.summary import RunSummary, summarise
from stackbert.recipe import Recipe
from stackbert.reporting.content import Band, Point
from stackbert.reporting.wording import layers

_MOST_POINTS = 250
"""Of a training loss: more than a screen shows."""


@dataclass(frozen=True)
class RunData:
    """A run directory, read."""

    name: str
    """What the report calls it."""
    folder: Path
    recipe: Recipe
    record: RunRecord
    rows: list[dict[str, Any]]
    """The ledger."""
    summary: RunSummary | None
    """None if no stage has ended."""

    @property
    def finished(self) -> bool:
        """Whether every stage has ended."""
        return self.summary is not None and len(self.summary.stages) == len(self.recipe.stages)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The ledger's evaluations that gave a loss, the first at step 0."""
        return [r for r in self.rows if r["kind"] == "evaluation" and r["loss"] is not None]

    @property
    def progress(self) -> dict[str, Any] | None:
        """The last line of the ledger that says how far the run has come; None if there is none."""
        reached = [row for row in self.rows if row["kind"] in ("evaluation", "step")]
        return reached[-1] if reached else None

    @property
    def depths(self) -> str:
        """ "2 → 4 → 8 layers"; a depth that stays is said once."""
        *earlier, last = dict.fromkeys(stage.depth for stage in self.recipe.stages)
        return " → ".join([*map(str, earlier), layers(last)])

    def corpus(self) -> Manifest | None:
        """The corpus' manifest, if the corpus still lies where it lay and is the same."""
        try:
            manifest = open_corpus(self.record.corpus_folder).manifest
        except (UserError, OSError):
            return None
        return manifest if manifest.fingerprint == self.record.request.corpus else None


def read_runs(folders: Sequence[Path]) -> list[RunData]:
    """Read run directories; each is named after its folder, and by its path where two agree.

    Raises:
        UserError: one is not a run directory, or is damaged.
    """
    short = [folder.resolve().name for folder in folders]
    names = [n if short.count(n) == 1 else str(f) for n, f in zip(short, folders, strict=True)]
    return [_read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read_run(folder: Path, name: str) -> RunData:
    recipe, record = read_record(folder)
    rows = read_ledger(folder)
    ends = {row["step"] for row in rows if row["kind"] == "evaluation"}
    begun = recipe.boundaries[0] in ends and recipe.boundaries[1] in ends
    return RunData(name, folder, recipe, record, rows, summarise(folder) if begun else None)


def validation_points(run: RunData) -> tuple[Point, ...]:
    """Every validation loss; two at a growth, before and after, so that the jump is a line up."""
    points: list[Point] = []
    for row in run.rows:
        if row["kind"] == "evaluation" and row["loss"] is not None:
            points.append(_point(row))
        elif row["kind"] == "growth" and row["loss_after"] is not None and points:
            points.append(replace(points[-1], loss=row["loss_after"]))
    return tuple(points)


def training_points(run: RunData) -> tuple[Point, ...]:
    """The loss on what was trained on; neighbours are averaged where there are very many."""
    points = [_point(r) for r in run.rows if r["kind"] == "step" and r["loss"] is not None]
    size = math.ceil(len(points) / _MOST_POINTS) or 1
    return tuple(_mean(points[i : i + size]) for i in range(0, len(points), size))


def stage_bands(run: RunData) -> tuple[Band, ...]:
    """The stages that have begun, each as far as it came."""
    at = {row["step"]: _point(row) for row in run.evaluations}
    last = run.progress
    bands = []
    for index, stage in enumerate(run.recipe.stages):
        first, end = run.recipe.boundaries[index : index + 2]
        if first not in at or last is None or last["step"] <= first:
            break
        reached = at.get(end) or _point({**last, "loss": 0.0})
        bands.append(Band(layers(stage.depth), at[first], reached))
    return tuple(bands)


def _point(row: dict[str, Any]) -> Point:
    return Point(row["seconds"], row["flops"], row["tokens"], row["step"], row["loss"])


def _mean(points: Sequence[Point]) -> Point:
    n = len(points)
    return Point(
        seconds=sum(p.seconds for p in points) / n,
        flops=sum(p.flops for p in points) / n,
        tokens=sum(p.tokens for p in points) / n,
        steps=sum(p.steps for p in points) / n,
        loss=sum(p.loss for p in points) / n,
    )
