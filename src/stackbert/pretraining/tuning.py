"""What a run settles by measuring before it starts: precision, micro-batches, compilation.

The choices are written into the run's own recipe, so a run that goes on makes the same ones, and
the recipe of a finished run repeats it.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from stackbert.batches import Batch, BatchPlan
from stackbert.encoder import narrows
from stackbert.errors import UserError
from stackbert.models import create_model, training_flops
from stackbert.pretraining.evaluation import to_device
from stackbert.pretraining.machine import (
    compiling_lacks,
    fastest_precision,
    matrix_rate,
    synchronise,
    working_precision,
)
from stackbert.pretraining.trainer import Trainer
from stackbert.recipe import Recipe
from stackbert.vocabulary import Vocabulary

TUNE_FROM = 600.0
"""Seconds of training from which measuring micro-batches pays: it takes some ten."""
COMPILE_FROM = {"cpu": 3600.0, "cuda": 900.0}
"""Seconds of training from which trying torch.compile pays: it takes up to a minute, and on a CPU
it wins a tenth at best."""
_TYPICAL_MFU = 0.5
_TIMED = 3
_FEWEST_POSITIONS = {"cpu": 512, "cuda": 4096}
_MOST_POSITIONS = {"cpu": 1 << 15, "cuda": 1 << 18}
_WORTH_IT = 0.98
"""A candidate must take less than this share of the time, or noise would choose."""
_FULL = 0.8
"""Share of a GPU's memory that training with a micro-batch may fill."""


@dataclass(frozen=True)
class Settled:
    """A recipe with every "auto" replaced that was worth measuring, and the machine's rate."""

    recipe: Recipe
    matrix_rate: float
    """FLOP/s in the recipe's precision."""
    notes: tuple[str, ...]
    """What was measured and chosen, in sentences."""


def settle(
    recipe: Recipe,
    vocabulary: Vocabulary,
    plan: BatchPlan,
    *,
    device: torch.device,
    seconds: float | None = None,
    processes: int = 1,
) -> Settled:
    """Replace every "auto" that is worth a measurement on this machine.

    Args:
        recipe: as asked for; steps already scaled, unless `seconds` says how long it may take.
        vocabulary: of the corpus.
        plan: its batches.
        device: where it will run.
        seconds: the budget; by default estimated from the FLOPs.
        processes: that share each step; one's share of it is measured.

    Raises:
        UserError: compilation is asked for and cannot be had here.
    """
    precision = fastest_precision(device) if recipe.precision == "auto" else recipe.precision
    recipe = recipe.model_copy(update={"precision": precision})
    rate = matrix_rate(device, precision)
    length = seconds or estimate(recipe, vocabulary, plan, rate) / processes
    # What is cut into pieces may not fit in one, so it is not measured in one.
    whole = processes == 1 or recipe.engine == "ddp"
    notes: list[str] = []
    if recipe.batch.micro_batch == "auto" and length >= TUNE_FROM and whole:
        recipe = _with_micro_batches(recipe, vocabulary, plan, device, processes, notes)
    lacks = compiling_lacks(device)
    if recipe.compile is True and lacks:
        raise UserError(f"compile: {lacks}, or set compile to false.")
    if recipe.compile == "auto":
        pays = (
            lacks is None
            and length >= COMPILE_FROM[device.type]
            and whole
            and _compiling_pays(recipe, vocabulary, plan, device, processes, notes)
        )
        recipe = recipe.model_copy(update={"compile": pays})
    return Settled(recipe, rate, tuple(notes))


def estimate(recipe: Recipe, vocabulary: Vocabulary, plan: BatchPlan, rate: float) -> float:
    """Seconds of training by FLOPs alone, good to a factor of two or so.

    Args:
        recipe: whose stages to add up.
        vocabulary: of the corpus.
        plan: its batches.
        rate: of this machine's matrix products, in FLOP/s.
    """
    total = 0
    for index, stage in enumerate(recipe.stages):
        rows, masked = plan.masked_rows(recipe.boundaries[index])
        with torch.device("meta"):
            model = create_model(
                recipe.model,
                depth=stage.depth,
                vocabulary=vocabulary,
                sequence_length=recipe.longest_sequence,
                next_sentence=recipe.objective.next_sentence,
            )
        length = recipe.resolved_stage(index).sequence_length
        total += stage.steps * training_flops(
            model, rows=rows, sequence_length=length, masked=masked
        )
    return total / (rate * _TYPICAL_MFU)


