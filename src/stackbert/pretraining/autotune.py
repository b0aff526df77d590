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

from stackbert.batches.batches import Batch, training_plan, validation_batch
from stackbert.corpus.store import Corpus
from stackbert.encoder import supports_masked_forward
from stackbert.errors import StackBertError, UserError
from stackbert.machine import compiling_lacks, fastest_precision, matrix_rate, synchronise
from stackbert.pretraining.distributed import SINGLE, World
from stackbert.pretraining.memory import refuse_beyond_memory
from stackbert.pretraining.trainer import Trainer, recipe_model, rows_at_once, stage_flops
from stackbert.recipe import Recipe

# Seconds of training from which it pays to measure micro-batches (about ten, on a GPU each is
# compiled), and to try torch.compile (a minute the first time, on two cores or a GPU; narrow models
# gain most: on a CPU a quarter to a third of a step at 64 units, a fifth at 128, little at 256).
TUNE_FROM = {"cpu": 600.0, "cuda": 1800.0}
COMPILE_FROM = {"cpu": 600.0, "cuda": 180.0}
WORTH_IT = 0.98
"""A candidate must take less than this share of the best time, or noise would choose."""
POSITIONS = {"cpu": (512, 1 << 15), "cuda": (1 << 14, 1 << 18)}
"""Micro-batches with fewer or more positions are not tried."""
EVALUATIONS, EVALUATION_SHARE = 20, 0.1
"""Of a run whose recipe names no interval; fewer if they took more than this share of a budget."""


def autotune(
    recipe: Recipe,
    corpus: Corpus,
    *,
    device: torch.device,
    seconds: float | None = None,
    world_size: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Recipe, float]:
    """Replace every "auto" of a recipe that is worth a measurement on this machine.

    Args:
        recipe: over its final steps, unless there is a budget.
        seconds: the budget; by default estimated from the FLOPs.
        world_size: processes that share each step; the share of one is measured.

    Returns:
        The recipe, and the FLOP/s of matrix products in its precision.

    Raises:
        UserError: a model that cannot be built or does not fit, or compilation or bf16 that cannot
            work here.
    """
    refuse_beyond_memory(recipe, corpus.vocabulary, device, world_size=world_size)
    lacks = compiling_lacks(device)
    if recipe.compile is True and lacks:
        raise UserError(f"compile: {lacks}, or set compile to false.")
    on_gpu = device.type == "cuda"
    if on_gpu and recipe.precision == "bf16" and fastest_precision(device) != "bf16":
        raise UserError("precision: this GPU has no bf16 (Ampere and later have). Set it to auto.")
    precision = fastest_precision(device) if recipe.precision == "auto" else recipe.precision
    recipe = recipe.model_copy(update={"precision": precision})
    rate = matrix_rate(device, precision)
    if seconds is None:  # half the matrix rate is right to a factor of two
        flops = zip(recipe.stages, stage_flops(recipe, corpus), strict=True)
        seconds = sum(stage.steps * each for stage, each in flops) / (0.5 * rate * world_size)
    # A model that is sharded over processes may not fit into one, so it is not measured in one.
    fits = world_size == 1 or recipe.engine == "ddp"
    plan = training_plan(recipe, corpus)
    batches = [plan.batch(step, 0, world_size) for step in recipe.boundaries[:-1]]

    tunes = recipe.batch.micro_batch == "auto" and seconds >= TUNE_FROM[device.type] and fits
    if tunes and device.type == "cpu":
        recipe = _with_micro_batches(recipe, corpus, batches, device, say)
    if recipe.compile == "auto":
        pays = lacks is None and seconds >= COMPILE_FROM[device.type] and fits
        pays = pays and _compiling_pays(recipe, corpus, batches[-1], device, say)
        recipe = recipe.model_copy(update={"compile": pays})
    if tunes and device.type == "cuda":  # compiled, another size may be the fastest
        recipe = _with_micro_batches(recipe, corpus, batches, device, say)
    return recipe, rate


