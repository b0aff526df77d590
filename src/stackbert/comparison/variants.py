"""What is compared: one recipe, transformed in several ways; all else is the same for all."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from stackbert.errors import UserError
from stackbert.files import explain, reading
from stackbert.growth.operators import OPERATORS
from stackbert.recipe import PositiveInt, Recipe, StageSpec
from stackbert.recipes import parse_recipe, read_yaml

SCRATCH = "scratch"
_DEPTH = "depth-"
_FREE = ("stages", "growth", "schedule", "optimizer")
"""The parts of a recipe that a variant may change."""


class Variant(BaseModel):
    """One way to spend the budget."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    recipe: Recipe
    """Of any length; it is scaled to the budget."""
    seeds: PositiveInt
    fractions: Annotated[frozenset[Annotated[float, Field(gt=0.0, le=1.0)]], Field(min_length=1)]
    """Shares of the budget, each a run of its own with its own full decay."""
    learning_rates: Annotated[frozenset[PositiveFloat], Field(min_length=1)]
    """Factors of the recipe's; of several, the best one counts."""


def is_fixed(variant: str) -> bool:
    """Whether a variant is a control: one depth from the first step to the last."""
    return variant == SCRATCH or variant.startswith(_DEPTH)


def load_variants(
    words: Sequence[str],
    recipe: Recipe,
    *,
    seeds: int,
    fractions: Iterable[float],
    learning_rates: Iterable[float] = (1.0,),
    shares: Sequence[float] = (1.0,),
) -> list[Variant]:
    """The variants that `words` name, after the controls: every depth that one passes through.

    Words are "scratch", "depth-4", growth operators ("stack", "stack@0.5" with a learning rate to
    try), or YAML files that map names to what differs from the recipe, and to seeds, fractions and
    learning rates of their own. `shares` are what the budgets are of the largest; controls run at
    each, and if there are several all variants do.
    """
    found: dict[str, dict[str, Any]] = {SCRATCH: {}}
    for word in words:
        for name, fields in _named(word).items():
            there = found.setdefault(name, {})
            if there.keys() == fields.keys() == {"learning_rates"}:
                fields = {"learning_rates": there["learning_rates"] + fields["learning_rates"]}
            elif there and fields:
                raise UserError(f"The variant '{name}' is given twice.")
            there.update(fields)

    def variant(name: str, given: dict[str, Any]) -> Variant:
        changes = {part: given[part] for part in _FREE if given.get(part) is not None}
        fields: dict[str, Any] = {"seeds": seeds, "learning_rates": learning_rates}
        fields["fractions"] = shares if is_fixed(name) else fractions
        fields |= {field: value for field, value in given.items() if field not in _FREE}
        try:
            own = Variant.model_validate(fields | {"name": name, "recipe": recipe})
        except ValidationError as error:
            raise UserError(f"Variant '{name}': {explain(error, Variant)}.") from error
        # All others are compared with the controls at the whole budget.
        everywhere = frozenset(shares if is_fixed(name) or len(shares) > 1 else ())
        varied = {"fractions": own.fractions | everywhere, "recipe": _varied(name, changes, recipe)}
        return own.model_copy(update=varied)

    variants = {name: variant(name, given) for name, given in found.items()}
    depths = {stage.depth for each in variants.values() for stage in each.recipe.stages}
    for control in (f"{_DEPTH}{depth}" for depth in sorted(depths - {recipe.stages[-1].depth})):
        variants.setdefault(control, variant(control, {}))
    return sorted(variants.values(), key=lambda variant: not is_fixed(variant.name))


def refuse_twins(recipes: Mapping[str, Recipe]) -> None:
    """UserError if two variants' recipes differ in nothing but learning rates."""
    names: dict[Any, str] = {}
    for name, own in recipes.items():
        growth = own.growth if growths_of(own) else None
        optimizer = own.optimizer.model_copy(update={"lr": 1.0, "muon_lr": 1.0})
        other = names.setdefault((_merged(own.stages), growth, own.schedule, optimizer), name)
        if other != name:
            raise UserError(
                f"Variants '{other}' and '{name}' are one recipe, at most with other learning "
                f"rates. Leave one out; '{other}@0.5,{other}@1' lets one variant try two rates."
            )


def at_depth(recipe: Recipe, depth: int) -> Recipe:
    """The recipe at one depth from the first step; whatever else its stages set stays."""
    stages = _merged([stage.model_copy(update={"depth": depth}) for stage in recipe.stages])
    return recipe.model_copy(update={"stages": stages})


def _merged(stages: Sequence[StageSpec]) -> tuple[StageSpec, ...]:
    merged: list[StageSpec] = []
    for own in stages:
        if merged and own.model_copy(update={"steps": merged[-1].steps}) == merged[-1]:
            own = own.model_copy(update={"steps": own.steps + merged.pop().steps})
        merged.append(own)
    return tuple(merged)


def growths_of(recipe: Recipe) -> list[tuple[int, int]]:
    """The growths of a recipe: (layers before, layers after)."""
    depths = [stage.depth for stage in recipe.stages]
    return [(a, b) for a, b in itertools.pairwise(depths) if b > a]


def _named(word: str) -> dict[str, dict[str, Any]]:
    if not word.endswith((".yaml", ".yml")):
        name, at, rate = word.partition("@")
        return {name: {"learning_rates": [rate]} if at else {}}
    with reading(word, "It must map names of variants to the fields that differ."):
        return {str(name): dict(fields or {}) for name, fields in read_yaml(Path(word)).items()}


def _varied(name: str, changes: dict[str, Any], recipe: Recipe) -> Recipe:
    """The recipe with a variant's changes, over as many steps: those of its stages are shares."""
    where, raw = f"Variant '{name}'", recipe.model_dump(mode="json")
    depth = name.removeprefix(_DEPTH)
    if name == SCRATCH or (name != depth and depth.isdecimal() and int(depth)):
        if changes:
            raise UserError(
                f"{where} is the recipe at one depth from the first step; it cannot change "
                f"{', '.join(changes)}. Give the variant another name."
            )
        return at_depth(recipe, recipe.stages[-1].depth if name == SCRATCH else int(depth))
    if not changes and name not in OPERATORS:
        raise UserError(
            f"There is no variant '{name}'. Use one of {', '.join([SCRATCH, *OPERATORS])}, "
            f"{_DEPTH}N (N layers throughout), or say in a YAML file what differs from the recipe "
            f"({', '.join(_FREE)})."
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
