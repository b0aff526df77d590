"""comparison.json: what was asked, what was measured for it, and what the runs gave."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, PositiveInt

from stackbert.comparison import statistics, verdict
from stackbert.comparison.processes import last_line
from stackbert.comparison.reference import Budget, Reference, Spent, filling, joined
from stackbert.comparison.variants import SCRATCH, Variant, is_fixed
from stackbert.files import Record
from stackbert.pretraining.ledger import read_ledger
from stackbert.pretraining.record import MODEL, read_run
from stackbert.recipe import Recipe
from stackbert.tables import Frame, Tables

COMPARISON = "comparison.json"
RUNS = "runs"
_RUN = ["variant", "fraction", "seed"]
_RATE = ["variant", "learning_rate"]


class Request(BaseModel):
    """What a comparison asks; the same in every call that resumes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    recipe: Recipe
    corpus: str
    """Fingerprint."""
    budget: str | None
    """As the user wrote it; None is what scratch takes for the recipe's steps."""
    jobs: PositiveInt


class Comparison(Record, Tables):
    """A comparison and all that its runs gave so far."""

    what: ClassVar[str] = "a comparison"
    version: ClassVar[int] = 3
    request: Request
    corpus_folder: str
    entropy: float
    """Unigram entropy of the validation text, in nats."""
    reference: Reference
    budget: Budget
    """Of each run at a share of 1; the largest of several."""
    shares: tuple[float, ...]
    """What the budgets are of the largest, falling: 1 first."""
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
        """Of variants that tried several learning rates: variant, learning_rate (a factor), loss
        at the smallest budget with the first seed (NaN if it did not finish)."""
        seed, share = self.request.recipe.seed, self.shares[-1]
        runs = self.runs[(self.runs["seed"] == seed) & (self.runs["fraction"] == share)]
        runs = runs[runs.duplicated("variant", keep=False)]
        last = self.evaluations.groupby("folder")["loss"].last()
        tried = runs.assign(loss=runs["folder"].map(last).astype(float))[[*_RATE, "loss"]]
        return tried.sort_values(_RATE)

    @property
    def rates(self) -> dict[str, float]:
        """The factor of the learning rates that counts, of each variant: its best."""
        best = self.tried.dropna().sort_values("loss")
        known = joined(best, self.runs[_RATE]).drop_duplicates("variant")
        return dict(zip(known["variant"], known["learning_rate"], strict=True))

    @property
    def results(self) -> pd.DataFrame:
        """`evaluations` at each variant's own learning rate, with variant, fraction and seed."""
        runs = self._own_runs()[[*_RUN, "folder"]]
        return runs.merge(self.evaluations, on="folder").drop(columns="folder")

    def _own_runs(self) -> pd.DataFrame:
        return self.runs[self.runs["learning_rate"] == self.runs["variant"].map(self.rates)]

    def standings(self, yardstick: str = SCRATCH, share: float = 1.0) -> pd.DataFrame:
        """As `statistics.standings`, and what a run spent by the reference table: step, seconds,
        flops, tokens, tokens_a_parameter (of the final layers)."""
        rows = self.results
        table = statistics.standings(rows, yardstick, share)
        if self.gap(yardstick, share) < statistics.PLATEAU:
            table["outcome"] = "plateau"
        spent = rows.groupby(_RUN[:2])[["depth", *Spent._fields]].last().reset_index()
        parameters = self.reference.steps.set_index("depth")["parameters"].to_dict()
        spent["tokens_a_parameter"] = spent["tokens"] / spent.pop("depth").map(parameters)
        return table.merge(spent, on=_RUN[:2])

    def tables(self) -> dict[str, pd.DataFrame]:
        """The standings, beside scratch; none before a run has finished."""
        return {"standings": self.standings()} if len(self.evaluations) else {}

    def best_fixed(self, share: float = 1.0) -> str:
        """The control with the lowest mean loss at a share of the budget; "" if none has finished.

        The mean is over the seeds that all controls have, if there are any.
        """
        rows = self.results[self.results["fraction"] == share]
        final = rows.groupby(["variant", "seed"])["loss"].last().unstack("variant")
        final = final.filter([name for name in final if is_fixed(name)])
        complete = final.dropna()
        means = (complete if len(complete) else final).mean()
        return str(means.idxmin()) if len(means) else ""

    def speeds(self, yardstick: str = SCRATCH) -> pd.DataFrame:
        """The share of the budget after which a variant has the yardstick's loss.

        Columns: variant, seed, share (a `Share`). Of variants, but no controls, that ran at several
        budgets: in mid-schedule a loss is higher than at the end, so a learning curve does not
        tell. None if the yardstick ended on the plateau.
        """
        rows, target = [], statistics.final_losses(self.results, yardstick)
        grown = statistics.without_controls(self.results)
        for (name, seed), own in grown.groupby(["variant", "seed"], sort=False):
            final = own.groupby("fraction")["loss"].last().to_dict()
            if len(final) > 1 and seed in target and self.gap(yardstick) >= statistics.PLATEAU:
                rows.append((name, seed, statistics.share_for(final, target[seed])))
        return pd.DataFrame(rows, columns=["variant", "seed", "share"])

    def gap(self, variant: str, share: float = 1.0) -> float:
        """Nats that a variant's masked-LM loss ends below the unigram entropy, mean over its seeds.

        NaN if no run has finished.
        """
        final = statistics.final_losses(self.results, variant, share, "masked_lm")
        return float(self.entropy - pd.Series(final, dtype=float).mean())

    def curves(self) -> pd.DataFrame:
        """Learning curves to draw: group (variant), run, detail (seed and share), main (a variant's
        first seed at its largest share), depth, seconds, flops, tokens, steps, loss."""
        rows = self.results.rename(columns={"variant": "group", "step": "steps"})
        detail = "seed " + rows["seed"].astype(str) + ", "
        detail += rows["fraction"].map("{:.3g}".format) + " of the budget"
        rows = rows.assign(detail=detail, run=rows["group"] + ", " + detail)
        runs = rows.sort_values(["fraction", "seed"], ascending=[False, True], kind="stable")
        return rows.assign(main=rows["run"].isin(runs.drop_duplicates("group")["run"]))

    def missing(self) -> list[str]:
        """A sentence for each run that has not finished, but for rates that did not win."""
        return [
            f"{run.variant}, {run.fraction:.4g}, seed {run.seed}: {run.missing}"
            for run in self._own_runs().query("missing != ''").itertuples()
        ]

    def verdict(self) -> list[str]:
        """What the finished runs show, in sentences; the first variant that grows comes first.

        It is held against the control that ends lowest, then against scratch.
        """
        best = self.best_fixed()
        variants = {name: self.variants[name] for name in self.runs["variant"].unique()}
        gaps = {name: self.gap(name) for name in (best, SCRATCH)}
        if math.isnan(gaps[SCRATCH]):
            return ["Scratch has no finished run yet, so there is nothing to say."]
        heads, times = [], []
        first = next((name for name in variants if not is_fixed(name)), "")
        # Nothing is claimed against a control on the plateau, and nothing at all if all are.
        for name in [name for name, gap in gaps.items() if gap >= statistics.PLATEAU]:
            text = f"{name}, the best fixed depth," if name == best else name
            heads += verdict.headline(self.standings(name), first, text, self.budget)
            times += verdict.shares(self.speeds(name), name, self.budget)
        found = [verdict.plateau(name, gap) for name, gap in gaps.items()]
        if gaps[best] >= statistics.PLATEAU:
            table, deepest = self.standings(best), variants[SCRATCH].stages[-1].depth
            if variants[best].stages[-1].depth < deepest:
                heads.append(verdict.too_deep(table, deepest))
            found = [*heads, *times, *verdict.order(table), *self._over_budgets(), *found]
        return [
            *found,
            *verdict.peculiar(self.request.recipe, variants),
            *verdict.rates(self.tried),
            *(verdict.spread(self.reference) if self.budget.unit == "seconds" else []),
            *verdict.unfinished(self.missing()),
        ]

    def _over_budgets(self) -> list[str]:
        """The envelope at each of several budgets, and where losses cross."""
        if len(self.shares) < 2:
            return []
        found, past = [], []
        for share in [share for share in reversed(self.shares) if self.best_fixed(share)]:
            best = self.best_fixed(share)
            table = self.standings(best, share).query("fraction == @share")
            found.append(verdict.envelope(table, self.budget.part(share)))
            past += [share] if self.gap(best, share) >= statistics.PLATEAU else []
        rows = self.results[self.results["fraction"].isin(past if len(past) > 1 else [])]
        return found + verdict.crossings(statistics.crossings(rows), self.budget)

    def planned(
        self, variants: Sequence[Variant], *, trials: bool = False
    ) -> tuple[Self, dict[str, Recipe]]:
        """The comparison with the runs of some variants added, and their recipes by folder.

        Those that answer the first question come first; of several budgets the smallest does, for a
        first answer comes early then. With `trials` only those that choose between several learning
        rates: one seed each at the smallest budget.
        """
        rows, recipes, first = [], {}, self.request.recipe.seed
        for variant in variants:
            rates, shares, seeds = sorted(variant.learning_rates), variant.fractions, variant.seeds
            if trials:
                rates = rates if len(rates) > 1 else []
                shares, seeds = frozenset(self.shares[-1:]), 1
            else:
                rates = [self.rates.get(variant.name, rates[0])]
            for rate, fraction in itertools.product(rates, shares):
                filled = filling(variant.recipe, self.reference, self.budget, fraction)
                complete, optimizer = self.reference.complete(filled), filled.optimizer
                factors = {"lr": rate * optimizer.lr, "muon_lr": rate * optimizer.muon_lr}
                for seed in range(first, first + seeds):
                    changes = {"seed": seed, "optimizer": optimizer.model_copy(update=factors)}
                    name = f"{variant.name}-{100 * fraction:g}-seed{seed}"
                    name += "" if rate == 1.0 else f"-rate{rate:g}"
                    recipes[name] = complete.model_copy(update=changes)
                    rows.append((variant.name, fraction, seed, rate, stages_text(filled), name, ""))
        new = pd.DataFrame(rows, columns=self.runs.columns)
        rising = [True, len(self.shares) > 1]
        new = new.sort_values(["seed", "fraction"], ascending=rising, kind="stable")
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


def stages_text(recipe: Recipe) -> str:
    """The stages as "depth:steps"."""
    return ", ".join(f"{stage.depth}:{stage.steps:,}" for stage in recipe.stages)
