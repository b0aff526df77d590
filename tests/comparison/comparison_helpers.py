"""A tiny recipe, and tables of costs and results made by hand."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tiny_runs
from stackbert.comparison.reference import Budget, Reference, StepKind, Unit, step_kinds
from stackbert.comparison.results import Comparison, Request
from stackbert.comparison.variants import at_depth, growths_of
from stackbert.errors import StackBertError, UserError
from stackbert.pretraining.run import pretrain
from stackbert.recipe import Recipe
from stackbert.recipes import load_recipe
from tiny_runs import recipe_of

# Whatever is left to the machine or the clock by default is fixed here.
TINY: dict[str, Any] = tiny_runs.TINY | {
    "model": tiny_runs.TINY["model"]
    | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "stages": [{"depth": 1, "steps": 40}, {"depth": 2, "steps": 40}, {"depth": 4, "steps": 40}],
    "batch": {"sequences": 16, "sequence_length": 32, "micro_batch": 16},
    "optimizer": {"name": "adamw", "lr": 1e-2},
    "schedule": {"warmup_steps": 6},
    "evaluation": {"sequences": 32, "every_steps": 5},
    "checkpoint": {"every_steps": None, "every_minutes": None},
}


def tiny_recipe(**fields: object) -> Recipe:
    """The tiny recipe; `optimizer__lr=1e-3` sets optimizer.lr."""
    return recipe_of(TINY, **fields)


def scratch_of(recipe: Recipe) -> Recipe:
    return at_depth(recipe, recipe.stages[-1].depth)


def table(
    *recipes: Recipe,
    seconds: Callable[[StepKind], float] = lambda kind: 0.1 + 0.2 * kind.depth,
    growth: float = 0.5,
) -> Reference:
    """A reference table that nobody measured, for every kind of step of some recipes."""
    kinds = sorted({kind for recipe in recipes for kind in step_kinds(recipe)})
    pairs = dict.fromkeys(pair for recipe in recipes for pair in growths_of(recipe))
    times, steps = [seconds(kind) for kind in kinds], pd.DataFrame(kinds)
    steps = steps.assign(
        micro_batch=4 * steps["depth"],
        flops=1000 * steps["depth"] + steps["sequence_length"],
        parameters=1000 * steps["depth"],
        **dict.fromkeys(("seconds", "fastest", "slowest"), times),
        readings=1,
    )
    growths = pd.DataFrame(
        [(*pair, growth) for pair in pairs], columns=["source_depth", "target_depth", "seconds"]
    )
    options = {"threads": 1, "precision": "fp32", "compile": False}
    return Reference(machine={"device": "none"}, steps=steps, growths=growths, **options)


def in_process(patch: pytest.MonkeyPatch) -> list[str]:
    """Train runs here and measure nothing; names of those trained, filled as they are."""
    trained: list[str] = []

    def train_all(runs: Sequence[Path], corpus: Path, **_: object) -> Iterator[Any]:
        for run in runs:
            trained.append(run.name)
            failure = ""
            try:
                pretrain(load_recipe(run.with_name(run.name + ".yaml")), corpus=corpus, out=run)
            except StackBertError as error:
                run.with_name(run.name + ".log").write_text(f"stackbert: {error}\n")
                failure = f"{run.name} failed: {error}"
            yield run, 0.0, failure

    def calibrate(
        known: Reference | None, recipes: Sequence[Recipe], *_: object, **__: object
    ) -> Reference:
        new = table(*recipes)
        return known.extended(new) if known else new

    patch.setattr("stackbert.comparison.compare.train_all", train_all)
    patch.setattr("stackbert.comparison.compare.calibrate", calibrate)
    return trained


def refusal(call: Callable[[], object]) -> str:
    """The one sentence of the UserError that `call` must raise."""
    try:
        call()
    except UserError as error:
        text = str(error)
        assert text.endswith((".", "…", "?")), text
        return text
    raise AssertionError("it was not refused")


def compared(
    losses: Mapping[str, Mapping[float, Sequence[float | None]]],
    *,
    recipes: Mapping[str, Recipe] | None = None,
    entropy: float = 6.0,
    masked_lm: float | None = None,
    unit: Unit = "seconds",
    shares: tuple[float, ...] = (1.0,),
) -> Comparison:
    """A comparison by hand, on a budget of 100 seconds, 50 steps or 1e9 FLOPs.

    `losses` are by variant, share of the budget and seed from 0 (None: it has not finished);
    `masked_lm` is the last of every run, by default the whole loss.
    """
    tiny = tiny_recipe()
    depths = {name: int(name.removeprefix("depth-")) for name in losses if "depth" in name}
    fixed = {name: at_depth(tiny, depth) for name, depth in ({"scratch": 4} | depths).items()}
    variants = dict.fromkeys(losses, tiny) | fixed
    runs, evaluations = [], []
    for variant, by_share in losses.items():
        for share, by_seed in by_share.items():
            for seed, loss in enumerate(by_seed):
                folder = f"{variant}-{share}-{seed}"
                missing = "not finished (not begun)" if loss is None else ""
                runs.append((variant, share, seed, 1.0, "", folder, missing))
                for at, value in [(0.0, 7.0), (share, loss)] if loss else ():
                    spent = (50.0 * at, 100.0 * at, 1e9 * at, 1e6 * at)
                    row = (folder, depths.get(variant, 4), *spent, value, masked_lm or value)
                    evaluations.append(row)
    comparison = Comparison(
        request=Request(recipe=tiny, corpus="", budget=None, jobs=1),
        corpus_folder="",
        entropy=entropy,
        reference=table(tiny),
        shares=shares,
        budget=Budget(amount={"seconds": 100.0, "step": 50.0, "flops": 1e9}[unit], unit=unit),
        variants=variants | dict(recipes or {}),
    )
    tables = {
        "runs": pd.DataFrame(runs, columns=comparison.runs.columns),
        "evaluations": pd.DataFrame(evaluations, columns=comparison.evaluations.columns),
    }
    return comparison.model_copy(update=tables)
