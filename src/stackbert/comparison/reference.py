"""Equal time by a table: what each kind of step costs here, and how many steps a budget buys.

A clock would give a variant that ran in a quiet minute more than one that ran in a busy one, so
seconds are counted: steps times the seconds of their kind, measured once (`calibration`).
"""

import bisect
import functools
import re
from typing import Any, Literal, NamedTuple

import pandas as pd
from pydantic import BaseModel, ConfigDict

from stackbert.errors import UserError
from stackbert.recipe import Recipe
from stackbert.tables import Frame
from stackbert.units import format_duration, parse_duration

Unit = Literal["seconds", "flops", "step"]
"""Of a budget; a column of a comparison's results, too."""
_PAIR = ["source_depth", "target_depth"]
_ROUNDING = 1e-9
"""A sum of floats may be off by this share of itself; a budget of exactly N steps must buy N."""


class StepKind(NamedTuple):
    """All that decides what a step costs within one comparison."""

    depth: int
    sequences: int
    sequence_length: int
    mask_rate: float


class Spent(NamedTuple):
    """How far a run has come, on every axis."""

    step: float = 0.0
    seconds: float = 0.0
    flops: float = 0.0
    tokens: float = 0.0


class Reference(BaseModel):
    """What was measured on this machine, once, for all runs of a comparison."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)
    machine: dict[str, Any]
    threads: int
    """Of each run."""
    precision: Literal["bf16", "fp32"]
    compile: bool
    steps: Frame
    """The fields of `StepKind`, micro_batch (rows a forward pass), flops, parameters (of all
    layers), seconds (median of the readings, one a measuring process), fastest, slowest, readings
    (their number)."""
    growths: Frame
    """source_depth, target_depth, seconds."""

    @functools.cached_property
    def by_kind(self) -> dict[StepKind, Any]:
        """Kind of step → its row of `steps`."""
        return {StepKind(*row[:4]): row for row in self.steps.itertuples(index=False)}

    @functools.cached_property
    def growth_seconds(self) -> dict[tuple[int, int], float]:
        """(source depth, target depth) → seconds."""
        return {(a, b): seconds for a, b, seconds in self.growths.itertuples(index=False)}

    def spent(self, recipe: Recipe, steps: int) -> Spent:
        """What the first `steps` steps of a recipe cost, with the growths between them."""
        total, depth = Spent(), recipe.stages[0].depth
        for kind, stage in zip(step_kinds(recipe), recipe.stages, strict=True):
            done = min(steps, stage.steps)
            if done <= 0:
                break
            row = self.by_kind[kind]
            grown = self.growth_seconds[depth, kind.depth] if kind.depth > depth else 0.0
            total = Spent(
                total.step + done,
                total.seconds + done * row.seconds + grown,
                total.flops + done * row.flops,
                total.tokens + done * kind.sequences * kind.sequence_length,
            )
            steps, depth = steps - done, kind.depth
        return total

    def cost(self, recipe: Recipe, unit: Unit) -> float:
        """What a whole run costs."""
        return float(getattr(self.spent(recipe, recipe.total_steps), unit))

    def extended(self, new: "Reference") -> "Reference":
        """With the rows of another table that this one lacks."""
        tables = {
            "steps": joined(self.steps, new.steps).drop_duplicates([*StepKind._fields]),
            "growths": joined(self.growths, new.growths).drop_duplicates(_PAIR),
        }
        return Reference(**dict(new) | tables)

    def complete(self, recipe: Recipe) -> Recipe:
        """The recipe with nothing left for a run to measure by itself."""
        stages = tuple(
            stage.model_copy(update={"micro_batch": self.by_kind[kind].micro_batch})
            for stage, kind in zip(recipe.stages, step_kinds(recipe), strict=True)
        )
        settings = {"precision": self.precision, "compile": self.compile, "stages": stages}
        return recipe.model_copy(update=settings)


class Budget(BaseModel):
    """What each variant may spend."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        if self.unit == "seconds":
            return format_duration(self.amount)
        return f"{self.amount:,.0f} steps" if self.unit == "step" else f"{self.amount:.3g} FLOPs"

    def part(self, share: float) -> "Budget":
        """A share of it."""
        return Budget(amount=share * self.amount, unit=self.unit)


def parse_budget(text: str) -> Budget:
    """A budget from "30m", "1.5h", "2000steps" or "4e15flops"; UserError if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\+?\d+)?) ?(step|flop)s?", text.strip().lower())
    if match and 0.0 < (amount := float(match[1])) < 1e30:
        return Budget(amount=amount, unit="step" if match[2] == "step" else "flops")
    try:
        return Budget(amount=parse_duration(text.strip()), unit="seconds")
    except UserError as error:
        raise UserError(f"{error} A comparison also takes 2000steps or 4e15flops.") from error


def parse_budgets(text: str | None) -> tuple[Budget | None, tuple[float, ...]]:
    """The largest of some budgets ("4m,12m,36m"), and the shares of it that they are, falling."""
    if text is None:
        return None, (1.0,)
    budgets = sorted(map(parse_budget, text.split(",")), key=lambda each: -each.amount)
    if len({budget.unit for budget in budgets}) > 1:
        raise UserError(f"The budgets {text} must all be times, steps or FLOPs.")
    largest = budgets[0]
    return largest, tuple(dict.fromkeys(each.amount / largest.amount for each in budgets))


def filling(recipe: Recipe, reference: Reference, budget: Budget, fraction: float = 1.0) -> Recipe:
    """The recipe over as many steps as a share of the budget buys, each stage keeping its share.

    UserError if that is not one step a stage.
    """
    most, fewest = budget.amount * fraction * (1.0 + _ROUNDING), len(recipe.stages)
    affordable = bisect.bisect_right(
        range(fewest, 10**12),
        most,
        key=lambda steps: reference.cost(recipe.scaled(steps), budget.unit),
    )
    if not affordable:
        raise UserError(
            f"A budget of {budget} is too short: {fraction:g} of it does not buy one step of each "
            f"of the {fewest} stages. Give more."
        )
    return recipe.scaled(fewest + affordable - 1)


def step_kinds(recipe: Recipe) -> list[StepKind]:
    """The kind of each stage's steps."""
    if any(stage.train == "new" for stage in recipe.stages):
        raise UserError("stages.train: a comparison has no price for steps that train new layers.")
    stages = [recipe.stage(index) for index in range(len(recipe.stages))]
    return [StepKind(s.depth, s.sequences, s.sequence_length, s.mask_rate) for s in stages]


def joined(*tables: pd.DataFrame) -> pd.DataFrame:
    """Tables of the same columns, one below the other."""
    # An empty table has no types, and would spoil those of the others.
    full = [table for table in tables if len(table)]
    return pd.concat(full, ignore_index=True) if full else tables[0]
