"""What a run chooses by measuring before it starts: precision, micro-batches, compilation, steps.

The choices are written into the run's recipe, so a resumed run makes the same ones.
"""

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from stackbert.batches.batches import Batch, BatchPlan
from stackbert.corpus.tokenizer import Vocabulary
from stackbert.encoder import supports_masked_forward
from stackbert.errors import UserError
from stackbert.machine import (
    compiling_lacks,
    fastest_precision,
    matrix_rate,
    synchronise,
    working_precision,
)
from stackbert.pretraining.distributed import SINGLE, World
from stackbert.pretraining.optimizers import step_flops
from stackbert.pretraining.trainer import Trainer, recipe_model
from stackbert.recipe import Recipe

TUNE_FROM = 600.0
"""Seconds of training from which measuring micro-batches pays: it takes about ten."""
COMPILE_FROM = {"cpu": 3600.0, "cuda": 900.0}
"""Seconds of training from which trying torch.compile pays: it takes up to a minute, and on a CPU
it saves a tenth at best."""
WORTH_IT = 0.98
"""A candidate must take less than this share of the best time, or noise would choose."""
POSITIONS = {"cpu": (512, 1 << 15), "cuda": (4096, 1 << 18)}
"""Micro-batches with fewer or more positions are not tried."""
EVALUATIONS = 20
"""Evaluations of a run whose recipe names no interval …"""
EVALUATION_SHARE = 0.1
"""… fewer if they would take more than this share of a budget."""


@dataclass(frozen=True)
class Tuned:
    """A recipe with every "auto" that is worth a measurement replaced."""

    recipe: Recipe
    matrix_rate: float
    """FLOP/s of this machine's matrix products in the recipe's precision."""
    notes: tuple[str, ...]
    """What was measured and chosen, in sentences."""


def autotune(
    recipe: Recipe,
    vocabulary: Vocabulary,
    plan: BatchPlan,
    *,
    device: torch.device,
    seconds: float | None = None,
    world_size: int = 1,
) -> Tuned:
    """Replace every "auto" of a recipe that is worth a measurement on this machine.

    Args:
        recipe: over its final steps, unless there is a budget.
        vocabulary: of the corpus.
        plan: the batches of the run.
        device: where it will run.
        seconds: the budget; by default estimated from the FLOPs.
        world_size: processes that share each step; the share of one is measured.

    Raises:
        UserError: the recipe asks for compilation, which cannot work here.
    """
    precision = fastest_precision(device) if recipe.precision == "auto" else recipe.precision
    recipe = recipe.model_copy(update={"precision": precision})
    rate = matrix_rate(device, precision)
    length = seconds or _estimated_seconds(recipe, vocabulary, plan, rate) / world_size
    # A model that is sharded over processes may not fit into one, so it is not measured in one.
    fits = world_size == 1 or recipe.engine == "ddp"
    notes: list[str] = []

    if recipe.batch.micro_batch == "auto" and length >= TUNE_FROM and fits:
        stages = []
        for stage, first_step in zip(recipe.stages, recipe.boundaries, strict=False):
            size = stage.micro_batch
            if size is None:
                trainer = _trainer(recipe, stage.depth, vocabulary, device)
                size = _fastest_micro_batch(trainer, plan.batch(first_step, 0, world_size))
                notes.append(f"micro-batch at depth {stage.depth}: {size or 'default'} rows")
            stages.append(stage.model_copy(update={"micro_batch": size}))
        recipe = recipe.model_copy(update={"stages": tuple(stages)})

    lacks = compiling_lacks(device)
    if recipe.compile is True and lacks:
        raise UserError(f"compile: {lacks}, or set compile to false.")
    if recipe.compile == "auto":
        pays = lacks is None and length >= COMPILE_FROM[device.type] and fits
        if pays:
            batch = plan.batch(recipe.boundaries[-2], 0, world_size)
            pays = _compiling_pays(recipe, vocabulary, batch, device, notes)
        recipe = recipe.model_copy(update={"compile": pays})
    return Tuned(recipe, rate, tuple(notes))


def _estimated_seconds(
    recipe: Recipe, vocabulary: Vocabulary, plan: BatchPlan, rate: float
) -> float:
    """Training time by FLOPs at half the matrix rate; good to a factor of two."""
    total = 0
    for index, first_step in enumerate(recipe.boundaries[:-1]):
        stage = recipe.stage(index)
        rows, masked = plan.masked_rows(first_step)
        with torch.device("meta"):
            model = recipe_model(recipe, vocabulary, stage.depth)
        length = stage.sequence_length
        total += stage.steps * step_flops(
            model, recipe.optimizer, rows=rows, sequence_length=length, masked=masked
        )
    return total / (rate * 0.5)


