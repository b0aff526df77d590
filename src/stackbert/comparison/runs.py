"""The runs of a comparison: which recipe each has, and in which folder it lies."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stackbert.comparison.calibration import Settings
from stackbert.comparison.costs import filling
from stackbert.comparison.folder import Entry, Record
from stackbert.comparison.variants import Variant, at_rate
from stackbert.files import write_text_atomically
from stackbert.pretraining.rundir import MODEL
from stackbert.recipe import CheckpointSpec, Recipe

RUNS = "runs"
_IRRELEVANT = {"name", "summary", "checkpoint", "log_every"}
"""Parts of a recipe that leave every loss as it is."""


@dataclass(frozen=True)
class PlannedRun:
    """One variant at one share of the budget with one seed."""

    variant: str
    fraction: float
    seed: int
    recipe: Recipe
    """Complete: nothing of it is left to be measured."""
    key: str
    """Of everything that decides the losses: recipe and corpus."""
    note: str = ""

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.variant}, {self.fraction:.4g} of the budget, seed {self.seed}{self.note}"


def planned(
    variant: str,
    fraction: float,
    recipe: Recipe,
    settings: Settings,
    corpus: str,
    *,
    note: str = "",
) -> PlannedRun:
    """A run of a recipe whose steps and seed are final.

    Args:
        variant: its name.
        fraction: its share of the budget.
        recipe: scaled, seeded.
        settings: of all runs.
        corpus: fingerprint.
        note: for its label.
    """
    complete = settings.apply(recipe).model_copy(update={"checkpoint": _checkpoints(recipe)})
    return PlannedRun(variant, fraction, recipe.seed, complete, run_key(complete, corpus), note)


def plan_runs(
    variants: Sequence[Variant], record: Record, *, rate: float
) -> tuple[PlannedRun, ...]:
    """Every run of every variant, those that answer the first question first.

    Args:
        variants: with their seeds and shares.
        record: what all runs share: settings, reference, budget, corpus.
        rate: factor of the learning rates.

    Raises:
        UserError: the budget does not buy one step of each stage.
    """
    runs = [
        planned(
            variant.name,
            fraction,
            filling(
                seeded(at_rate(variant.recipe, rate), seed),
                record.reference,
                record.budget,
                fraction,
            ),
            record.settings,
            record.question.corpus,
        )
        for variant in variants
        for fraction in variant.fractions
        for seed in range(variant.seeds)
    ]
    order = [variant.name for variant in variants]
    return tuple(sorted(runs, key=lambda r: (r.seed, -r.fraction, order.index(r.variant))))


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with the seed of its run number `seed`, from 0: its own for the first."""
    return recipe.model_copy(update={"seed": recipe.seed + seed})


def run_key(recipe: Recipe, corpus: str) -> str:
    """Twelve hexadecimal digits of everything that decides a run's losses."""
    relevant = recipe.model_dump(mode="json", exclude=_IRRELEVANT)
    text = json.dumps([relevant, corpus], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_folder(comparison: Path, run: PlannedRun) -> Path:
    """Where a run lies: a folder of its key that is there, whatever it is called, or a new one."""
    share = f"{100 * run.fraction:.4g}".replace(".", "_")
    new = comparison / RUNS / f"{run.variant}-{share}-seed{run.seed}-{run.key}"
    return find_run(comparison, run.key) or new


def find_run(comparison: Path, key: str) -> Path | None:
    """The folder of a run, which may be there only as its log or its recipe beside it."""
    runs = comparison / RUNS
    for ending in ("", ".log", ".yaml"):
        for path in sorted(runs.glob(f"*-{key}{ending}")):
            return path.with_name(path.name.removesuffix(ending))
    return None


def recipe_file(comparison: Path, run: PlannedRun) -> Path:
    """The run's recipe as a file, written if it is not there."""
    folder = run_folder(comparison, run)
    path = folder.with_name(folder.name + ".yaml")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, run.recipe.to_yaml())
    return path


def with_runs(record: Record, runs: Sequence[PlannedRun]) -> Record:
    """The record with runs added that it does not have yet."""
    known = {(e.variant, e.fraction, e.seed): e for e in record.entries}
    for run in runs:
        entry = Entry(run.variant, run.fraction, run.seed, run.key)
        known[(run.variant, run.fraction, run.seed)] = entry
    return replace(record, entries=tuple(known.values()))


def is_finished(folder: Path) -> bool:
    """Whether a run has ended well."""
    return (folder / MODEL).is_dir()


def _checkpoints(recipe: Recipe) -> CheckpointSpec:
    # To resume from, no more: what is compared is in the ledger and in the final model.
    return recipe.checkpoint.model_copy(update={"keep": 1})
