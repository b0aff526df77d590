"""How many steps fit a budget of time: measured on this machine, at every depth, before the run."""

import contextlib
import itertools
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from stackbert.batches import Batch, BatchPlan
from stackbert.corpus.store import Corpus
from stackbert.errors import UserError
from stackbert.models import create_model
from stackbert.pretraining.evaluation import evaluation_batch
from stackbert.pretraining.machine import Precision, synchronise
from stackbert.pretraining.ranks import ALONE, Ranks
from stackbert.pretraining.trainer import Trainer
from stackbert.recipe import Recipe
from stackbert.vocabulary import Vocabulary

EVALUATIONS = 20
"""Evaluations of a run whose recipe names no interval."""
_EVALUATION_SHARE = 0.1
"""Of a budget, at most."""
_WARMUP, _TIMED, _MOST_TIMED = 2, 5, 30
"""Turns of training steps."""
_EVALUATED = 3
"""Turns of evaluations, after one to warm up."""


def parse_duration(text: str) -> float:
    """Seconds from "90s", "20m", "1.5h", "2d" or a combination such as "1h30m".

    Raises:
        UserError: it is not a duration, or not above zero.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    unit_seconds = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    seconds = sum(float(number) * unit_seconds[unit] for number, unit in parts)
    whole = "".join(number + unit for number, unit in parts) == text
    if not parts or not whole or math.isinf(seconds):
        raise UserError(f"'{text}' is not a duration. Write 90s, 20m, 1.5h or 1h30m.")
    if seconds <= 0:
        raise UserError(f"A budget of '{text}' leaves no time to train.")
    return seconds


@dataclass(frozen=True)
class Timing:
    """Medians on this machine, in seconds."""

    step: tuple[float, ...]
    """One optimiser step of each stage."""
    evaluation: float
    """One evaluation at the last stage's depth."""
    evaluations: tuple[float, ...] = ()
    """One evaluation at each stage's depth; empty where only the last was timed."""


def measure(
    recipe: Recipe,
    corpus: Corpus,
    vocabulary: Vocabulary,
    plan: BatchPlan,
    *,
    device: torch.device,
    precision: Precision,
    ranks: Ranks = ALONE,
) -> Timing:
    """Time training steps and evaluations at every stage's depth, on a corpus.

    As `measure_batches`, on the batches that the run itself would see.
    """

    def batch(index: int, turn: int) -> Batch:
        step = recipe.boundaries[index] + min(turn, recipe.stages[index].steps - 1)
        return plan.batch(step, ranks.rank, ranks.count)

    validation = evaluation_batch(recipe, corpus, vocabulary)
    return measure_batches(
        recipe, vocabulary, batch, validation, device=device, precision=precision, ranks=ranks
    )


def measure_batches(
    recipe: Recipe,
    vocabulary: Vocabulary,
    batch: Callable[[int, int], Batch],
    validation: Batch,
    *,
    device: torch.device,
    precision: Precision,
    patience: float = 0.0,
    ranks: Ranks = ALONE,
) -> Timing:
    """Time training steps and evaluations at every stage's depth, on models thrown away after.

    The stages take turns, so that a machine whose speed drifts treats them alike. Two turns warm
    up, five are timed, and more (up to 30) while `patience` lasts. An evaluation is timed on a
    part of its rows, as it may be as long as many steps, and scaled up.

    Args:
        recipe: whose model, optimiser and stages; "auto" left over is not measured.
        vocabulary: sizes the embedding.
        batch: (index of the stage, turn) to a training batch of that stage.
        validation: all rows of an evaluation.
        device: where.
        precision: of the forward pass.
        patience: seconds that timed training steps may take, if the five turns take less. Of one
            process only: several would not stop at the same turn.
        ranks: the processes that train together.
    """
    trainers = _trainers(recipe, vocabulary, device, precision, ranks)
    times: list[list[float]] = [[] for _ in recipe.stages]
    warm, turn = 0.0, 0
    while turn < _WARMUP + _TIMED or (
        turn < _WARMUP + _MOST_TIMED and time.perf_counter() - warm < patience
    ):
        if turn == _WARMUP:
            warm = time.perf_counter()
        for index, stage in enumerate(recipe.stages):
            trainer = trainers[stage.depth]
            trainer.micro_batch = recipe.resolved_stage(index).micro_batch
            # A GPU's batches are made ahead on a thread, so they are no part of a step there.
            ready = batch(index, turn) if device.type == "cuda" else None
            with _timed(device, times[index]):
                trainer.step(turn, ready or batch(index, turn), 0.1)
        turn += 1
    rows = len(validation.input_ids)
    largest = max(len(batch(index, 0).input_ids) for index in range(len(recipe.stages)))
    part = validation.rows(0, min(rows, 4 * largest))
    evaluating: list[list[float]] = [[] for _ in recipe.stages]
    for _ in range(1 + _EVALUATED):
        for index, stage in enumerate(recipe.stages):
            with _timed(device, evaluating[index]):
                trainers[stage.depth].evaluate(part)
    scale = rows / len(part.input_ids)
    evaluations = tuple(scale * statistics.median(seconds[1:]) for seconds in evaluating)
    steps = tuple(statistics.median(seconds[_WARMUP:]) for seconds in times)
    return Timing(steps, evaluations[-1], evaluations)