def _fastest_micro_batch(trainer: Trainer, batch: Batch) -> int | None:
    """The even division of a step whose rows take least time each; None if none can be tried."""
    device = trainer.device
    best, best_time, slower = None, math.inf, 0
    for size in _even_divisions(len(batch), batch.input_ids_BS.shape[1], device.type):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            (seconds,) = _pass_seconds([trainer], batch, size)
        except torch.OutOfMemoryError:
            break
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            if torch.cuda.max_memory_allocated() > 0.8 * memory:  # too close to the limit
                break
        if best is None:
            trainer.optimizers.step(0.0)  # AdamW allocates its state at the first update
        if seconds / size < best_time * WORTH_IT:
            best, best_time, slower = size, seconds / size, 0
        elif (slower := slower + 1) == 2:
            break
    return best


def _even_divisions(rows: int, length: int, device: str) -> Iterator[int]:
    """Divisors of `rows`, rising, each at least 1.5 times the one before."""
    last, (fewest, most) = 0, POSITIONS[device]
    for size in range(1, min(rows, most // length) + 1):
        large_enough = size * length >= fewest or size == rows
        if rows % size == 0 and large_enough and size >= 1.5 * last:
            last = size
            yield size


def _compiling_pays(
    recipe: Recipe, vocabulary: Vocabulary, batch: Batch, device: torch.device, notes: list[str]
) -> bool:
    """Whether a compiled pass at the last stage's depth is faster; says what was measured."""
    depth = recipe.stages[-1].depth
    eager, compiled = (
        _trainer(recipe, depth, vocabulary, device, compile=compile) for compile in (False, True)
    )
    if not supports_masked_forward(eager.model):
        return False
    eager.micro_batch = recipe.stage(len(recipe.stages) - 1).micro_batch
    size = eager.rows_at_once(*batch.input_ids_BS.shape)
    try:
        eager_time, compiled_time = _pass_seconds([eager, compiled], batch, size)
    except Exception as error:  # a compiler may raise anything, and a run can do without one
        first = str(error).strip().partition("\n")[0]
        notes.append(f"torch.compile fails here ({type(error).__name__}: {first[:200]})")
        return False
    notes.append(
        f"a pass at depth {depth} takes {1000 * eager_time:.0f} ms, "
        f"{1000 * compiled_time:.0f} ms compiled"
    )
    return compiled_time < eager_time * WORTH_IT


def _pass_seconds(trainers: Sequence[Trainer], batch: Batch, size: int) -> list[float]:
    """Seconds that each trainer takes forward and backward over the batch's first `size` rows."""
    rows, masked = len(batch), batch.columns_BK.numel()
    device = trainers[0].device
    part = batch.rows(0, size).to(device)
    passes = [lambda _, t=trainer: t.backward(part, masked, rows) for trainer in trainers]
    return _medians(passes, device, warmup=1, timed=3)  # the first one allocates, or compiles


def _trainer(
    recipe: Recipe,
    depth: int,
    vocabulary: Vocabulary,
    device: torch.device,
    *,
    compile: bool = False,
    world: World = SINGLE,
) -> Trainer:
    """A trainer of a new model, to measure with."""
    return Trainer(
        recipe_model(recipe, vocabulary, depth),
        recipe.optimizer,
        device=device,
        precision=working_precision(recipe),
        micro_batch=recipe.batch.micro_batch,
        seed=0,
        compile=compile,
        world=world,
        engine=recipe.engine,
    )


def _medians(
    works: Sequence[Callable[[int], object]],
    device: torch.device,
    *,
    warmup: int,
    timed: int,
    patience: float = 0.0,
) -> list[float]:
    """Median seconds of each work, which is called with the number of the turn.

    They take turns, so that a machine whose speed drifts treats them alike: `timed` turns after the
    warm-up, up to six times as many while `patience` (seconds) lasts.
    """
    times: list[list[float]] = [[] for _ in works]
    for turn in range(warmup + 6 * timed):
        if turn >= warmup + timed and sum(sum(s[warmup:]) for s in times) >= patience:
            break
        for work, seconds in zip(works, times, strict=True):
            synchronise(device)
            start = time.perf_counter()
            work(turn)
            synchronise(device)
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds[warmup:]) for seconds in times]


