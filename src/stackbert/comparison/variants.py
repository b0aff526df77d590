"""What is compared: one recipe, transformed in several ways; all else is the same for all."""

import itertools
import re
from collections.abc import Sequence
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


class Variant(BaseModel):
    """One way to spend the budget."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    name: str
    recipe: Recipe
    """Of any length; it is scaled to the budget."""
    seeds: PositiveInt
    fractions: Annotated[tuple[Annotated[float, Field(gt=0.0, le=4.0)], ...], Field(min_length=1)]
    """Shares of the budget, each a run of its own with its own full decay."""


def load_variants(
    words: Sequence[str], recipe: Recipe, *, seeds: int, fractions: Sequence[float]
) -> list[Variant]:
    """The variants that `words` name; scratch always comes first, because it is the yardstick.

    Words are "scratch", growth operators ("stack"), or paths of YAML files that map names to what
    differs from the recipe. `fractions` are not scratch's; a file may give its own, and seeds.

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
        where, known = f"Variant '{name}'", ("seeds", "fractions", *_FREE)
        if unknown := [field for field in fields if field not in known]:
            raise UserError(
                f"{where}: there is no field '{unknown[0]}'. The fields are {', '.join(known)}."
            )
        variant = validated(
            Variant,
            where,
            name=name,
            recipe=_varied(name, fields, recipe),
            seeds=fields.get("seeds", seeds),
            fractions=fields.get("fractions", [1.0] if name == SCRATCH else fractions),
        )
        # All others are compared with scratch at the whole budget.
        shares = {*variant.fractions, *([1.0] if name == SCRATCH else [])}
        descending = tuple(sorted(shares, reverse=True))
        variants.append(variant.model_copy(update={"fractions": descending}))
    return variants


def validated(model: type[T], where: str, **fields: object) -> T:
    """A pydantic model of some fields.

    Raises:
        UserError: `where`, and what is wrong with which field.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, model)}.") from error


def at_depth(recipe: Recipe, depth: int) -> Recipe:
    """The recipe at one depth from the first step; whatever else its stages set stays."""
    merged: list[StageSpec] = []
    for stage in recipe.stages:
        own = stage.model_copy(update={"depth": depth})
        if merged and own.model_copy(update={"steps": merged[-1].steps}) == merged[-1]:
            own = own.model_copy(update={"steps": own.steps + merged.pop().steps})
        merged.append(own)
    return recipe.model_copy(update={"stages": tuple(merged)})


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
                f"{word}: '{name}' is not a variant: a name is made of letters, digits, '-', '.' "
                "and '_'; below it stand the fields that differ."
            )
    return {str(name): fields or {} for name, fields in raw.items()}


def _varied(name: str, fields: dict[str, Any], recipe: Recipe) -> Recipe:
    """The recipe with a variant's changes, over as many steps: those of its stages are shares."""
    changes = {part: fields[part] for part in _FREE if fields.get(part) is not None}
    if name == SCRATCH:
        if changes:
            raise UserError(
                "Variant 'scratch' is the recipe at full depth from the first step; it cannot "
                f"change {', '.join(changes)}. Give the variant another name."
            )
        return at_depth(recipe, recipe.stages[-1].depth)
    if not changes and name not in OPERATORS:
        raise UserError(
            f"There is no variant '{name}'. Use one of {', '.join([SCRATCH, *OPERATORS])}, or "
            f"say in a YAML file what differs from the recipe ({', '.join(_FREE)})."
        )
    where, raw = f"Variant '{name}'", recipe.model_dump(mode="json")
    if name in OPERATORS:
        raw["growth"]["operator"] = name
    for part, value in changes.items():
        raw[part] = {**raw[part], **value} if isinstance(value, dict) else value
    if "stages" in changes:
        # Scaled without the schedule, so that its warm-up stays the same share of the run.
        shares = parse_recipe({**raw, "schedule": {}}, where).scaled(recipe.total_steps)
        raw["stages"] = [stage.model_dump() for stage in shares.stages]
    varied = parse_recipe(raw, where)
    operator = varied.growth.operator
    for what, own, wanted in (
        ("its final depth", varied.stages[-1].depth, recipe.stages[-1].depth),
        ("the length of its longest rows", varied.longest_sequence, recipe.longest_sequence),
        ("optimizer.name", varied.optimizer.name, recipe.optimizer.name),
        ("growth.operator, which is its name,", operator, name if name in OPERATORS else operator),
    ):
        if own != wanted:
            raise UserError(f"{where}: {what} must be {wanted}, not {own}.")
    return varied
