"""The runs of a comparison as they came out, every one placed on the reference table's axes."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stackbert.comparison.costs import Reference
from stackbert.comparison.folder import Entry, Record, read_record
from stackbert.comparison.processes import first_sentence, last_line
from stackbert.comparison.runs import find_run, is_finished
from stackbert.comparison.variants import SCRATCH
from stackbert.errors import UserError
from stackbert.pretraining.ledger import LEDGER, read_ledger
from stackbert.pretraining.rundir import is_run
from stackbert.pretraining.rundir import read_record as read_run
from stackbert.recipe import Recipe
from stackbert.reporting.content import Point


@dataclass(frozen=True)
class Growth:
    """What growing did to the validation loss."""

    step: int
    source_depth: int
    target_depth: int
    before: float
    after: float
    recovered: int | None
    """Steps until an evaluation was at or below `before`; None if none was."""


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    variant: str
    fraction: float
    seed: int
    folder: Path
    recipe: Recipe
    points: tuple[Point, ...]
    """Its evaluations, by reference seconds; around a growth there are two at the same step."""
    growths: tuple[Growth, ...]
    masked_lm: float
    """The last evaluation's part that the unigram entropy compares with."""

    @property
    def loss(self) -> float:
        """The last validation loss, in nats."""
        return self.points[-1].loss


@dataclass(frozen=True)
class Results:
    """A comparison's runs."""

    folder: Path
    record: Record
    runs: tuple[Run, ...]
    missing: tuple[str, ...]
    """A sentence for every run that was planned and has not ended."""

    @property
    def variants(self) -> tuple[str, ...]:
        """Names, in the order in which they were asked for."""
        return tuple(dict.fromkeys(entry.variant for entry in self.record.entries))

    def losses(self, variant: str, fraction: float = 1.0) -> dict[int, float]:
        """Seed → final validation loss."""
        found = [r for r in self.runs if (r.variant, r.fraction) == (variant, fraction)]
        return {run.seed: run.loss for run in sorted(found, key=lambda run: run.seed)}

    def fractions(self, variant: str) -> tuple[float, ...]:
        """Shares of the budget at which a variant has runs that ended, rising."""
        return tuple(sorted({run.fraction for run in self.runs if run.variant == variant}))

    def first(self, variant: str, fraction: float = 1.0) -> Run | None:
        """The run of the lowest seed."""
        found = [r for r in self.runs if (r.variant, r.fraction) == (variant, fraction)]
        return min(found, key=lambda run: run.seed, default=None)


def read_results(folder: str | Path) -> Results:
    """Read a comparison's folder.

    Raises:
        UserError: it is none, or a run in it is damaged.
    """
    folder = Path(folder)
    record = read_record(folder)
    runs, missing = [], []
    for entry in record.entries:
        place = find_run(folder, entry.key)
        if place is not None and is_finished(place):
            runs.append(_read_run(entry, place, record.reference))
        else:
            name = f"{entry.variant}, {entry.fraction:.4g}, seed {entry.seed}"
            missing.append(f"{name}: {_why_missing(place)}")
    return Results(folder, record, tuple(runs), tuple(missing))


def _why_missing(run: Path | None) -> str:
    if run is None or not (log := run.with_name(run.name + ".log")).is_file():
        return "not begun"
    reason = first_sentence(last_line(log))
    # Reports are shown to others, who need not know where the comparison lies.
    for place in (run.resolve().parent, run.parent):
        reason = reason.replace(f"{place}{os.sep}", "")
    return f"not finished ({reason})"


def final_loss(run: Path) -> float | None:
    """The last validation loss of a run; None if it has not ended."""
    if not is_finished(run):
        return None
    rows = [row for row in read_ledger(run) if row["kind"] == "evaluation"]
    return float(rows[-1]["loss"])


def _read_run(entry: Entry, folder: Path, reference: Reference) -> Run:
    if not is_run(folder) or not (folder / LEDGER).is_file():
        raise UserError(f"{folder} has a model but no ledger. Remove it and compare again.")
    recipe, _ = read_run(folder)
    rows = read_ledger(folder)

    def point(row: dict[str, Any], loss: float) -> Point:
        return Point(**asdict(reference.spent(recipe, row["step"])), loss=loss)

    points, evaluations = [], []
    for row in rows:
        if row["kind"] == "evaluation":
            evaluations.append(row)
            points.append(point(row, row["loss"]))
        elif row["kind"] == "growth":
            points.append(point(row, row["loss_after"]))
    grown = [
        Growth(
            row["step"],
            row["source_depth"],
            row["target_depth"],
            row["loss_before"],
            row["loss_after"],
            _recovered(row, evaluations),
        )
        for row in rows
        if row["kind"] == "growth"
    ]
    last = evaluations[-1]
    return Run(
        entry.variant,
        entry.fraction,
        entry.seed,
        folder,
        recipe,
        tuple(points),
        tuple(grown),
        last["masked_lm"],
    )


def _recovered(growth: dict[str, Any], evaluations: list[dict[str, Any]]) -> int | None:
    for row in evaluations:
        if row["step"] > growth["step"] and row["loss"] <= growth["loss_before"]:
            return int(row["step"]) - int(growth["step"])
    return None


def grown_variants(results: Results) -> tuple[str, ...]:
    """Every variant but scratch."""
    return tuple(name for name in results.variants if name != SCRATCH)
