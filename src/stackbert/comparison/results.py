"""comparison.json: what was asked, what was measured for it, and what the runs gave."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from stackbert.comparison import statistics, verdict
from stackbert.comparison.processes import last_line
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
_RUN = ["variant", "fraction", "seed"]


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
    runs: Frame = pd.DataFrame(columns=[*_RUN, "learning_rate", "stages", "folder", "missing"])
    """A row for each planned run: variant, fraction, seed, learning_rate (a factor), stages
    ("2:100, 4:300"), folder (below `RUNS`), missing (why it has not finished, or "")."""
    evaluations: Frame = pd.DataFrame(
        columns=["folder", "depth", *Spent._fields, "loss", "masked_lm"]
    )
    """A row for each validation loss of each finished run: its folder, depth, step, seconds and
    flops (by the reference table), tokens, loss, masked_lm. At a growth there are two at the same
    step, before and after."""

    @property
    def tried(self) -> pd.DataFrame:
        """Of scratch, if it tried several: learning_rate, loss (NaN if it did not finish)."""
        last = self.evaluations.groupby("folder")["loss"].last()
        runs = self.runs[(self.runs["variant"] == SCRATCH) & (self.runs["fraction"] == 1.0)]
        runs = runs[runs["seed"] == self.request.recipe.seed].sort_values("learning_rate")
        tried = runs.assign(loss=runs["folder"].map(last).astype(float))
        return tried[["learning_rate", "loss"]][: None if len(tried) > 1 else 0]

    @property
    def learning_rate(self) -> float:
        """The factor of the learning rates that all variants take: scratch's best."""
        tried = self.tried.dropna().sort_values("loss")
        return float([*tried["learning_rate"], self.request.learning_rates[0]][0])

    @property
    def results(self) -> pd.DataFrame:
        """`evaluations` at the chosen learning rate, with variant, fraction and seed."""
        runs = self.runs.loc[self.runs["learning_rate"] == self.learning_rate, [*_RUN, "folder"]]
        return runs.merge(self.evaluations, on="folder").drop(columns="folder")

    def standings(self) -> pd.DataFrame:
        """As `statistics.standings`."""
        return statistics.standings(self.results)

    def speeds(self) -> pd.DataFrame:
        """As `statistics.speeds`."""
        return statistics.speeds(self.results)

    def curves(self) -> pd.DataFrame:
        """Learning curves to draw: group (variant), run, detail (seed and share), main (a variant's
        first seed at its largest share), depth, seconds, flops, tokens, steps, loss."""
        rows = self.results.rename(columns={"variant": "group", "step": "steps"})
        detail = "seed " + rows["seed"].astype(str) + ", "
        detail += rows["fraction"].map("{:.3g}".format) + " of the budget"
        rows = rows.assign(detail=detail, run=rows["group"] + ", " + detail)
        runs = rows.sort_values(["fraction", "seed"], ascending=[False, True], kind="stable")
        return rows.assign(main=rows["run"].isin(runs.drop_duplicates("group")["run"]))

    def growths(self) -> pd.DataFrame:
        """What growing did to the validation loss: variant, fraction, seed, step, source_depth,
        target_depth, before, after."""
        rows = self.results
        old = rows.groupby(_RUN)[["step", "depth", "loss"]].shift()
        rows = rows.assign(source_depth=old["depth"], before=old["loss"])
        grown = rows[(rows["step"] == old["step"]) & (rows["depth"] > old["depth"])]
        grown = grown.rename(columns={"depth": "target_depth", "loss": "after"})
        return grown[[*_RUN, "step", "source_depth", "target_depth", "before", "after"]]

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
        """What the finished runs show, in sentences; the first variant makes the headline."""
        rows, table = self.results, self.standings()
        if table.empty:
            return ["Scratch has no finished run yet, so there is nothing to say."]
        names = self.runs["variant"].unique()
        first = table[table["variant"] == next((n for n in names if n != SCRATCH), "")]
        return [
            *verdict.plateau(statistics.plateau_gap(rows, self.entropy)),
            *verdict.headline(first, self.budget),
            *verdict.shares(self.speeds(), self.budget),
            *verdict.order(table[table["fraction"] == 1.0]),
            *verdict.rates(self.tried),
            *verdict.unfinished(self.missing()),
            *verdict.schedules(self.request.recipe, {name: self.variants[name] for name in names}),
        ]

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
        new = pd.DataFrame(rows, columns=self.runs.columns)
        new = new.sort_values(["seed", "fraction"], ascending=[True, False], kind="stable")
        runs = joined(self.runs, new).drop_duplicates("folder", ignore_index=True)
        return self.model_copy(update={"runs": runs}), {name: recipes[name] for name in new.folder}

    def collected(self, folder: Path) -> Self:
        """With the losses of every run that has finished by now, and those known already."""
        known, found, missing = set(self.evaluations["folder"]), [self.evaluations], []
        for name in self.runs["folder"]:
            run = folder / RUNS / name
            if name not in known and (run / MODEL).is_dir():
                found.append(evaluations_of(run, self.reference).assign(folder=name))
                known.add(name)
            # Without the advice, and without the comparison's place: reports are shown to others.
            reason = last_line(run).partition(". ")[0].replace(f"{run.parent}/", "")
            missing.append("" if name in known else f"not finished ({reason.removesuffix('.')})")
        changes = {"runs": self.runs.assign(missing=missing), "evaluations": joined(*found)}
        return self.model_copy(update=changes)


def read_comparison(folder: str | Path) -> Comparison:
    """A comparison's folder, with the runs that have finished by now.

    Raises:
        UserError: it is no comparison, or a file in it is damaged.
    """
    return Comparison.read(Path(folder) / COMPARISON).collected(Path(folder))


def evaluations_of(run: Path, reference: Reference) -> pd.DataFrame:
    """The validation losses of a run, placed on the reference table's axes."""
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