def _with_micro_batches(
    recipe: Recipe,
    corpus: Corpus,
    batches: Sequence[Batch],
    device: torch.device,
    say: Callable[[str], None],
) -> Recipe:
    stages = list(recipe.stages)
    for index, (stage, batch) in enumerate(zip(recipe.stages, batches, strict=True)):
        if stage.micro_batch is None:
            say(f"measuring micro-batches at depth {stage.depth} …")
            model = recipe_model(recipe, corpus.vocabulary, stage.depth)
            size = _fastest_micro_batch(Trainer(model, recipe, device=device), batch)
            say(f"micro-batch at depth {stage.depth}: {size or 'default'} rows")
            stages[index] = stage.model_copy(update={"micro_batch": size})
    return recipe.model_copy(update={"stages": tuple(stages)})


def _fastest_micro_batch(trainer: Trainer, batch: Batch) -> int | None:
    """The even division of a step whose rows take least time each; None if none can be tried."""
    device = trainer.device
    best, slower = None, 0
    for size in _even_divisions(len(batch), batch.input_ids_BS.shape[1], device.type):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            limit = 0.8 * torch.cuda.get_device_properties(device).total_memory
        tried = [(trainer, size), *([(trainer, best)] if best else [])]
        try:  # in turns with the best so far: a busy minute slows both
            seconds, *of_best = _pass_seconds(batch, tried)
        except torch.OutOfMemoryError:
            break
        if device.type == "cuda" and torch.cuda.max_memory_allocated() > limit:
            break
        if best is None:
            trainer.optimizers.step(0.0)  # AdamW allocates its state at the first update
        if best is None or seconds / size < of_best[0] / best * WORTH_IT:
            best, slower = size, 0
        elif (slower := slower + 1) == 2:
            break
    return best


