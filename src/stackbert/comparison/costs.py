"""What a run costs by the reference table, and how many steps a budget buys.

A clock would give a variant that ran in a quiet minute more than one that ran in a busy one. So
seconds are counted, not clocked: steps times the reference seconds of their kind, measured once,
for all variants together (`calibration`).
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from stackbert.errors import UserError
from stackbert.pretraining.budget import parse_duration
from stackbert.recipe import Recipe
from stackbert.reporting.wording import duration, si
from stackbert.stored import stored

Unit = Literal["seconds", "flops", "steps"]
_ROUNDING = 1e-9
"""A sum of floats may be off by so much of itself; a budget of exactly N steps must buy N."""


@dataclass(frozen=True)
class StepKind:
    """All that decides what a step costs, within one comparison."""

    depth: int
    sequences: int
    sequence_length: int
    mask_rate: float


@dataclass(frozen=True)
class StepCost:
    """A row of the reference table."""

    kind: StepKind
    seconds: float
    """Median of the readings."""
    readings: tuple[float, ...]
    """Medians of one measuring process each."""
    flops: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.kind.sequences * self.kind.sequence_length


@dataclass(frozen=True)
class GrowthCost:
    """A growth of the model, its optimiser's state included."""

    source_depth: int
    target_depth: int
    seconds: float


@dataclass(frozen=True)
class Spent:
    """How far a run has come, on every axis."""

    seconds: float = 0.0
    flops: float = 0.0
    tokens: float = 0.0
    steps: float = 0.0


@dataclass(frozen=True)
class Reference:
    """Seconds and FLOPs of every kind of step of a comparison, and seconds of its growths."""

    steps: tuple[StepCost, ...]
    growths: tuple[GrowthCost, ...]

    def step(self, kind: StepKind) -> StepCost:
        """The row of a kind of step.

        Raises:
            KeyError: it was not measured.
        """
        for row in self.steps:
            if row.kind == kind:
                return row
        raise KeyError(kind)

    def growth(self, source: int, target: int) -> float:
        """Seconds of a growth.

        Raises:
            KeyError: it was not measured.
        """
        for row in self.growths:
            if (row.source_depth, row.target_depth) == (source, target):
                return row.seconds
        raise KeyError((source, target))

    def spent(self, recipe: Recipe, steps: int) -> Spent:
        """What the first `steps` steps of a recipe cost, the growths between them included."""
        total = Spent()
        depth = recipe.stages[0].depth
        for kind, (first, end) in zip(
            step_kinds(recipe), itertools.pairwise(recipe.boundaries), strict=True
        ):
            done = min(steps, end) - first
            if done <= 0:
                break
            row = self.step(kind)
            grown = self.growth(depth, kind.depth) if kind.depth > depth else 0.0
            total = Spent(
                total.seconds + done * row.seconds + grown,
                total.flops + done * row.flops,
                total.tokens + done * row.tokens,
                total.steps + done,
            )
            depth = kind.depth
        return total

    def cost(self, recipe: Recipe, unit: Unit) -> float:
        """What a whole run costs."""
        return float(getattr(self.spent(recipe, recipe.total_steps), unit))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """From `to_json`'s values."""
        return stored(cls, raw)


@dataclass(frozen=True)
class Budget:
    """What every variant may spend."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        if self.unit == "steps":
            return f"{self.amount:,.0f} steps"
        if self.unit == "flops":
            return f"{si(self.amount)}FLOPs"
        return duration(self.amount)


def parse_budget(text: str) -> Budget:
    """A budget from "30m", "1.5h", "2000steps" or "4e15flops".

    Raises:
        UserError: it is none of these, or not above zero.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e\+?[0-9]+)?)\s*(steps|flops)\s*", text.lower())
    if match is None:
        try:
            return Budget(parse_duration(text), "seconds")
        except UserError as error:
            raise UserError(
                f"'{text}' is not a budget. Write a time (30m, 1.5h), a number of steps "
                "(2000steps) or of FLOPs (4e15flops), above zero."
            ) from error
    number, unit = match.groups()
    try:
        amount = float(number)
    except ValueError as error:
        raise UserError(f"'{text}' is not a budget: {number} is not a number.") from error
    if not 0.0 < amount < 1e30:
        raise UserError(f"A budget of '{text}' leaves nothing to train.")
    return Budget(amount, "steps" if unit == "steps" else "flops")


def filling(recipe: Recipe, reference: Reference, budget: Budget, fraction: float = 1.0) -> Recipe:
    """The recipe over as many steps as a share of the budget buys, each stage keeping its share.

    Args:
        recipe: a variant's, of any length.
        reference: what steps and growths cost.
        budget: of the comparison.
        fraction: of it.

    Raises:
        UserError: it does not buy one step a stage.
    """
    most = budget.amount * fraction * (1.0 + _ROUNDING)

    def fits(steps: int) -> bool:
        return reference.cost(recipe.scaled(steps), budget.unit) <= most

    low = len(recipe.stages)
    if not fits(low):
        raise UserError(
            f"A budget of {budget} is too short: {fraction:g} of it does not buy one step of each "
            f"of the {low} stages. Give more."
        )
    high = 2 * low
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return recipe.scaled(low)


def step_kinds(recipe: Recipe) -> tuple[StepKind, ...]:
    """The kind of each stage's steps."""
    stages = [recipe.resolved_stage(index) for index in range(len(recipe.stages))]
    return tuple(StepKind(s.depth, s.sequences, s.sequence_length, s.mask_rate) for s in stages)


def all_kinds(recipes: Sequence[Recipe]) -> tuple[StepKind, ...]:
    """Every kind of step of some recipes once, shallow ones first."""
    kinds = {kind for recipe in recipes for kind in step_kinds(recipe)}
    return tuple(sorted(kinds, key=dataclasses.astuple))
