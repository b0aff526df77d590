"""comparison.json: what was asked, what was measured for it, and what the runs gave."""

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from stackbert.comparison import standings, verdict
from stackbert.comparison.processes import last_line, log_of
from stackbert.comparison.reference import Budget, Reference, Spent, filling, joined
from stackbert.comparison.variants import SCRATCH, Variant, at_rate
from stackbert.files import Record
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.record import MODEL, read_run
from stackbert.recipe import Recipe
from stackbert.recipes import differing_fields
from stackbert.tables import Frame

COMPARISON = "comparison.json"
RUNS = "runs"
_RUN = ["variant", "fraction", "seed", "learning_rate"]
_RUN_COLUMNS = [*_RUN, "stages", "key", "missing"]
_EVALUATION_COLUMNS = [*_RUN, "depth", *Spent._fields, "loss", "masked_lm"]
_IRRELEVANT = {"name", "summary", "checkpoint", "log_every"}
"""Parts of a recipe that leave every loss as it is."""


class Request(BaseModel):
    """What a comparison asks; the same in every call that resumes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    recipe: Recipe
    corpus: str
    """Fingerprint."""
    budget: str | None
    """As the user wrote it; None is what scratch takes for the recipe's steps."""
    learning_rates: Annotated[
        tuple[Annotated[float, Field(gt=0.0, lt=1000.0)], ...], Field(min_length=1)
    ]
    """Factors of the learning rates that scratch tries."""
    jobs: PositiveInt


