"""How many steps fit a budget of time: measured on this machine, at every depth, before the run."""

import math
import re
import statistics
import time
from dataclasses import dataclass

import torch

from stackbert.batches import BatchPlan
from stackbert.corpus.store import Corpus
from stackbert.errors import UserError
from stackbert.models import create_model
from stackbert.pretraining.evaluation import evaluation_batch
from stackbert.pretraining.machine import Precision, synchronise
from stackbert.pretraining.trainer import Trainer
from stackbert.recipe import Recipe
from stackbert.vocabulary import Vocabulary

EVALUATIONS = 20
"""Evaluations of a run whose recipe names no interval."""
_WARMUP, _TIMED = 2, 5


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


def measure(
    recipe: Recipe,
    corpus: Corpus,
    vocabulary: Vocabulary,
    plan: BatchPlan,
    *,
    device: torch.device,
    precision: Precision,
) -> Timing:
    """Time training steps at every stage's depth and an evaluation, on models thrown away after.

    The stages take turns, so that a machine whose speed drifts treats them alike.
    """
    trainers: dict[int, Trainer] = {}
    for stage in recipe.stages:
        if stage.depth not in trainers:
            model = create_model(
                recipe.model,
                depth=stage.depth,
                vocabulary=vocabulary,
                sequence_length=recipe.longest_sequence,
                next_sentence=recipe.objective.next_sentence,
            )
            trainers[stage.depth] = Trainer(
                model,
                recipe.optimizer,
                device=device,
                precision=precision,
                micro_batch=recipe.batch.micro_batch,
                seed=0,
            )
    times: list[list[float]] = [[] for _ in recipe.stages]
    for turn in range(_WARMUP + _TIMED):
        for index, stage in enumerate(recipe.stages):
            synchronise(device)
            start = time.perf_counter()
            batch = plan.batch(recipe.boundaries[index] + min(turn, stage.steps - 1))
            trainers[stage.depth].step(turn, batch, 0.1)
            synchronise(device)
            if turn >= _WARMUP:
                times[index].append(time.perf_counter() - start)
    validation = evaluation_batch(recipe, corpus, vocabulary)
    start = time.perf_counter()
    trainers[recipe.stages[-1].depth].evaluate(validation)
    synchronise(device)
    evaluation = time.perf_counter() - start
    return Timing(tuple(statistics.median(t) for t in times), evaluation)


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
        # A slow evaluation must not eat a short budget; a tenth is its most.
        left = seconds - min(evaluations * timing.evaluation, seconds / 10)
        steps = int(left / mean_step)
    else:
        steps = int(seconds / (mean_step + timing.evaluation / recipe.evaluation.every_steps))
    if steps < len(recipe.stages):
        raise UserError(
            f"The budget of {seconds:.0f} s is too short: one step of '{recipe.name}' takes "
            f"{mean_step:.2f} s here. Give more time or a smaller model or batch."
        )
    return steps
