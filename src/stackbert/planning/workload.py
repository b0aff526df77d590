"""The arithmetic of a recipe: what a step and an evaluation of each stage take, on any machine."""

import functools
from dataclasses import dataclass

import torch

from stackbert.batches import StageShape
from stackbert.models import create_model, forward_flops, parameter_count, training_flops
from stackbert.planning.memory import Footprint, footprint
from stackbert.pretraining.machine import Precision
from stackbert.recipe import Recipe
from stackbert.vocabulary import Vocabulary


@dataclass(frozen=True)
class Workload:
    """One stage, whatever its number of steps."""

    depth: int
    shape: StageShape
    parameters: int
    step_flops: int
    evaluation_flops: int
    """Of all rows of one evaluation."""
    footprint: Footprint


def evaluation_shape(recipe: Recipe) -> StageShape:
    """The batch of an evaluation, if the validation text has enough rows for it."""
    spec = recipe.evaluation
    return StageShape(1, max(2, spec.sequences), recipe.longest_sequence, spec.mask_rate)


def workloads(
    recipe: Recipe,
    vocabulary: Vocabulary,
    evaluation: StageShape,
    *,
    precision: Precision,
    is_cpu: bool,
) -> tuple[Workload, ...]:
    """The work of each stage of a recipe.

    Args:
        recipe: whose stages.
        vocabulary: sizes embedding and head.
        evaluation: the batch of an evaluation.
        precision: of the forward pass; decides about memory.
        is_cpu: likewise.

    Raises:
        UserError: a model that transformers cannot build.
    """
    next_sentence = recipe.objective.next_sentence

    @functools.cache
    def work(depth: int, shape: StageShape) -> Workload:
        with torch.device("meta"):
            model = create_model(
                recipe.model,
                depth=depth,
                vocabulary=vocabulary,
                sequence_length=recipe.longest_sequence,
                next_sentence=next_sentence,
            )
        return Workload(
            depth,
            shape,
            parameter_count(model),
            training_flops(
                model,
                rows=shape.rows,
                sequence_length=shape.sequence_length,
                masked=shape.rows * shape.masked(next_sentence=next_sentence),
            ),
            forward_flops(
                model,
                rows=evaluation.rows,
                sequence_length=evaluation.sequence_length,
                masked=evaluation.rows * evaluation.masked(next_sentence=next_sentence),
            ),
            footprint(
                model,
                recipe.optimizer,
                shape,
                vocabulary,
                next_sentence=next_sentence,
                precision=precision,
                is_cpu=is_cpu,
            ),
        )

    stages = [recipe.resolved_stage(index) for index in range(len(recipe.stages))]
    # One step: stages that differ in their number of steps alone are the same work.
    return tuple(
        work(s.depth, StageShape(1, s.sequences, s.sequence_length, s.mask_rate)) for s in stages
    )