class Comparison(Record):
    """A comparison and all that its runs gave so far."""

    what: ClassVar[str] = "a comparison"
    request: Request
    corpus_folder: str
    entropy: float
    """Unigram entropy of the validation text, in nats."""
    reference: Reference
    budget: Budget
    """Of each run at a share of 1."""
    variants: dict[str, Recipe]
    """Each variant's recipe before it was scaled to the budget."""
    runs: Frame = pd.DataFrame(columns=_RUN_COLUMNS)
    """A row for each planned run: variant, fraction, seed, learning_rate (a factor), stages
    ("2:100, 4:300"), key (of its recipe and corpus), missing (why it has not finished, or "")."""
    evaluations: Frame = pd.DataFrame(columns=_EVALUATION_COLUMNS)
    """A row for each validation loss of each finished run: variant, fraction, seed, learning_rate,
    depth, step, seconds, flops, tokens, loss, masked_lm. Seconds and FLOPs are the reference
    table's. At a growth there are two rows at the same step, before and after."""

    @property
    def tried(self) -> pd.DataFrame:
        """The learning rates that scratch tried, if several: learning_rate, loss (NaN if it did
        not finish)."""
        rows = self.evaluations[self.evaluations["variant"] == SCRATCH]
        rows = rows[(rows["fraction"] == 1.0) & (rows["seed"] == self.request.recipe.seed)]
        last = rows.groupby("learning_rate")["loss"].last().astype(float)
        rates = self.request.learning_rates
        tried = last.reindex(rates if len(rates) > 1 else [])
        return tried.rename_axis("learning_rate").reset_index()

    @property
    def learning_rate(self) -> float:
        """The factor of the learning rates that all variants take: scratch's best."""
        tried = self.tried.dropna()
        if tried.empty:
            return self.request.learning_rates[0]
        return float(tried.loc[tried["loss"].idxmin(), "learning_rate"])

    @property
    def results(self) -> pd.DataFrame:
        """`evaluations` at the chosen learning rate, variants in the order they were asked for."""
        rows = self.evaluations
        return rows[rows["learning_rate"] == self.learning_rate].drop(columns="learning_rate")

    def standings(self) -> pd.DataFrame:
        """Final losses against scratch's; see `standings.standings`."""
        return standings.standings(self.results)

    def speeds(self) -> pd.DataFrame:
        """Shares of scratch's budget to the same loss; see `standings.speeds`."""
        return standings.speeds(self.results, self.budget.unit)

    def curves(self) -> pd.DataFrame:
        """The learning curves as a report draws them: group (variant), run, detail (seed and
        share), main (whether the run stands for its variant: its first seed, at the whole budget
        or else at the largest share), depth, seconds, flops, tokens, steps, loss."""
        rows = self.results
        main: dict[str, list[object]] = {}
        runs = rows[_RUN[:3]].drop_duplicates().itertuples(index=False, name=None)
        for name, *run in sorted(runs, key=lambda run: (run[1] != 1.0, -run[1], run[2])):
            main.setdefault(name, run)
        detail = "seed " + rows["seed"].astype(str) + ", "
        detail += rows["fraction"].map("{:.3g}".format) + " of the budget"
        return rows.assign(
            detail=detail,
            run=rows["variant"] + ", " + detail,
            main=[main[row.variant] == [row.fraction, row.seed] for row in rows.itertuples()],
        ).rename(columns={"variant": "group", "step": "steps"})

    def growths(self) -> pd.DataFrame:
        """What growing did to the validation loss: variant, fraction, seed, step, source_depth,
        target_depth, before, after, recovered (steps until an evaluation was at or below `before`;
        NaN if none was)."""
        rows = []
        for run, own in self.results.groupby(_RUN[:3], sort=False):
            for old, new in itertools.pairwise(own.itertuples()):
                if new.step == old.step and new.depth > old.depth:
                    later = own[(own["step"] > new.step) & (own["loss"] <= old.loss)]["step"]
                    recovered = later.min() - new.step
                    growth = (new.step, old.depth, new.depth, old.loss, new.loss, recovered)
                    rows.append((*run, *growth))
        columns = [*_RUN[:3], "step", "source_depth", "target_depth", "before", "after"]
        return pd.DataFrame(rows, columns=[*columns, "recovered"])

    def differences(self) -> pd.DataFrame:
        """What each variant changes of the recipe: variant, stages, other (other fields)."""
        recipe = self.request.recipe
        rows = [
            (
                name,
                _stages(own),
                "; ".join(differing_fields(recipe.model_copy(update={"stages": own.stages}), own)),
            )
            for name, own in self.variants.items()
        ]
        return pd.DataFrame(rows, columns=["variant", "stages", "other"])

    def missing(self) -> list[str]:
        """A sentence for each run at the chosen learning rate that has not finished."""
        runs = self.runs[self.runs["learning_rate"] == self.learning_rate]
        return [
            f"{run.variant}, {run.fraction:.4g}, seed {run.seed}: {run.missing}"
            for run in runs[runs["missing"] != ""].itertuples()
        ]

    def verdict(self) -> list[str]:
        """What the finished runs show, in sentences."""
        return verdict.verdict(
            self.results,
            budget=self.budget,
            entropy=self.entropy,
            tried=self.tried,
            missing=self.missing(),
            recipe=self.request.recipe,
            variants={name: self.variants[name] for name in self.runs["variant"].unique()},
        )

    def folders(self, folder: Path) -> dict[str, Path]:
        """Key of a run → its folder in a comparison's; runs that are the same have one."""
        names = {}
        for run in self.runs.drop_duplicates("key").itertuples():
            share = f"{100 * run.fraction:.4g}".replace(".", "_")
            names[run.key] = f"{run.variant}-{share}-seed{run.seed}-{run.key}"
        return {key: folder / RUNS / name for key, name in names.items()}

    def planned(
        self, variants: Sequence[Variant], rates: Sequence[float]
    ) -> tuple[Self, dict[str, Recipe]]:
        """The comparison with the runs of some variants added, and the recipe of each run by key.

        Those that answer the first question come first.

        Args:
            variants: with their seeds and shares.
            rates: factors of the learning rates.

        Raises:
            UserError: the budget does not buy one step of each stage.
        """
        rows, recipes = [], {}
        for variant, rate in itertools.product(variants, rates):
            for fraction in variant.fractions:
                filled = filling(variant.recipe, self.reference, self.budget, fraction)
                complete = at_rate(self.reference.complete(filled), rate)
                # Checkpoints are for resuming: what is compared is in the ledger and the model.
                checkpoint = complete.checkpoint.model_copy(update={"keep": 1})
                for seed in range(complete.seed, complete.seed + variant.seeds):
                    changes = {"seed": seed, "checkpoint": checkpoint}
                    recipe = complete.model_copy(update=changes)
                    key = run_key(recipe, self.request.corpus)
                    recipes[key] = recipe
                    rows.append((variant.name, fraction, seed, rate, _stages(recipe), key, ""))
        new = pd.DataFrame(rows, columns=_RUN_COLUMNS)
        new = new.sort_values(["seed", "fraction"], ascending=[True, False], kind="stable")
        runs = joined(self.runs, new).drop_duplicates(_RUN, ignore_index=True)
        return self.model_copy(update={"runs": runs}), {key: recipes[key] for key in new["key"]}

    def collected(self, folder: Path) -> Self:
        """With the losses of every run that has finished by now.

        Losses that are there already stay, even if the run's folder is gone.

        Args:
            folder: of the comparison.
        """
        known = dict(list(self.evaluations.groupby(_RUN, sort=False)))
        found, missing = [], []
        folders = self.folders(folder)
        for run in self.runs.itertuples():
            identity = (run.variant, run.fraction, run.seed, run.learning_rate)
            own = known.get(identity)
            if own is None and is_finished(folders[run.key]):
                own = evaluations_of(folders[run.key], self.reference)
                own = own.assign(**dict(zip(_RUN, identity, strict=True)))
            missing.append(_why_missing(folders[run.key]) if own is None else "")
            found += [] if own is None else [own[_EVALUATION_COLUMNS]]
        evaluations = joined(self.evaluations[:0], *found)
        runs = self.runs.assign(missing=missing)
        return self.model_copy(update={"runs": runs, "evaluations": evaluations})


