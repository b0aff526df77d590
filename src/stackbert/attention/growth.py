"""What a growth of a run, and the training after it, did to the heads.

At each of three moments every head is compared with all heads of the shallow model.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from stackbert.attention.likeness import divergences
from stackbert.attention.maps import SentenceMaps
from stackbert.attention.measures import Observed
from stackbert.batches.randomness import derive_key
from stackbert.errors import UserError
from stackbert.growth.grow import Growth, grow_with_origins
from stackbert.growth.operators import Origin
from stackbert.model_files import open_encoder
from stackbert.pretraining.record import CHECKPOINTS, final_model, read_run
from stackbert.recipe import Recipe

MOMENTS = {
    "shallow": "shallow",
    "grown": "right after growing",  # made again with the run's operator and seed
    "next": "end of next stage",
}
"""When models are compared, and what a reader calls it."""


class RunGrowth(NamedTuple):
    """A growth of a finished run."""

    run: str
    recipe: Recipe
    step: int
    shallow: Path
    end: int  # of the next stage
    deep: Path  # the model there


def find_growths(runs: Sequence[Path]) -> list[RunGrowth]:
    """The growths of runs; a run is called by its operator, or its folder if these are the same."""
    recipes = {run: read_run(run).recipe for run in runs}
    operators = [recipe.growth.rule.name for recipe in recipes.values()]
    found = []
    for run, recipe in recipes.items():
        name = recipe.growth.rule.name
        name = name if operators.count(name) == 1 else f"{name} in {run}"
        models = {step: run / CHECKPOINTS / f"step-{step:08d}" for step in recipe.growth_steps}
        for step, folder in models.items():
            if not folder.is_dir():
                raise UserError(
                    f"{run} has no checkpoint after step {step}, before it grew. Runs keep it; "
                    "comparisons do with --keep-checkpoints."
                )
        models[recipe.total_steps] = final_model(run)
        for (step, shallow), (end, deep) in itertools.pairwise(models.items()):
            found.append(RunGrowth(name, recipe, step, shallow, end, deep))
    return found


def observe_growth(
    growth: RunGrowth, look: Callable[[PreTrainedModel, str], Observed]
) -> tuple[pd.DataFrame, dict[str, SentenceMaps]]:
    """A growth's rows of `AttentionResult.growth_heads`, and the shortest example's maps."""
    model = open_encoder(growth.shallow)
    grown = grown_again(model, growth.recipe, growth.step)
    models = zip(MOMENTS, (model, grown.model, open_encoder(growth.deep)), strict=True)
    seen = {moment: look(each, moment) for moment, each in models}
    shallow = seen["shallow"]
    itself = [Origin(layer) for layer in range(shallow.about["depth"])]
    tables = [
        _heads(each, shallow, itself if each is shallow else grown.depth_map).assign(
            moment=moment, step=growth.end if moment == "next" else growth.step
        )
        for moment, each in seen.items()
    ]
    depths = {"source_depth": len(itself), "depth": len(grown.depth_map)}
    heads = pd.concat(tables).assign(run=growth.run, **depths)
    return heads, {moment: each.examples[0] for moment, each in seen.items()}


def grown_again(shallow: PreTrainedModel, recipe: Recipe, step: int) -> Growth:
    """What the run made of its shallow model at `step`."""
    depth = recipe.stages[recipe.stage_index(step)].depth
    seed = derive_key(recipe.seed, "growth", step) >> 1  # as in the run's trainer
    return grow_with_origins(shallow, depth, recipe.growth.rule, seed=seed)


def _heads(observed: Observed, shallow: Observed, depth_map: Sequence[Origin]) -> pd.DataFrame:
    """The measures of each head, and how it compares with the heads of the shallow model."""
    divergence = divergences(observed.rows, shallow.rows)
    layer, head = np.indices(divergence.shape[:2]).reshape(2, -1)
    depth, heads = divergence.shape[2:]
    fresh = np.array([origin.source is None for origin in depth_map])
    # A fresh layer is compared with the one that stacking would have copied there.
    sources = [
        place % depth if origin.source is None else origin.source
        for place, origin in enumerate(depth_map)
    ]
    # A layer is new if it is fresh, or a further copy of a layer that is copied below, too.
    new = np.array([source in sources[:place] for place, source in enumerate(sources)])
    source = np.array(sources)[layer]
    nearest = divergence.reshape(len(layer), -1).argmin(axis=-1)
    return observed.heads.assign(
        source=source + 1,
        new=new[layer],
        divergence=divergence[layer, head, source, head],
        source_is_nearest=np.where(fresh[layer], np.nan, nearest == source * heads + head),
    )