@dataclass(frozen=True)
class Timing:
    """Median seconds of a step and of an evaluation at each stage's depth."""

    step: tuple[float, ...]
    evaluation: tuple[float, ...]


def measure(
    recipe: Recipe,
    batch: Callable[[int, int], Batch],
    validation: Batch,
    vocabulary: Vocabulary,
    *,
    device: torch.device,
    patience: float = 0.0,
    world: World = SINGLE,
) -> Timing:
    """Time training steps and evaluations at every stage's depth, on models thrown away afterwards.

    An evaluation may be as long as many steps, so it is timed on a part of its rows and scaled up.

    Args:
        recipe: autotuned.
        batch: (stage index, turn) to a training batch, or this process's share of one.
        validation: all rows of an evaluation.
        vocabulary: of the corpus.
        device: where to measure.
        patience: seconds for further turns of steps, so that a short burst of load does not move
            the median. For one process only: several would not stop at the same turn.
        world: the processes that train together.
    """
    stages = [recipe.stage(index) for index in range(len(recipe.stages))]
    compile = recipe.compile is True
    trainers = {
        depth: _trainer(recipe, depth, vocabulary, device, compile=compile, world=world)
        for depth in {stage.depth: None for stage in stages}
    }
    first = [batch(index, 0) for index in range(len(stages))]

    def step(index: int, turn: int) -> None:
        trainer = trainers[stages[index].depth]
        trainer.micro_batch = stages[index].micro_batch
        # A GPU's batches are made ahead on a thread, so making one is no part of a step there.
        trainer.step(turn, first[index] if device.type == "cuda" else batch(index, turn), 0.1)

    steps = [functools.partial(step, index) for index in range(len(stages))]
    rows = len(validation)
    timed_rows = min(rows, 4 * max(map(len, first)))
    part = validation.rows(0, timed_rows)
    evaluations = [lambda _, t=trainers[stage.depth]: t.evaluate(part) for stage in stages]
    step_seconds = _medians(steps, device, warmup=2, timed=5, patience=patience)
    part_seconds = _medians(evaluations, device, warmup=1, timed=3)
    return Timing(tuple(step_seconds), tuple(rows / timed_rows * each for each in part_seconds))


def evaluation_interval(recipe: Recipe) -> int:
    """Steps between two evaluations: as the recipe says, or so that a run has `EVALUATIONS`."""
    return recipe.evaluation.every_steps or max(1, recipe.total_steps // EVALUATIONS)


def evaluations_by_stage(recipe: Recipe) -> tuple[int, ...]:
    """Evaluations of each stage: at its end, every interval, after a growth, and at step 0."""
    every = evaluation_interval(recipe)
    counts = []
    for first, end in itertools.pairwise(recipe.boundaries):
        further = (end % every != 0) + (first == 0) + (first in recipe.growth_steps)
        counts.append(end // every - first // every + further)
    return tuple(counts)


def scaled_to(recipe: Recipe, timing: Timing, seconds: float) -> Recipe:
    """The recipe over as many steps as fit into `seconds` with their evaluations.

    Each stage keeps its share of the steps. Where the recipe leaves the interval of evaluations
    open, they take a tenth of the time at most.

    Raises:
        UserError: not even one step a stage fits.
    """
    stages = zip(recipe.stages, timing.step, strict=True)
    mean_step = sum(stage.steps * step for stage, step in stages) / recipe.total_steps
    evaluation_seconds = timing.evaluation[-1]
    every, around_growth = recipe.evaluation.every_steps, 2 * len(recipe.growth_steps)
    if every is not None:
        steps = int(seconds / (mean_step + evaluation_seconds / every))
    else:
        share = seconds * EVALUATION_SHARE
        evaluating = min((EVALUATIONS + around_growth) * evaluation_seconds, share)
        steps = int((seconds - evaluating) / mean_step)
        affordable = int(share / evaluation_seconds) - around_growth
        if affordable < EVALUATIONS:
            every = math.ceil(steps / max(1, affordable))
    if steps < len(recipe.stages):
        raise UserError(
            f"The budget of {seconds:.0f} s is too short: one step of '{recipe.name}' takes "
            f"{mean_step:.2f} s here. Give more time, or a smaller model or batch."
        )
    evaluation = recipe.evaluation.model_copy(update={"every_steps": every})
    return recipe.scaled(steps).model_copy(update={"evaluation": evaluation})
