"""What a growth of a run, and training on, do to the attention maps.

Four moments: the shallow model as its stage left it; right after growing, made again from it as the
run made it (the same operator, the same seed); at the end of the next stage; the final model. Every
head is held against those of the shallow model, on the same sentences.

"Kept" needs no threshold: a head has kept its pattern if, of all heads of the shallow model, the
one most like it is the one that it was copied from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stackbert.attention.likeness import divergences
from stackbert.attention.loading import final_model, load_model, weights_digest
from stackbert.attention.observe import Material, Observed, observe
from stackbert.attention.result import F64, I64, Flags, GrowthAttention, Moment, Names
from stackbert.errors import UserError
from stackbert.growth.operators import DepthMap, get_operator
from stackbert.randomness import derive_key
from stackbert.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stackbert.growth.model import Growth

SHALLOW, GROWN, NEXT, FINAL = "shallow", "grown", "next", "final"


def observe_growths(
    run: Path, material: Material, steps: Sequence[int] | None = None, *, name: str | None = None
) -> tuple[GrowthAttention, ...]:
    """Measure the growths of a finished run.

    Args:
        run: a run directory with the checkpoint of each stage's last step.
        material: the sentences, tokenised by the run's tokenizer.
        steps: the growths to look at, by the step before which they happened; all by default.
        name: what the run is called; by default by its operator.

    Returns:
        One `GrowthAttention` for each growth, in their order; none if the run never grew.

    Raises:
        UserError: `run` is no finished run, a checkpoint is missing or damaged, or there is no
            growth at one of `steps`.
    """
    recipe = run_recipe(run)
    wanted = recipe.growth_steps if steps is None else tuple(steps)
    for step in wanted:
        if step not in recipe.growth_steps:
            known = ", ".join(map(str, recipe.growth_steps)) or "none"
            raise UserError(f"{run} did not grow at step {step}; its growths were at: {known}.")
    if not wanted:
        return ()
    final = observe(load_model(final_model(run)), FINAL, material)
    called = name or recipe.growth.operator
    return tuple(_observe_growth(run, called, recipe, step, material, final) for step in wanted)


def check_checkpoints(run: Path) -> None:
    """Refuse a run whose growths cannot be looked at.

    Raises:
        UserError: it is no run directory, or lacks the checkpoint before one of its growths.
    """
    for step in run_recipe(run).growth_steps:
        _checkpoint(run, step)


def run_recipe(run: Path) -> Recipe:
    """The recipe that a run was made by.

    Raises:
        UserError: it is no run directory.
    """
    from stackbert.pretraining.rundir import read_record

    return read_record(run)[0]


def grown_again(run: Path, recipe: Recipe, step: int) -> "tuple[PreTrainedModel, Growth]":
    """The shallow model at a growth, and what the run made of it there.

    Args:
        run: the run directory.
        recipe: its recipe.
        step: one of `recipe.growth_steps`.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    from stackbert.growth.model import grow_with_origins

    shallow = load_model(_checkpoint(run, step))
    depth = recipe.stages[recipe.stage_index(step)].depth
    seed = derive_key(recipe.seed, "growth", step) >> 1  # as the run's trainer has it
    return shallow, grow_with_origins(shallow, depth, recipe.growth.operator, seed=seed)


def moment_models(run: Path, step: int) -> "dict[str, PreTrainedModel]":
    """The models of a growth's moments, by the moments' names, for drawing their maps.

    Raises:
        UserError: as `observe_growths`.
    """
    recipe = run_recipe(run)
    shallow, growth = grown_again(run, recipe, step)
    after = _next_boundary(recipe, step)
    models = {SHALLOW: shallow, GROWN: growth.model}
    if after < recipe.total_steps:
        models[NEXT] = load_model(_checkpoint(run, after))
    models[FINAL] = load_model(final_model(run))
    return models


