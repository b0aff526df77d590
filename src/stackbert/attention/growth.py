"""What a growth of a run, and the training after it, did to the heads.

At each of three moments (`MOMENTS`) every head is compared with all heads of the shallow model. A
head has kept its pattern if the one that it was copied from is the one that it is most like.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stackbert.attention.likeness import divergences
from stackbert.attention.maps import SentenceMaps
from stackbert.attention.measures import PAPER_CLASSES
from stackbert.attention.subject import Observed, Sample, final_model, load_encoder, observe
from stackbert.batches.randomness import derive_key
from stackbert.errors import UserError
from stackbert.growth.grow import Growth, grow_with_origins
from stackbert.growth.operators import DepthMap
from stackbert.pretraining.record import CHECKPOINTS, is_run, read_run
from stackbert.recipe import Recipe

MOMENTS = {
    "shallow": "shallow",
    "grown": "right after growing",
    "next": "end of next stage",
}
"""When models are compared, and what a reader calls it. The run keeps the first and the last; the
grown model is made again with the run's operator and seed."""
OUTCOMES = ("kept", "regained", "changed")


ObservedGrowth = tuple[pd.DataFrame, pd.DataFrame, dict[str, SentenceMaps]]
"""A growth's rows of `AttentionResult.growths` and `growth_heads`; a sentence's maps by moment."""


def find_runs(model: object, beside: Sequence[str | Path]) -> dict[str, Path]:
    """The runs whose growths are measured, by name, `model` first if it is one.

    A run is called by its operator; those of the same operator by their folders, too.

    Raises:
        UserError: `model` is not a run but there are others; or a run is not finished, lacks a
            checkpoint, or never grew and so has nothing to compare.
    """
    first = Path(model) if isinstance(model, str | Path) else None
    if first is None or not is_run(first):
        if beside:
            raise UserError("Growths of other runs can only be compared with those of a run.")
        return {}
    operators = {}
    for folder in (first, *map(Path, beside)):
        recipe = read_run(folder).recipe
        final_model(folder)
        for step in recipe.growth_steps:
            _checkpoint(folder, step)
        if beside and not recipe.growth_steps:
            raise UserError(f"{folder} never grew, so it has no growth to compare.")
        operators[folder] = recipe.growth.rule.name
    called = list(operators.values())
    return {
        operator if called.count(operator) == 1 else f"{operator} in {folder}": folder
        for folder, operator in operators.items()
    }


def observe_growths(run: Path, name: str, sample: Sample, example: str) -> Iterator[ObservedGrowth]:
    """Measure all growths of a finished run; `example` is the sentence whose maps are kept."""
    recipe = read_run(run).recipe
    for step, after in itertools.pairwise([*recipe.growth_steps, recipe.total_steps]):
        shallow = load_encoder(_checkpoint(run, step))
        growth = grown_again(shallow, recipe, step)
        last = after == recipe.total_steps
        later = load_encoder(final_model(run) if last else _checkpoint(run, after))
        models = {"shallow": shallow, "grown": growth.model, "next": later}
        seen = {
            moment: observe(model, moment, sample, [example]) for moment, model in models.items()
        }
        yield _compare(name, step, after, growth.depth_map, seen)


def grown_again(shallow: Any, recipe: Recipe, step: int) -> Growth:  # noqa: ANN401 (an encoder)
    """What the run made of its shallow model at `step`."""
    depth = recipe.stages[recipe.stage_index(step)].depth
    seed = derive_key(recipe.seed, "growth", step) >> 1  # as in the run's trainer
    return grow_with_origins(shallow, depth, recipe.growth.rule, seed=seed)


def _compare(
    name: str, step: int, after: int, depth_map: DepthMap, seen: dict[str, Observed]
) -> ObservedGrowth:
    shallow = seen["shallow"]
    depth = shallow.about["depth"]
    # A fresh layer is compared with the one that stacking would have copied there.
    sources = [
        place % depth if origin.source is None else origin.source
        for place, origin in enumerate(depth_map)
    ]
    fresh = [origin.source is None for origin in depth_map]
    tables = {
        "shallow": _heads(shallow, shallow, list(range(depth)), [False] * depth),
        "grown": _heads(seen["grown"], shallow, sources, fresh),
        "next": _heads(seen["next"], shallow, sources, fresh),
    }
    tables["next"]["outcome"] = outcomes(tables["grown"], tables["next"])
    about = {
        "run": name,
        "growth_step": step,
        "source_depth": depth,
        "depth": len(depth_map),
        "heads_per_layer": shallow.about["heads_per_layer"],
    }
    rows = [
        {**about, "moment": moment, "step": after if moment == "next" else step, **_means(table)}
        for moment, table in tables.items()
    ]
    heads = pd.concat(tables, names=["moment"]).reset_index("moment").reset_index(drop=True)
    maps = {moment: observed.examples[0] for moment, observed in seen.items()}
    return pd.DataFrame(rows), heads, maps


def _heads(
    observed: Observed, shallow: Observed, sources: list[int], fresh: list[bool]
) -> pd.DataFrame:
    """The measures of each head, and how it compares with the heads of the shallow model."""
    divergence = divergences(observed.rows, shallow.rows)
    layer, head = np.indices(divergence.shape[:2]).reshape(2, -1)
    source = np.array(sources)[layer]
    nearest = divergence.reshape(len(layer), -1).argmin(axis=-1)
    # A layer is new if it is fresh, or a further copy of a layer that is copied below, too.
    new = [source in sources[:place] for place, source in enumerate(sources)]
    return observed.heads.assign(
        source=source + 1,
        fresh=np.array(fresh)[layer],
        new=np.array(new)[layer],
        divergence=divergence[layer, head, source, head],
        source_is_nearest=nearest == source * divergence.shape[3] + head,
    )


def outcomes(grown: pd.DataFrame, later: pd.DataFrame) -> list[str]:
    """What became of each copied head between two moments.

    "kept" if its source is the most similar head at both, "regained" if only at the second,
    "changed" if not at the second; "fresh" if it copies none.
    """
    rules = [grown["fresh"], ~later["source_is_nearest"], grown["source_is_nearest"]]
    found: list[str] = np.select(rules, ["fresh", "changed", "kept"], "regained").tolist()
    return found


def _means(heads: pd.DataFrame) -> dict[str, Any]:
    """Means over the heads of the new layers; where there are none (shallow), over all heads."""
    new = heads[heads["new"]]
    of = heads if new.empty else new
    return {
        "heads": len(of),
        "divergence": new["divergence"].mean(),
        "source_is_nearest": new.loc[~new["fresh"], "source_is_nearest"].mean(),
        "within_4": of["within_4"].mean(),
        "first": of["first"].mean(),
        **{name: int((of["class"] == name).sum()) for name in PAPER_CLASSES},
        **{name: int((new["outcome"] == name).sum()) for name in OUTCOMES if "outcome" in new},
    }


def _checkpoint(run: Path, step: int) -> Path:
    folder = run / CHECKPOINTS / f"step-{step:08d}"
    if not folder.is_dir():
        raise UserError(
            f"{run} has no checkpoint after step {step}, the end of a stage, so the growth there "
            "cannot be measured. Runs keep it; comparisons do with --keep-checkpoints."
        )
    return folder
