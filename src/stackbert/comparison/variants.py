"""What is compared: one recipe, transformed in several ways.

All but the way of growing is the same for all variants: text, order of the rows, masks, model,
optimiser, seeds, evaluation. docs/comparison.md has the reasons.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stackbert.errors import UserError
from stackbert.files import explain
from stackbert.growth.operators import OPERATORS
from stackbert.recipe import PositiveInt, Recipe, StageSpec
from stackbert.recipes import parse_recipe, read_yaml

SCRATCH = "scratch"
_FREE = ("stages", "growth", "schedule", "optimizer")
"""The parts of a recipe that a variant may change."""
T = TypeVar("T", bound=BaseModel)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class VariantSpec(BaseModel):
    """A variant as a user writes it: what differs from the recipe, and how often it is run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seeds: PositiveInt = 3
    fractions: Annotated[
        tuple[Annotated[float, Field(gt=0.0, le=4.0)], ...], Field(min_length=1)
    ] = (1.0,)
    """Shares of the budget, each a run of its own with its own full decay."""
    stages: list[dict[str, Any]] | None = None
    growth: dict[str, Any] | None = None
    schedule: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None


@dataclass(frozen=True)
class Variant:
    """One way to spend the budget."""

    name: str
    recipe: Recipe
    """Of any length; it is scaled to the budget."""
    seeds: int
    fractions: tuple[float, ...]
    """Descending shares of the budget."""


def load_variants(
    words: Sequence[str], recipe: Recipe, *, seeds: int, fractions: Sequence[float]
) -> tuple[Variant, ...]:
    """The variants that `words` name; scratch always comes first, because it is the yardstick.

    Args:
        words: "scratch", growth operators ("stack"), or paths of YAML files that map names to
            what differs.
        recipe: that all of them vary.
        seeds: runs of each, unless a file says otherwise.
        fractions: shares of the budget for all but scratch, unless a file says otherwise.

    Raises:
        UserError: a name that is neither a variant nor a file, a field that must not differ.
    """
    found: dict[str, dict[str, Any]] = {SCRATCH: {}}
    for word in words:
        for name, fields in _named(word).items():
            if found.get(name):
                raise UserError(f"The variant '{name}' is given twice.")
            found[name] = fields
    variants = []
    for name, fields in found.items():
        default = {"seeds": seeds, "fractions": (1.0,) if name == SCRATCH else tuple(fractions)}
        spec = validated(VariantSpec, f"Variant '{name}'", **(default | fields))
        # All others are compared with scratch at the whole budget.
        shares = {*spec.fractions, *((1.0,) if name == SCRATCH else ())}
        varied = _varied(name, spec, recipe)
        variants.append(Variant(name, varied, spec.seeds, tuple(sorted(shares, reverse=True))))
    return tuple(variants)


def validated(model: type[T], where: str, **fields: object) -> T:
    """A pydantic model of some fields.

    Raises:
        UserError: `where`, and what is wrong with which field.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        known = ", ".join(model.model_fields)
        raise UserError(f"{where}: {explain(error, model)}. The fields are {known}.") from error


def at_depth(recipe: Recipe, depth: int) -> Recipe:
    """The recipe at one depth from the first step; whatever else its stages set stays."""
    merged: list[StageSpec] = []
    for stage in recipe.stages:
        own = stage.model_copy(update={"depth": depth})
        if merged and own.model_copy(update={"steps": merged[-1].steps}) == merged[-1]:
            own = own.model_copy(update={"steps": own.steps + merged.pop().steps})
        merged.append(own)
    return recipe.model_copy(update={"stages": tuple(merged)})


def at_rate(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with its learning rates multiplied."""
    optimizer = recipe.optimizer
    rates = {"lr": factor * optimizer.lr, "muon_lr": factor * optimizer.muon_lr}
    return recipe.model_copy(update={"optimizer": optimizer.model_copy(update=rates)})


def growths_of(recipe: Recipe) -> list[tuple[int, int]]:
    """The growths of a recipe: (layers before, layers after)."""
    depths = [stage.depth for stage in recipe.stages]
    return [(a, b) for a, b in itertools.pairwise(depths) if b > a]


def _named(word: str) -> dict[str, dict[str, Any]]:
    """What the variants of one word change: those of a file, or the one of that name."""
    if not word.endswith((".yaml", ".yml")):
        return {word: {}}
    raw = read_yaml(Path(word))
    if not isinstance(raw, dict) or not raw:
        raise UserError(f"{word} holds no variants: it must map names to what differs.")
    for name, fields in raw.items():
        if not _NAME.fullmatch(str(name)) or not isinstance(fields, dict | None):
            raise UserError(
                f"{word}: '{name}' is not a variant. Its name may have letters, digits, '-', '.' "
                "and '_'; below it stand the fields that differ."
            )
    return {str(name): fields or {} for name, fields in raw.items()}


def _varied(name: str, spec: VariantSpec, recipe: Recipe) -> Recipe:
    """The recipe with a variant's changes."""
    changes = spec.model_dump(include=set(_FREE), exclude_none=True)
    if name == SCRATCH:
        if changes:
            raise UserError(
                "Variant 'scratch' is the recipe at full depth from the first step; it cannot "
                f"change {', '.join(changes)}. Give the variant another name."
            )
        return at_depth(recipe, recipe.stages[-1].depth)
    if name in OPERATORS:
        changes["growth"] = {"operator": name, **changes.get("growth", {})}
    elif not changes:
        raise UserError(
            f"There is no variant '{name}'. Use one of {', '.join([SCRATCH, *OPERATORS])}, or "
            f"say in a YAML file what differs from the recipe ({', '.join(_FREE)})."
        )
    varied = _changed(recipe, changes, f"Variant '{name}'")
    operator = varied.growth.operator
    for what, own, wanted in (
        ("its final depth", varied.stages[-1].depth, recipe.stages[-1].depth),
        ("the length of its longest rows", varied.longest_sequence, recipe.longest_sequence),
        ("optimizer.name", varied.optimizer.name, recipe.optimizer.name),
        ("growth.operator, which is its name,", operator, name if name in OPERATORS else operator),
    ):
        if own != wanted:
            raise UserError(f"Variant '{name}': {what} must be {wanted}, not {own}.")
    return varied


def _changed(recipe: Recipe, changes: dict[str, Any], where: str) -> Recipe:
    """The recipe with changes, over as many steps: the steps of changed stages are shares."""
    raw = recipe.model_dump(mode="json")
    merged = {
        part: {**raw[part], **fields} if isinstance(fields, dict) else fields
        for part, fields in changes.items()
    }
    if "stages" in merged:
        # Scaled without the schedule, so that its warm-up stays the same share of the run.
        shares = parse_recipe({**raw, **merged, "schedule": {}}, where)
        scaled = shares.scaled(recipe.total_steps)
        merged["stages"] = [stage.model_dump() for stage in scaled.stages]
    return parse_recipe({**raw, **merged}, where)
