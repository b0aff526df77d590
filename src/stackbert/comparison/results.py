"""comparison.json: what was asked, what was measured for it, and what the runs gave."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from stackbert.comparison import standings, verdict
from stackbert.comparison.processes import last_line, log_of
from stackbert.comparison.reference import Budget, Reference, Spent, filling, joined
from stackbert.comparison.variants import SCRATCH, Variant
from stackbert.files import Record
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.record import MODEL, read_run
from stackbert.recipe import Recipe
from stackbert.recipes import differing_fields
from stackbert.tables import Frame

COMPARISON = "comparison.json"
RUNS = "runs"
_RUN = ["variant", "fraction", "seed", "learning_rate"]
_RUN_COLUMNS = [*_RUN, "stages", "folder", "missing"]
_EVALUATION_COLUMNS = [*_RUN, "depth", *Spent._fields, "loss", "masked_lm"]


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
    ("2:100, 4:300"), folder (below `RUNS`), missing (why it has not finished, or "")."""
    evaluations: Frame = pd.DataFrame(columns=_EVALUATION_COLUMNS)
    """A row for each validation loss of each finished run: variant, fraction, seed, learning_rate,
    depth, step, seconds and flops (by the reference table), tokens, loss, masked_lm. At a growth
    there are two at the same step, before and after."""

    @property
    def tried(self) -> pd.DataFrame:
        """Of scratch, if it tried several: learning_rate, loss (NaN if it did not finish)."""
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
        """`evaluations` at the chosen learning rate."""
        rows = self.evaluations
        return rows[rows["learning_rate"] == self.learning_rate].drop(columns="learning_rate")

    def standings(self) -> pd.DataFrame:
        """As `standings.standings`."""
        return standings.standings(self.results)

    def speeds(self) -> pd.DataFrame:
        """As `standings.speeds`."""
        return standings.speeds(self.results, self.budget.unit)

    def curves(self) -> pd.DataFrame:
        """Learning curves to draw: group (variant), run, detail (seed and share), main (whether the
        run stands for its variant), depth, seconds, flops, tokens, steps, loss."""
        rows = self.results
        runs = rows[_RUN[:3]].drop_duplicates().itertuples(index=False, name=None)
        main: dict[str, tuple[object, ...]] = {}
        # The first seed at the whole budget, or else at the largest share.
        for run in sorted(runs, key=lambda run: (run[1] != 1.0, -run[1], run[2])):
            main.setdefault(run[0], run)
        detail = "seed " + rows["seed"].astype(str) + ", "
        detail += rows["fraction"].map("{:.3g}".format) + " of the budget"
        return rows.assign(
            detail=detail,
            run=rows["variant"] + ", " + detail,
            main=[run in main.values() for run in rows[_RUN[:3]].itertuples(index=False)],
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
        rows = []
        for name, own in self.variants.items():
            alike = self.request.recipe.model_copy(update={"stages": own.stages})
            rows.append((name, _stages(own), "; ".join(differing_fields(alike, own))))
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

    def planned(
        self, variants: Sequence[Variant], rates: Sequence[float]
    ) -> tuple[Self, dict[str, Recipe]]:
        """The comparison with the runs of some variants added, and their recipes by folder.

        Those that answer the first question come first. `rates` are factors.

        Raises:
            UserError: the budget does not buy one step of each stage.
        """
        rows, recipes = [], {}
        for variant, rate in itertools.product(variants, rates):
            optimizer = variant.recipe.optimizer
            factors = {"lr": rate * optimizer.lr, "muon_lr": rate * optimizer.muon_lr}
            for fraction in variant.fractions:
                filled = filling(variant.recipe, self.reference, self.budget, fraction)
                complete = self.reference.complete(filled)
                for seed in range(complete.seed, complete.seed + variant.seeds):
                    changes = {
                        "seed": seed,
                        "optimizer": optimizer.model_copy(update=factors),
                        # They are for resuming: what is compared is in the ledger and the model.
                        "checkpoint": complete.checkpoint.model_copy(update={"keep": 1}),
                    }
                    name = f"{variant.name}-{100 * fraction:g}-seed{seed}"
                    name += "" if rate == 1.0 else f"-rate{rate:g}"
                    recipes[name] = complete.model_copy(update=changes)
                    rows.append((variant.name, fraction, seed, rate, _stages(complete), name, ""))
        new = pd.DataFrame(rows, columns=_RUN_COLUMNS)
        new = new.sort_values(["seed", "fraction"], ascending=[True, False], kind="stable")
        runs = joined(self.runs, new).drop_duplicates(_RUN, ignore_index=True)
        return self.model_copy(update={"runs": runs}), {name: recipes[name] for name in new.folder}

    def collected(self, folder: Path) -> Self:
        """With the losses of every run that has finished by now, and those known already."""
        known = dict(list(self.evaluations.groupby(_RUN, sort=False)))
        found, missing = [], []
        for run in self.runs.itertuples():
            identity = (run.variant, run.fraction, run.seed, run.learning_rate)
            own, place = known.get(identity), folder / RUNS / run.folder
            if own is None and (place / MODEL).is_dir():
                own = evaluations_of(place, self.reference)
                own = own.assign(**dict(zip(_RUN, identity, strict=True)))
            missing.append(_why_missing(place) if own is None else "")
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