def _trainers(
    recipe: Recipe,
    vocabulary: Vocabulary,
    device: torch.device,
    precision: Precision,
    ranks: Ranks,
) -> dict[int, Trainer]:
    """A trainer at each depth of a recipe."""
    trainers: dict[int, Trainer] = {}
    for depth in dict.fromkeys(stage.depth for stage in recipe.stages):
        model = create_model(
            recipe.model,
            depth=depth,
            vocabulary=vocabulary,
            sequence_length=recipe.longest_sequence,
            next_sentence=recipe.objective.next_sentence,
        )
        trainers[depth] = Trainer(
            model,
            recipe.optimizer,
            device=device,
            precision=precision,
            micro_batch=recipe.batch.micro_batch,
            seed=0,
            compile=recipe.compile is True,
            ranks=ranks,
            engine=recipe.engine,
        )
    return trainers


@contextlib.contextmanager
def _timed(device: torch.device, times: list[float]) -> Iterator[None]:
    synchronise(device)
    start = time.perf_counter()
    yield
    synchronise(device)
    times.append(time.perf_counter() - start)


def evaluation_interval(recipe: Recipe) -> int:
    """Steps between two evaluations, as the recipe says or so that there are `EVALUATIONS`."""
    return recipe.evaluation.every_steps or max(1, recipe.total_steps // EVALUATIONS)


def evaluations_by_stage(recipe: Recipe) -> tuple[int, ...]:
    """Evaluations that a run makes at each stage's depth.

    One before the first step, one at every interval and at every stage's end, and one right after
    each growth.
    """
    every = evaluation_interval(recipe)
    counts = []
    for first, end in itertools.pairwise(recipe.boundaries):
        at_intervals = end // every - first // every
        beside = (end % every != 0) + (first == 0) + (first in recipe.growth_steps)
        counts.append(at_intervals + beside)
    return tuple(counts)


def scaled_to(recipe: Recipe, timing: Timing, seconds: float) -> Recipe:
    """The recipe over as many steps as fit into `seconds`, each stage keeping its share.

    Where the recipe leaves the interval of evaluations open and twenty would take more than a
    tenth of the time, there are fewer.

    Raises:
        UserError: not even one step a stage fits.
    """
    scaled = recipe.scaled(steps_within(recipe, timing, seconds))
    if recipe.evaluation.every_steps is not None:
        return scaled
    affordable = int(seconds * _EVALUATION_SHARE / timing.evaluation) - 2 * len(recipe.growth_steps)
    if affordable >= EVALUATIONS:
        return scaled
    every = math.ceil(scaled.total_steps / max(1, affordable))
    evaluation = scaled.evaluation.model_copy(update={"every_steps": every})
    return scaled.model_copy(update={"evaluation": evaluation})


def steps_within(recipe: Recipe, timing: Timing, seconds: float) -> int:
    """Optimiser steps that fit: training and evaluations in `seconds`, each stage its share.

    Raises:
        UserError: not even one step a stage fits.
    """
    mean_step = (
        sum(stage.steps * step for stage, step in zip(recipe.stages, timing.step, strict=True))
        / recipe.total_steps
    )
    evaluations = EVALUATIONS + 2 * len(recipe.growth_steps)
    if recipe.evaluation.every_steps is None:
        # A slow evaluation must not eat a short budget.
        left = seconds - min(evaluations * timing.evaluation, seconds * _EVALUATION_SHARE)
        steps = int(left / mean_step)
    else:
        steps = int(seconds / (mean_step + timing.evaluation / recipe.evaluation.every_steps))
    if steps < len(recipe.stages):
        raise UserError(
            f"The budget of {seconds:.0f} s is too short: one step of '{recipe.name}' takes "
            f"{mean_step:.2f} s here. Give more time or a smaller model or batch."
        )
    return steps