def _observe_growth(
    run: Path, name: str, recipe: Recipe, step: int, material: Material, final: Observed
) -> GrowthAttention:
    shallow, growth = grown_again(run, recipe, step)
    source_depth, depth = shallow.config.num_hidden_layers, len(growth.depth_map)
    weights = weights_digest(shallow)
    before = observe(shallow, SHALLOW, material)
    seen = {GROWN: (step, observe(growth.model, GROWN, material))}
    del shallow
    operator = growth.depth_map
    del growth
    after = _next_boundary(recipe, step)
    if after < recipe.total_steps:
        seen[NEXT] = (after, observe(load_model(_checkpoint(run, after)), NEXT, material))
        seen[FINAL] = (recipe.total_steps, final)
    else:
        seen[NEXT] = (recipe.total_steps, final)
    origins, fresh = origins_of(operator, source_depth)
    moments = [_moment(SHALLOW, step, before, before, np.arange(source_depth))]
    for moment, (at, observed) in seen.items():
        layers, is_fresh = origins, fresh
        if moment == FINAL:
            layers, is_fresh = _through_later_growths(recipe, step, origins, fresh)
        moments.append(_moment(moment, at, observed, before, layers, is_fresh))
    grown, later = moments[1], moments[2]
    return GrowthAttention(
        run=name,
        operator=recipe.growth.operator,
        step=step,
        source_depth=source_depth,
        depth=depth,
        moments=tuple(moments),
        outcome=outcomes(grown, later),
        chance=1 / (source_depth * before.measures.heads),
        weights=weights,
    )


def _moment(
    name: str,
    step: int,
    observed: Observed,
    shallow: Observed,
    origins: I64,
    fresh: Flags | None = None,
) -> Moment:
    heads, _ = divergences(observed.rows, shallow.rows)
    return Moment(
        name=name,
        step=step,
        measures=observed.measures,
        origins=origins,
        fresh=np.zeros(len(origins), dtype=np.bool_) if fresh is None else fresh,
        divergence=same_heads(heads, origins),
        nearest=nearest_heads(heads),
    )


def origins_of(depth_map: DepthMap, source_depth: int) -> tuple[I64, Flags]:
    """The layer that each new layer is held against, and which layers are fresh.

    A fresh layer is held against the one that stacking would have put there.
    """
    origins = [
        place % source_depth if origin.source is None else origin.source
        for place, origin in enumerate(depth_map)
    ]
    return np.array(origins), np.array([origin.source is None for origin in depth_map])


def _through_later_growths(
    recipe: Recipe, step: int, origins: I64, fresh: Flags
) -> tuple[I64, Flags]:
    """The same for the final model, whose layers were copied again."""
    operator = get_operator(recipe.growth.operator)
    for later in (at for at in recipe.growth_steps if at > step):
        depth = recipe.stages[recipe.stage_index(later)].depth
        places, added = origins_of(operator.depth_map(len(origins), depth), len(origins))
        origins, fresh = origins[places], fresh[places] | added
    return origins, fresh


def same_heads(heads: F64, origins: I64) -> F64:
    """(L, H, Ls, H) divergences to those between each head and the same head of its origin."""
    index = np.arange(heads.shape[1])
    return heads[np.arange(len(heads))[:, None], index, np.asarray(origins)[:, None], index]


def nearest_heads(heads: F64) -> I64:
    """(L, H, Ls, Hs) divergences to (L, H, 2): layer and head of the nearest."""
    flat = heads.reshape(*heads.shape[:2], -1).argmin(axis=-1)
    return np.stack(np.divmod(flat, heads.shape[3]), axis=-1)


def outcomes(grown: Moment, later: Moment) -> Names:
    """What became of each copied head between two moments; see `GrowthAttention.outcome`."""
    rules = [
        np.broadcast_to(grown.fresh[:, None], grown.is_nearest.shape),
        ~later.is_nearest,
        grown.is_nearest,
    ]
    return np.select(rules, ["fresh", "changed", "kept"], default="regained").astype(np.str_)


def _next_boundary(recipe: Recipe, step: int) -> int:
    return next((at for at in recipe.growth_steps if at > step), recipe.total_steps)


def _checkpoint(run: Path, step: int) -> Path:
    from stackbert.pretraining.checkpoints import checkpoint_name
    from stackbert.pretraining.rundir import CHECKPOINTS

    folder = run / CHECKPOINTS / checkpoint_name(step)
    if not folder.is_dir():
        raise UserError(
            f"{run} has no checkpoint after step {step}, the end of a stage, so the growth there "
            "cannot be looked at. Runs keep it; comparisons do with --keep-checkpoints."
        )
    return folder
