"""Seconds of a step and of an evaluation: measured on the spot, or predicted from a peak rate."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stackbert.batches import Batch, BatchPlan, StageShape
from stackbert.corpus.store import Corpus
from stackbert.errors import UserError
from stackbert.planning.devices import GIB, HERE, Device
from stackbert.planning.rehearsal import RandomBatches, random_batch
from stackbert.planning.workload import Workload
from stackbert.pretraining.budget import Timing, measure_batches
from stackbert.pretraining.evaluation import evaluation_batch
from stackbert.pretraining.machine import (
    explaining_out_of_memory,
    keep_memory,
    working_precision,
)
from stackbert.pretraining.start import batch_plan
from stackbert.pretraining.tuning import settle
from stackbert.recipe import Recipe
from stackbert.vocabulary import Vocabulary

_PATIENCE = 30.0
"""Seconds that the timed steps may take if the least number of turns takes less, so that a burst of
another process is the smaller part of what is seen."""
_LONGEST_TURN = 5.0
"""Seconds that a step of every stage may take at the rate of matrix products; real steps take two
or three times that, and there are seven turns. Beyond, steps are timed on fewer rows."""


def predicted(loads: Sequence[Workload], rate: float) -> Timing:
    """The times of a machine that does `rate` FLOP/s of a model's arithmetic."""
    evaluations = tuple(load.evaluation_flops / rate for load in loads)
    return Timing(tuple(load.step_flops / rate for load in loads), evaluations[-1], evaluations)


@dataclass(frozen=True)
class Measured:
    """What was found on the spot."""

    recipe: Recipe
    """With micro-batches and compilation settled as a run would settle them."""
    timing: Timing
    notes: tuple[str, ...]
    """What was cut short, in sentences."""


def measured(
    recipe: Recipe,
    loads: Sequence[Workload],
    vocabulary: Vocabulary,
    corpus: Corpus | None,
    evaluation: StageShape,
    *,
    machine: Device,
    device: torch.device,
    budget: float | None,
) -> Measured:
    """Time every stage here, on the corpus or else on random tokens.

    Where a step of every stage would take longer than some seconds, steps are timed on a part of
    their rows and scaled up, and what a run would tune is left as it is.

    Args:
        recipe: to be run, its precision settled.
        loads: its stages.
        vocabulary: of the model.
        corpus: what it would be trained on, if known.
        evaluation: shape of an evaluation, for random tokens.
        machine: this one.
        device: where on it.
        budget: seconds that the run may take, if its steps are not known yet.

    Raises:
        UserError: models of all depths do not fit into this machine's memory.
    """
    _check_memory(recipe, loads, machine)
    keep_memory()
    next_sentence = recipe.objective.next_sentence
    plan: BatchPlan
    if corpus is None:
        shapes = [
            dataclasses.replace(load.shape, steps=stage.steps)
            for load, stage in zip(loads, recipe.stages, strict=True)
        ]
        plan = RandomBatches(vocabulary, shapes, next_sentence=next_sentence)
        validation = random_batch(evaluation, vocabulary, next_sentence=next_sentence)
    else:
        plan = batch_plan(recipe, corpus, vocabulary)
        validation = evaluation_batch(recipe, corpus, vocabulary)
    precision = working_precision(recipe)
    turn = sum(load.step_flops for load in loads) / machine.rates[precision]
    share = min(1.0, _LONGEST_TURN / turn)
    rows = [max(1, math.floor(share * load.shape.rows)) for load in loads]
    notes: tuple[str, ...] = ()
    if share < 1.0:
        few = min(part / load.shape.rows for part, load in zip(rows, loads, strict=True))
        notes = (
            f"Steps take so long here that they were timed on a part of their rows (down to "
            f"{few:.1%}) and scaled up, which overstates them.",
        )
    else:
        recipe = settle(recipe, vocabulary, plan, device=device, seconds=budget).recipe

    def batch(index: int, turn: int) -> Batch:
        first, end = recipe.boundaries[index : index + 2]
        return plan.batch(min(first + turn, end - 1)).rows(0, rows[index])

    with explaining_out_of_memory():
        timing = measure_batches(
            recipe,
            vocabulary,
            batch,
            validation,
            device=device,
            precision=precision,
            patience=_PATIENCE,
        )
    steps = tuple(
        seconds * load.shape.rows / part
        for seconds, load, part in zip(timing.step, loads, rows, strict=True)
    )
    return Measured(recipe, dataclasses.replace(timing, step=steps), notes)


def _check_memory(recipe: Recipe, loads: Sequence[Workload], machine: Device) -> None:
    # One model of each depth at once, and the activations of one row.
    models = {load.depth: load.footprint.at(0).total for load in loads}
    needed = sum(models.values()) + max(
        load.footprint.at(1).total - load.footprint.at(0).total for load in loads
    )
    if needed > machine.memory:
        raise UserError(
            f"Measuring '{recipe.name}' here takes about {needed / GIB:.0f} GiB of memory, and "
            f"there are {machine.memory / GIB:.0f}. Name a device instead of '{HERE}'."
        )
