"""What is compared: one recipe, spent in different ways.

Everything but the way of growing is the same for all: text, order of the rows, masks, model,
optimiser, seeds, evaluation. docs/comparison.md has the reasons.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stackbert.errors import UserError
from stackbert.growth.operators import OPERATORS
from stackbert.recipe import Recipe
from stackbert.recipe_files import parse_recipe, read_yaml
from stackbert.reporting.wording import layers

SCRATCH = "scratch"
MOST_FRACTION = 4.0
_FREE = ("stages", "growth", "schedule", "optimizer")
"""The parts of a recipe that a variant may change."""


class VariantSpec(BaseModel):
    """A variant as a user writes it: what differs from the recipe, and how often it is run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seeds: Annotated[int, Field(strict=True, gt=0)] | None = None
    fractions: (
        Annotated[
            tuple[Annotated[float, Field(gt=0.0, le=MOST_FRACTION)], ...], Field(min_length=1)
        ]
        | None
    ) = None
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
    """Of whatever length: it is scaled to the budget."""
    seeds: int
    fractions: tuple[float, ...]
    """Descending shares of the budget."""


def load_variants(
    words: Sequence[str], recipe: Recipe, *, seeds: int, fractions: Sequence[float]
) -> tuple[Variant, ...]:
    """The variants that `words` name, scratch first in any case, for it is the yardstick.

    Args:
        words: names ("stack", any growth operator, "scratch"), or paths of YAML files that map
            names to what differs.
        recipe: that all of them vary.
        seeds: runs of each, unless a file says otherwise.
        fractions: shares of the budget for all but scratch, unless a file says otherwise.

    Raises:
        UserError: a name that is neither a variant nor a file, a field that may not differ.
    """
    _check_fractions(fractions)
    specs: dict[str, VariantSpec] = {SCRATCH: VariantSpec()}
    for word in words:
        found = _read(Path(word)) if word.endswith((".yaml", ".yml")) else {word: VariantSpec()}
        for name, spec in found.items():
            if name in specs and specs[name] != VariantSpec():
                raise UserError(f"The variant '{name}' is given twice.")
            specs[name] = spec
    return tuple(_variant(name, spec, recipe, seeds, fractions) for name, spec in specs.items())


def scratch_of(recipe: Recipe) -> Recipe:
    """The recipe at its full depth from the first step; what else its stages set stays."""
    depth = recipe.stages[-1].depth
    stages = [stage.model_copy(update={"depth": depth}) for stage in recipe.stages]
    merged = [stages[0]]
    for stage in stages[1:]:
        last = merged[-1]
        if stage.model_copy(update={"steps": last.steps}) == last:
            merged[-1] = last.model_copy(update={"steps": last.steps + stage.steps})
        else:
            merged.append(stage)
    return recipe.model_copy(update={"stages": tuple(merged)})


def untuned(recipe: Recipe) -> Recipe:
    """The recipe without its stages' micro-batches, which a comparison settles for all alike."""
    stages = tuple(stage.model_copy(update={"micro_batch": None}) for stage in recipe.stages)
    return recipe.model_copy(update={"stages": stages})