def _with_micro_batches(
    recipe: Recipe,
    vocabulary: Vocabulary,
    plan: BatchPlan,
    device: torch.device,
    processes: int,
    notes: list[str],
) -> Recipe:
    found: dict[tuple[int, int, int, float], int | None] = {}
    stages = []
    for index, stage in enumerate(recipe.stages):
        full = recipe.resolved_stage(index)
        shape = (full.depth, full.sequences, full.sequence_length, full.mask_rate)
        if shape not in found and stage.micro_batch is None:
            found[shape] = fastest_micro_batch(
                trainer_at(recipe, index, vocabulary, device, compile=False),
                plan.batch(recipe.boundaries[index], 0, processes),
            )
            chosen = (
                f"{found[shape]} rows" if found[shape] else "as usual, for no other can be tried"
            )
            notes.append(f"micro-batch at depth {full.depth}: {chosen}")
        stages.append(stage.model_copy(update={"micro_batch": stage.micro_batch or found[shape]}))
    return recipe.model_copy(update={"stages": tuple(stages)})


def fastest_micro_batch(trainer: Trainer, batch: Batch) -> int | None:
    """Rows a forward and backward pass at which a row takes least time, of the even divisions.

    Args:
        trainer: thrown away after; its weights are left as they are.
        batch: of a whole step.

    Returns:
        None where no division is of a size worth trying, or none fits into memory.
    """
    rows, length = batch.input_ids.shape
    best, best_time, behind = None, float("inf"), 0
    for size in _even_divisions(rows, length, trainer.device.type):
        seconds = _time_fitting(trainer, batch, size)
        if seconds is None:
            break
        if best is None:  # AdamW takes its memory at the first update
            trainer.optimizers.step(0.0)
        if seconds / size < best_time * _WORTH_IT:
            best, best_time, behind = size, seconds / size, 0
        else:
            behind += 1
            if behind == 2:
                break
    return best


def _even_divisions(rows: int, length: int, device: str) -> Iterator[int]:
    """Divisors of `rows`, rising, each at least 1.5 times the one before."""
    last = 0.0
    for size in range(1, rows + 1):
        small = size * length < _FEWEST_POSITIONS[device] and size < rows
        if size * length > _MOST_POSITIONS[device]:
            return
        if rows % size or small or size < 1.5 * last:
            continue
        last = size
        yield size


def _time_fitting(trainer: Trainer, batch: Batch, size: int) -> float | None:
    """As `_time_backward`; None where it does not fit into a GPU's memory, or barely."""
    cuda = trainer.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    fits = True
    try:
        seconds = _time_backward(trainer, batch, size)
    except torch.OutOfMemoryError:
        fits = False  # what the failed pass held is free only after this block
    if fits and cuda:
        total = torch.cuda.get_device_properties(trainer.device).total_memory
        fits = torch.cuda.max_memory_allocated() < _FULL * total
    return seconds if fits else None


def _time_backward(trainer: Trainer, batch: Batch, size: int) -> float:
    """Median seconds of a forward and backward pass over the batch's first rows."""
    inputs = to_device(batch.rows(0, size), trainer.device)
    times = []
    for turn in range(1 + _TIMED):
        synchronise(trainer.device)
        start = time.perf_counter()
        trainer.backward(inputs, batch.columns.size, len(batch.input_ids))
        synchronise(trainer.device)
        if turn:  # the first one allocates, or compiles
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _compiling_pays(
    recipe: Recipe,
    vocabulary: Vocabulary,
    plan: BatchPlan,
    device: torch.device,
    processes: int,
    notes: list[str],
) -> bool:
    last = len(recipe.stages) - 1
    batch = plan.batch(recipe.boundaries[last], 0, processes)
    times = []
    for compile in (False, True):
        trainer = trainer_at(recipe, last, vocabulary, device, compile=compile)
        if compile and not narrows(trainer.model):
            return False
        size = trainer.rows_at_once(*batch.input_ids.shape)
        try:
            times.append(_time_backward(trainer, batch, size))
        except Exception as error:
            # Whatever a compiler may raise: a run that did not ask for one goes on without.
            if not compile:
                raise
            first = str(error).strip().partition("\n")[0]
            notes.append(f"torch.compile fails here ({type(error).__name__}: {first[:200]})")
            return False
    eager, compiled = times
    notes.append(
        f"a pass at depth {recipe.stages[last].depth} takes {1000 * eager:.0f} ms, "
        f"{1000 * compiled:.0f} ms compiled"
    )
    return compiled < eager * _WORTH_IT


def trainer_at(
    recipe: Recipe,
    stage: int,
    vocabulary: Vocabulary,
    device: torch.device,
    *,
    compile: bool,
) -> Trainer:
    """A trainer of a new model at the depth of a recipe's stage, to measure with."""
    model = create_model(
        recipe.model,
        depth=recipe.stages[stage].depth,
        vocabulary=vocabulary,
        sequence_length=recipe.longest_sequence,
        next_sentence=recipe.objective.next_sentence,
    )
    return Trainer(
        model,
        recipe.optimizer,
        device=device,
        precision=working_precision(recipe),
        micro_batch=recipe.resolved_stage(stage).micro_batch,
        seed=0,
        compile=compile,
    )
