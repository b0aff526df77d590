"""What is compared: one recipe, transformed in several ways; all else is the same for all."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stackbert.errors import UserError
from stackbert.files import explain, reading
from stackbert.growth.operators import OPERATORS
from stackbert.recipe import PositiveInt, Recipe, StageSpec
from stackbert.recipes import parse_recipe, read_yaml

SCRATCH = "scratch"
T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Variant:
    """One way to spend the budget."""

    name: str
    recipe: Recipe
    """Of any length; it is scaled to the budget."""
    seeds: int
    fractions: tuple[float, ...]
    """Shares of the budget, falling, each a run of its own with its own full decay."""


class _Fields(BaseModel):
    """What a file may say of a variant; what is in the parts is checked with the recipe."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seeds: PositiveInt
    fractions: Annotated[set[Annotated[float, Field(gt=0.0, le=1.0)]], Field(min_length=1)]
    stages: list[Any] | None = None
    growth: dict[str, Any] | None = None
    schedule: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None


def load_variants(
    words: Sequence[str], recipe: Recipe, *, seeds: int, fractions: Sequence[float]
) -> list[Variant]:
    """The variants that `words` name; scratch always comes first, because it is the yardstick.

    Words are "scratch", growth operators ("stack"), or paths of YAML files that map names to what
    differs from the recipe. `fractions` are not scratch's; a file may give its own, and seeds.

    Raises:
        UserError: a name that is neither a variant nor a file, a field that must not differ.
    """
    found: dict[str, Any] = {SCRATCH: {}}
    for word in words:
        for name, fields in _named(word).items():
            if found.get(name):
                raise UserError(f"The variant '{name}' is given twice.")
            found[name] = fields
    variants = []
    for name, given in found.items():
        usual = {"seeds": seeds, "fractions": [1.0] if name == SCRATCH else fractions}
        fields = validated(_Fields, f"Variant '{name}'", **{**usual, **given, "name": name})
        # All others are compared with scratch at the whole budget.
        shares = fields.fractions | ({1.0} if name == SCRATCH else set())
        descending = tuple(sorted(shares, reverse=True))
        variants.append(Variant(name, _varied(fields, recipe), fields.seeds, descending))
    return variants


def validated(model: type[T], where: str, **fields: object) -> T:
    """A pydantic model of some fields; a UserError says what is wrong with which."""
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
    with reading(word, "It must map names of variants to the fields that differ."):
        return {str(name): dict(fields or {}) for name, fields in read_yaml(Path(word)).items()}


def _varied(fields: _Fields, recipe: Recipe) -> Recipe:
    """The recipe with a variant's changes, over as many steps: those of its stages are shares."""
    name, where, raw = fields.name, f"Variant '{fields.name}'", recipe.model_dump(mode="json")
    changes = fields.model_dump(exclude={"name", "seeds", "fractions"}, exclude_none=True)
    if name == SCRATCH:
        if changes:
            raise UserError(
                "Variant 'scratch' is the recipe at full depth from the first step; it cannot "
                f"change {', '.join(changes)}. Give the variant another name."
            )
        return at_depth(recipe, recipe.stages[-1].depth)
    if not changes and name not in OPERATORS:
        raise UserError(
            f"There is no variant '{name}'. Use one of {', '.join([SCRATCH, *OPERATORS])}, or say "
            "in a YAML file what differs from the recipe (stages, growth, schedule, optimizer)."
        )
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