def at_rate(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with its learning rates multiplied."""
    optimizer = recipe.optimizer
    rates = {"lr": factor * optimizer.lr, "muon_lr": factor * optimizer.muon_lr}
    return recipe.model_copy(update={"optimizer": optimizer.model_copy(update=rates)})


def _variant(
    name: str, spec: VariantSpec, recipe: Recipe, seeds: int, fractions: Sequence[float]
) -> Variant:
    varied = _vary(name, spec, recipe)
    last, asked = varied.stages[-1].depth, recipe.stages[-1].depth
    if last != asked:
        raise UserError(
            f"variant '{name}' ends at {last} layers and the recipe at {asked}. Only models of one "
            "size can be compared; let its last stage have that depth."
        )
    if varied.longest_sequence != recipe.longest_sequence:
        raise UserError(
            f"variant '{name}': its longest rows have {varied.longest_sequence} tokens and the "
            f"recipe's {recipe.longest_sequence}, so it would be evaluated on other rows. Let one "
            "of its stages have that length."
        )
    shares = set(spec.fractions or (() if name == SCRATCH else fractions))
    if name == SCRATCH:  # all others are held against it at the whole budget
        shares.add(1.0)
    return Variant(name, varied, spec.seeds or seeds, tuple(sorted(shares, reverse=True)))


def _vary(name: str, spec: VariantSpec, recipe: Recipe) -> Recipe:
    changes = {field: value for field in _FREE if (value := getattr(spec, field)) is not None}
    if name == SCRATCH:
        if changes:
            raise UserError(
                "variant 'scratch' is the recipe at full depth from the first step, so nothing of "
                f"it can be changed ({', '.join(changes)}). Give the variant another name."
            )
        return scratch_of(recipe)
    if name in OPERATORS:
        changes = {**changes, "growth": {"operator": name, **changes.get("growth", {})}}
    elif not changes:
        known = ", ".join([SCRATCH, *OPERATORS])
        raise UserError(
            f"There is no variant '{name}'. Take one of {known}, or say in a YAML file what "
            f"differs from the recipe ({', '.join(_FREE)})."
        )
    varied = _of_length(name, recipe, changes)
    if name in OPERATORS and varied.growth.operator != name:
        raise UserError(
            f"variant '{name}' grows by {varied.growth.operator}. Give it another name, for this "
            "one is an operator's."
        )
    if varied.optimizer.name != recipe.optimizer.name:
        raise UserError(
            f"variant '{name}' changes the optimiser to {varied.optimizer.name}, and then growth "
            "is not what is compared. Compare twice instead, with --set optimizer.name=…"
        )
    return varied


def _of_length(name: str, recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with changes, over as many steps: those of changed stages are shares.

    Stages come first and the schedule after, so that a warm-up is the same share of the run.
    """
    where = f"variant '{name}'"
    raw = recipe.model_dump(mode="json")
    if "stages" in changes:
        growth = _merged(raw["growth"], changes.get("growth", {}))
        bare = {**raw, "schedule": {}, "growth": growth, "stages": changes["stages"]}
        shares = parse_recipe(bare, where)
        stages = shares.scaled(recipe.total_steps).model_dump(mode="json")["stages"]
        changes = {**changes, "stages": stages}
    return parse_recipe(_merged(raw, changes), where)


def _merged(raw: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged field by field, everything else is replaced."""
    merged = dict(raw)
    for key, value in changes.items():
        there = merged.get(key)
        both = isinstance(value, dict) and isinstance(there, dict)
        merged[key] = _merged(there, value) if both and there is not None else value
    return merged


def _read(path: Path) -> dict[str, VariantSpec]:
    raw = read_yaml(path)
    if not isinstance(raw, dict) or not raw:
        raise UserError(f"{path} holds no variants: it must map names to what differs.")
    specs = {}
    for name, fields in raw.items():
        where = f"{path}: variant '{name}'"
        if not isinstance(name, str) or not _is_name(name):
            raise UserError(f"{where}: a name is made of letters, digits, '-', '.' and '_'.")
        try:
            specs[name] = VariantSpec.model_validate(fields or {})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "its fields"
            free = ", ".join(("seeds", "fractions", *_FREE))
            if first["type"] == "extra_forbidden":
                raise UserError(
                    f"{where}: '{field}' must be the same for all, or cannot be set; a variant may "
                    f"set {free}."
                ) from error
            raise UserError(f"{where}: {field}: {first['msg']}.") from error
    return specs


def _is_name(text: str) -> bool:
    return bool(text) and text[0].isalnum() and all(c.isalnum() or c in "-._" for c in text)


def _check_fractions(fractions: Sequence[float]) -> None:
    if not fractions:
        raise UserError("Give at least one fraction of the budget, such as 1.")
    for share in fractions:
        if not 0.0 < share <= MOST_FRACTION:
            raise UserError(
                f"A fraction is a share of the budget, above 0 and at most {MOST_FRACTION:g}, "
                f"not {share:g}."
            )


def differences(variant: Recipe, recipe: Recipe) -> dict[str, tuple[str, str]]:
    """The parts in which a variant's recipe differs: name → (the recipe's, the variant's)."""

    def stages(one: Recipe) -> str:
        return ", ".join(_stage(one, index) for index in range(len(one.stages)))

    found = {}
    if stages(variant) != stages(recipe):
        found["stages"] = (stages(recipe), stages(variant))
    for part in _FREE[1:]:
        a, b = (getattr(one, part).model_dump(mode="json") for one in (recipe, variant))
        for field, value in a.items():
            if b[field] != value:
                found[f"{part}.{field}"] = (str(value), str(b[field]))
    return found


def _stage(recipe: Recipe, index: int) -> str:
    stage = recipe.stages[index]
    parts = [f"{layers(stage.depth)} {stage.steps / recipe.total_steps:.1%}"]
    for field in ("sequence_length", "sequences", "mask_rate"):
        if getattr(stage, field) is not None:
            parts.append(f"{field} {getattr(stage, field)}")
    return " ".join(parts)


def depth_pairs(recipe: Recipe) -> tuple[tuple[int, int], ...]:
    """The growths of a recipe: (layers before, layers after)."""
    depths = [stage.depth for stage in recipe.stages]
    return tuple((a, b) for a, b in itertools.pairwise(depths) if b > a)