def _even_divisions(rows: int, length: int, device: str) -> Iterator[int]:
    """Divisors of `rows`, rising, each at least 1.5 times the one before."""
    last, (fewest, most) = 0, POSITIONS[device]
    least = min(rows, -(-fewest // length))
    for size in range(least, min(rows, most // length) + 1):
        if rows % size == 0 and size >= 1.5 * last:
            last = size
            yield size


def _compiling_pays(
    recipe: Recipe, corpus: Corpus, batch: Batch, device: torch.device, say: Callable[[str], None]
) -> bool:
    last = recipe.stage(len(recipe.stages) - 1)
    model = recipe_model(recipe, corpus.vocabulary, last.depth)
    if not supports_masked_forward(model):
        return False
    say("trying torch.compile, which takes a minute or two …")
    # Neither of the two changes the weights, so they share them.
    choices = (recipe.model_copy(update={"compile": compile}) for compile in (False, True))
    trainers = [Trainer(model, choice, device=device) for choice in choices]
    size = rows_at_once(last.micro_batch, len(batch), last.sequence_length, device)
    try:
        eager, compiled = _pass_seconds(batch, [(trainer, size) for trainer in trainers])
    except StackBertError:
        raise
    except Exception as error:  # a compiler may raise anything, and a run can do without one
        first = str(error).strip().partition("\n")[0]
        say(f"torch.compile fails here ({type(error).__name__}: {first[:200]})")
        return False
    say(f"a pass takes {1000 * eager:.0f} ms, {1000 * compiled:.0f} ms compiled")
    return compiled < eager * WORTH_IT


def _pass_seconds(batch: Batch, tried: Sequence[tuple[Trainer, int]]) -> list[float]:
    """Least seconds of each trainer for its number of the batch's rows, forward and backward."""
    rows, masked = len(batch), batch.columns_BK.numel()
    device = tried[0][0].device
    parts = [(trainer, batch.rows(0, size).to(device)) for trainer, size in tried]
    passes = [lambda _, t=trainer, b=part: t.backward(b, masked, rows) for trainer, part in parts]
    # The first one allocates, or compiles.
    return _seconds_of(passes, device, warmup=1, timed=3, pick=min)


def _seconds_of(
    works: Sequence[Callable[[int], object]],
    device: torch.device,
    *,
    warmup: int,
    timed: int,
    patience: float = 0.0,
    pick: Callable[[Sequence[float]], float] = statistics.median,
) -> list[float]:
    """Median (or other) seconds of each work, which is called with the number of the turn.

    They take turns, as a machine's speed drifts: `timed` ones after the warm-up, up to six times as
    many while `patience` (seconds) lasts.
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
    return [pick(seconds[warmup:]) for seconds in times]


@dataclass(frozen=True)
class Timing:
    """Median seconds of a step and of an evaluation at each stage's depth."""

    step: tuple[float, ...]
    evaluation: tuple[float, ...]


def measure(
    recipe: Recipe,
    corpus: Corpus,
    *,
    device: torch.device,
    share: float = 1.0,
    patience: float = 0.0,
    world: World = SINGLE,
) -> Timing:
    """Time training steps and evaluations at every stage's depth, on models thrown away afterwards.

    An evaluation may be as long as many steps, so it is timed on a part of its rows and scaled up;
    so are steps of which a `share` is timed. For `patience` seconds steps take further turns, so
    that a burst of load does not move the median (in one process only: several would not stop at
    the same turn).
    """
    plan, validation = training_plan(recipe, corpus), validation_batch(recipe, corpus)
    stages, trainers = plan.stages, dict[int, Trainer]()

    def batch(index: int, turn: int) -> Batch:
        step = min(recipe.boundaries[index] + turn, recipe.boundaries[index + 1] - 1)
        whole = plan.batch(step, world.rank, world.size)
        return whole.rows(0, max(1, math.floor(share * len(whole))))

    first = [batch(index, 0) for index in range(len(stages))]

    def step(index: int, turn: int) -> None:
        trainer = trainers[stages[index].depth]
        trainer.micro_batch = stages[index].micro_batch
        trainer.freeze(recipe.frozen_layers(index))
        # A GPU's batches are made ahead on a thread, so making one is no part of a step there.
        trainer.step(turn, first[index] if device.type == "cuda" else batch(index, turn), 0.1)

    part = validation.rows(0, 4 * max(map(len, first)))
    step_seconds, part_seconds = [], []
    groups = [list(range(len(stages)))]
    if device.type == "cuda":  # its memory may hold one depth alone, and its speed drifts less
        groups = [[index] for index in groups[0]]
    for group in groups:
        trainers.clear()
        for depth in dict.fromkeys(stages[index].depth for index in group):
            model = recipe_model(recipe, corpus.vocabulary, depth)
            trainers[depth] = Trainer(model, recipe, device=device, world=world)
        steps = [functools.partial(step, index) for index in group]
        evaluations = [lambda _, t=trainers[stages[i].depth]: t.evaluate(part) for i in group]
        share_of_patience = patience / len(groups)
        step_seconds += _seconds_of(steps, device, warmup=2, timed=5, patience=share_of_patience)
        part_seconds += _seconds_of(evaluations, device, warmup=1, timed=3)
    scale = [s.sequences / (len(b) * world.size) for s, b in zip(stages, first, strict=True)]
    return Timing(
        tuple(seconds * each for seconds, each in zip(step_seconds, scale, strict=True)),
        tuple(seconds * len(validation) / len(part) for seconds in part_seconds),
    )


def evaluation_interval(recipe: Recipe) -> int:
    """Steps between two evaluations: as the recipe says, or so that a run has `EVALUATIONS`."""
    return recipe.evaluation.every_steps or max(1, recipe.total_steps // EVALUATIONS)


def evaluations_by_stage(recipe: Recipe) -> list[int]:
    """Evaluations of each stage: at its end, every interval, after a growth, and at step 0."""
    every = evaluation_interval(recipe)
    return [
        (end // every - first // every)
        + (end % every != 0)
        + (first == 0 or first in recipe.growth_steps)
        for first, end in itertools.pairwise(recipe.boundaries)
    ]


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