def read_comparison(folder: str | Path) -> Comparison:
    """A comparison's folder, with the runs that have finished by now.

    Raises:
        UserError: it is no comparison, or a file in it is damaged.
    """
    return Comparison.read(Path(folder) / COMPARISON).collected(Path(folder))


def run_key(recipe: Recipe, corpus: str) -> str:
    """Twelve hexadecimal digits of everything that decides a run's losses."""
    relevant = recipe.model_dump(mode="json", exclude=_IRRELEVANT)
    text = json.dumps([relevant, corpus], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_finished(run: Path) -> bool:
    """Whether a run has ended well."""
    return (run / MODEL).is_dir()


def evaluations_of(run: Path, reference: Reference) -> pd.DataFrame:
    """The validation losses of a run, placed on the reference table's axes.

    Raises:
        UserError: not a run directory, or a damaged one.
    """
    recipe, ledger = read_run(run).recipe, read_ledger(run)
    rows = []
    for row in ledger[ledger["kind"].isin(["evaluation", "growth"])].to_dict("records"):
        grown = row["kind"] == "growth"
        depth, loss = ("target_depth", "loss_after") if grown else ("depth", "loss")
        spent = reference.spent(recipe, int(row["step"]))
        rows.append((int(row[depth]), *spent, row[loss], None if grown else row["masked_lm"]))
    return pd.DataFrame(rows, columns=["depth", *Spent._fields, "loss", "masked_lm"])


def _stages(recipe: Recipe) -> str:
    return ", ".join(f"{stage.depth}:{stage.steps:,}" for stage in recipe.stages)


def _why_missing(run: Path) -> str:
    if not log_of(run).is_file():
        return "not begun"
    # Without the advice, and without the comparison's place: reports are shown to others.
    reason = last_line(run).partition(". ")[0].removesuffix(".")
    for place in (run.resolve().parent, run.parent):
        reason = reason.replace(f"{place}{os.sep}", "")
    return f"not finished ({reason})"
