"""`plan`: what a recipe's run takes in time, memory and money, before it is paid for."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from stackbert.batches.batches import Batch, BatchPlan, training_plan, validation_batch
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.corpus.tokenizer import Vocabulary
from stackbert.devices import GIB, NODE, Device, find_device, this_machine
from stackbert.errors import UserError
from stackbert.machine import (
    Precision,
    explaining_out_of_memory,
    fastest_precision,
    keep_memory,
    pick_device,
)
from stackbert.model import forward_flops, parameter_count, training_flops
from stackbert.pretraining import autotune
from stackbert.pretraining.memory import Footprint, footprint
from stackbert.pretraining.synthetic import synthetic_plan, synthetic_vocabulary
from stackbert.pretraining.trainer import recipe_model, rows_at_once
from stackbert.recipe import Engine, Recipe, Stage
from stackbert.tables import table_text
from stackbert.units import format_duration, parse_duration

PAPER_VOCABULARY = 32768
ASSUMED_MFU = 0.4
"""Model FLOPs utilisation: the share of a published peak that training reaches. A target and not a
measurement: between the 0.35 that we aim at for 12 × 768 and the 0.45 for 24 × 1024."""
USABLE = 0.9
"""Share of a device's memory for training; the rest goes to the driver's context and to gaps."""
LINK_EFFICIENCY = 0.7
"""Share of a link's published rate that an all-reduce of large tensors reaches. Assumed."""
FEW_POSITIONS = 8192
"""Of a device in a step: with fewer, a GPU's matrix products no longer reach their rate."""
MAX_TIMING_SECONDS = 30.0
"""Keep timing steps for up to 30 s, so that a short burst of load does not move the median."""
LONGEST_TURN = 5.0
"""Seconds of matrix products in a step of every stage, of which at least seven turns are timed; a
real step takes two or three times as long. Beyond, fewer rows are timed and scaled up."""


@dataclass(frozen=True)
class Plan:
    """A run before it is started, and the same number of steps from scratch."""

    title: str
    recipe: Recipe
    """As it would run: over its final steps; planned for this machine, also autotuned."""
    stages: pd.DataFrame
    """A row a stage: depth, parameters, steps, tokens, flops (of training), micro_batch, memory
    (bytes at the peak), step_seconds, waiting_seconds (of a step, for other devices),
    training_seconds, evaluations, evaluation_seconds (of all of them), seconds."""
    scratch: pd.DataFrame
    """One such row: the last stage for as many steps as all stages have."""
    sentences: tuple[str, ...]
    """What the table comes to, what was assumed, what does not fit."""
    seconds: float
    """Training and evaluations of the stacked run."""
    scratch_seconds: float
    flops: int
    """Of training, stacked."""
    memory: int
    """Bytes of the stage that needs most."""
    saving: float
    """Share of the time from scratch that stacking saves; negative where it costs."""
    cost: float | None
    """USD of the stacked run on all devices; None without a price."""
    scratch_cost: float | None

    def text(self) -> str:
        """The table of stages, stacked and from scratch, and the sentences."""
        sums = self.stages[["steps", "flops", "training_seconds", "evaluation_seconds"]].sum()
        rows = pd.concat([self.stages, sums.to_frame().T, self.scratch], ignore_index=True)
        depths = [*self.stages["depth"], "stacked", f"scratch {self.scratch['depth'][0]}"]
        table = pd.DataFrame(
            {
                "depth": [str(depth) for depth in depths],
                "parameters": rows["parameters"] / 1e6,
                "steps": rows["steps"],
                "FLOPs": rows["flops"],
                "micro-batch": rows["micro_batch"],
                "memory": rows["memory"] / GIB,
                "step": 1000.0 * rows["step_seconds"],
                "training": rows["training_seconds"].map(format_duration),
                "evaluation": rows["evaluation_seconds"].map(format_duration),
                "share": (self.stages["seconds"] / self.seconds).reindex(rows.index),
            }
        )
        formats = {"parameters": "{:,.1f} M", "steps": "{:,.0f}", "FLOPs": "{:.2e}"}
        formats |= {"micro-batch": "{:,.0f}", "memory": "{:.2f} GiB", "step": "{:,.0f} ms"}
        formats |= {"share": "{:.0%}"}
        return "\n".join([table_text(table, self.title, formats), "", *self.sentences])


def plan(
    recipe: Recipe,
    *,
    device: str = "here",
    budget: str | None = None,
    steps: int | None = None,
    corpus: str | Path | Corpus | None = None,
    vocab_size: int | None = None,
    mfu: float | None = None,
    price: float | None = None,
    devices: int = 1,
) -> Plan:
    """Predict time, FLOPs, memory and money of a run, and of the same steps from scratch.

    Training steps and evaluations are counted; start-up, autotuning, growth and checkpoints come
    on top.

    Args:
        recipe: from `load_recipe`.
        device: "here" trains some steps of every stage on this machine, on models thrown away
            afterwards. A name from `DEVICES` divides FLOPs by the published peak times `mfu`.
        budget: wall-clock time such as "30m" to scale the stages to, as `pretrain` does.
        steps: scale to this many steps instead.
        corpus: sizes the vocabulary and the evaluation, and is what "here" measures on.
        vocab_size: word pieces without a corpus; by default the paper's 32,768. Embedding and head
            cost as much as several layers.
        mfu: assumed share of a named device's peak, by default `ASSUMED_MFU`.
        price: USD an hour of one device.
        devices: how many of a named kind share every step, eight to a machine.

    Raises:
        UserError: an unknown device, a wrong field, a budget too short, too little memory here to
            measure in.

    Example:
        >>> import stackbert as sb
        >>> plan = sb.plan(sb.load_recipe("bert-base"), device="H200", price=3.0)
        >>> plan.cost < plan.scratch_cost
        True
    """
    _check_options(device, budget, steps, corpus, vocab_size, mfu, price, devices)
    named = None if device == "here" else find_device(device)
    seconds = None if budget is None else parse_duration(budget)
    recipe = recipe if steps is None else recipe.scaled(steps)
    vocabulary, source, training, validation = _batches(recipe, corpus, vocab_size)

    notes: list[str] = []
    with torch.random.fork_rng():  # measuring seeds dropout and draws matrices
        here = pick_device()
        precision = _precision(recipe, named, here)
        recipe = recipe.model_copy(update={"precision": precision})
        machine = named or this_machine(here, precision)
        works = [
            _work(recipe, index, vocabulary, training, validation, machine, devices)
            for index in range(len(recipe.stages))
        ]
        if named is None:
            recipe, timing = _measured(
                recipe, works, vocabulary, training, validation, machine, here, seconds, notes
            )
        else:
            mfu = ASSUMED_MFU if mfu is None else mfu
            reached = mfu * machine.rates[precision] * devices
            timing = autotune.Timing(
                tuple(work.step_flops / reached for work in works),
                tuple(work.evaluation_flops / reached for work in works),
            )
    micro_batches = [
        _micro_batch(recipe.stage(index).micro_batch, work, machine, devices)
        for index, work in enumerate(works)
    ]
    waiting = [
        _waiting(work, machine, devices, rows, computing, recipe.engine, notes)
        for work, rows, computing in zip(works, micro_batches, timing.step, strict=True)
    ]
    timing = replace(timing, step=tuple(map(sum, zip(timing.step, waiting, strict=True))))
    if seconds is not None:
        recipe = autotune.scaled_to(recipe, timing, seconds)
    stages, scratch = _tables(recipe, works, micro_batches, waiting, timing)

    total, from_scratch = float(stages["seconds"].sum()), float(scratch["seconds"].iloc[0])
    hourly = None if price is None else devices * price
    saving = 1.0 - total / from_scratch
    sentences = [
        f"Stacked {format_duration(total)}, from scratch at depth {works[-1].depth} "
        f"{format_duration(from_scratch)} for as many steps: stacking "
        + (f"saves {saving:.0%}." if saving >= 0 else f"costs {-saving:.0%} more.")
    ]
    if price is not None:
        ...
    return Plan(
        title=...
    )


@dataclass(frozen=True)
class _Work:
    """What one stage takes on any machine, whatever its number of steps."""

    depth: int
    rows: int
    sequence_length: int
    parameters: int
    step_flops: int
    evaluation_flops: int
    footprint: Footprint


def _check_options(
    device: str,
    budget: str | None,
    steps: int | None,
    corpus: object,
    vocab_size: int | None,
    mfu: float | None,
    price: float | None,
    devices: int,
) -> None:
    wrong = {
        "Give a budget or a number of steps, not both.": budget is not None and steps is not None,
        "Give a corpus, which has its own vocabulary, or the size of a vocabulary, not both.": (
            corpus is not None and vocab_size is not None
        ),
        "Steps are measured here, so there is no MFU to assume. Name a device.": (
            mfu is not None and device == "here"
        ),
        f"An MFU is a share of the peak, above 0 and at most 1, not {mfu}.": (
            mfu is not None and not 0.0 < mfu <= 1.0
        ),
        f"A price is a number of USD an hour, not {price}.": (
            price is not None and not (price >= 0.0 and math.isfinite(price))
        ),
        f"A plan needs at least one device, not {devices}.": devices < 1,
        "Steps on several devices cannot be measured here. Name a device (--device H100), or start "
        "a short run with torchrun.": devices > 1 and device == "here",
    }
    for sentence, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(sentence)


def _batches(
    recipe: Recipe, corpus: str | Path | Corpus | None, vocab_size: int | None
) -> tuple[Vocabulary, str, BatchPlan, Batch]:
    """Vocabulary and where it is from, training batches, and all rows of an evaluation."""
    if corpus is not None:
        opened = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
        training, validation = training_plan(recipe, opened), validation_batch(recipe, opened)
        return opened.vocabulary, "the corpus's", training, validation
    source = "the paper's, as none is given" if vocab_size is None else "as given"
    vocabulary = synthetic_vocabulary(PAPER_VOCABULARY if vocab_size is None else vocab_size)
    pairs, spec = recipe.objective.next_sentence, recipe.evaluation
    stages = [recipe.stage(index) for index in range(len(recipe.stages))]
    evaluation = replace(
        stages[-1],
        sequences=max(2, spec.sequences),
        sequence_length=recipe.longest_sequence,
        mask_rate=spec.mask_rate,
    )
    return (
        vocabulary,
        source,
        synthetic_plan(stages, vocabulary, next_sentence=pairs),
        synthetic_plan([evaluation], vocabulary, next_sentence=pairs).batch(0),
    )


def _precision(recipe: Recipe, named: Device | None, here: torch.device) -> Precision:
    if recipe.precision == "auto":
        if named is None:
            return fastest_precision(here)
        return "fp32" if named.is_cpu else "bf16"
    if named is not None and recipe.precision not in named.rates:
        raise UserError(
            f"'{recipe.name}' asks for {recipe.precision}, and no rate of '{named.name}' is known "
            "for it: most processors emulate it, many times slower than fp32. Plan with --set "
            "precision=fp32."
        )
    return recipe.precision


def _work(
    recipe: Recipe,
    index: int,
    vocabulary: Vocabulary,
    training: BatchPlan,
    validation: Batch,
    machine: Device,
    devices: int,
) -> _Work:
    stage = recipe.stage(index)
    if devices > 1 and machine.link is None:
        raise UserError(f"No link between devices of '{machine.name}' is known. Name a GPU.")
    if stage.sequences % devices:
        raise UserError(
            f"The stage of depth {stage.depth} has {stage.sequences} rows a step "
            f"(batch.sequences), which {devices} devices cannot share equally."
        )
    with torch.device("meta"):
        model = recipe_model(recipe, vocabulary, stage.depth)
    rows, masked = training.masked_rows(recipe.boundaries[index])
    evaluation_rows, evaluation_length = validation.input_ids_BS.shape
    step_flops = training_flops(
        model, rows=rows, sequence_length=stage.sequence_length, masked=masked
    )
    evaluation_flops = forward_flops(
        model,
        rows=evaluation_rows,
        sequence_length=evaluation_length,
        masked=validation.columns_BK.numel(),
    )
    parameters = parameter_count(model)

    def batch(rows: int) -> Batch:
        few = replace(stage, sequences=rows)
        pairs = recipe.objective.next_sentence
        return synthetic_plan([few], vocabulary, next_sentence=pairs).batch(0)

    precision: Precision = "fp32" if recipe.precision == "fp32" else "bf16"
    memory = footprint(
        model, recipe.optimizer, batch, precision=precision, is_cpu=machine.is_cpu
    )
    if recipe.engine == "fsdp":
        memory = memory.sharded(devices)
    return _Work(
        stage.depth,
        rows,
        stage.sequence_length,
        parameters,
        step_flops,
        evaluation_flops,
        memory,
    )


def _measured(
    recipe: Recipe,
    works: list[_Work],
    vocabulary: Vocabulary,
    training: BatchPlan,
    validation: Batch,
    machine: Device,
    here: torch.device,
    budget: float | None,
    notes: list[str],
) -> tuple[Recipe, autotune.Timing]:
    """The recipe as a run would tune it, and seconds of steps and evaluations on this machine.

    Raises:
        UserError: the models of all depths do not fit into memory at once.
    """
    models = {work.depth: work.footprint.total(0) for work in works}
    needed = sum(models.values()) + max(work.footprint.row for work in works)
    if needed > machine.memory:
        raise UserError(
            f"Measuring '{recipe.name}' here takes about {needed / GIB:.0f} GiB of memory, and "
            f"there are {machine.memory / GIB:.0f}. Name a device instead of 'here'."
        )
    keep_memory()
    (rate,) = machine.rates.values()
    share = min(1.0, LONGEST_TURN * rate / sum(work.step_flops for work in works))
    rows = [max(1, math.floor(share * work.rows)) for work in works]
    if share < 1.0:
        fewest = min(part / work.rows for part, work in zip(rows, works, strict=True))
        notes.append(
            f"Steps are so long here that they were timed on a part of their rows (down to "
            f"{fewest:.1%}) and scaled up, which overstates them."
        )
    else:
        recipe = autotune.autotune(
            recipe, vocabulary, training, device=here, seconds=budget
        ).recipe

    def batch(index: int, turn: int) -> Batch:
        first, end = recipe.boundaries[index : index + 2]
        return training.batch(min(first + turn, end - 1)).rows(0, rows[index])

    with explaining_out_of_memory():
        timing = autotune.measure(
            recipe, batch, validation, vocabulary, device=here, patience=MAX_TIMING_SECONDS
        )
    scaled = zip(timing.step, works, rows, strict=True)
    return recipe, replace(timing, step=tuple(s * work.rows / part for s, work, part in scaled))


def _micro_batch(
    asked: int | Literal["auto"], work: _Work, machine: Device, devices: int
) -> int:
    """Rows of a forward pass on each device: as asked, or as many as run well and fit."""
    kind = torch.device("cpu" if machine.is_cpu else "cuda")
    rows = rows_at_once(asked, work.rows // devices, work.sequence_length, kind)
    if asked == "auto":
        rows = max(1, min(rows, work.footprint.rows_within(USABLE * machine.memory)))
    return rows


def _waiting(
    work: _Work,
    machine: Device,
    devices: int,
    micro_batch: int,
    computing: float,
    engine: Engine,
    notes: list[str],
) -> float:
    """Seconds of a step in which devices wait for each other's gradients: an estimate.

    A ring moves 2·(N - 1)/N times the gradients' bytes (fp32) over each device's link (Patarasu and
    Yuan, 2009), while the backward pass of the last micro-batch, two thirds of its time, is still
    computed; the rest is waited for. FSDP gathers the weights twice and scatters the gradients
    once instead: half as much again.
    """
    if devices == 1 or machine.link is None:
        return 0.0
    link = machine.link if devices <= NODE else min(machine.link, machine.network)
    moved = (3 if engine == "fsdp" else 2) * (devices - 1) / devices * 4 * work.parameters
    seconds = moved / (LINK_EFFICIENCY * link)
    passes = math.ceil(work.rows / (devices * micro_batch))
    waiting = max(0.0, seconds - 2 / 3 * computing / passes)
    notes.append(
        f"Depth {work.depth}: {moved / 1e9:.2f} GB over each link a step, {1000 * seconds:.1f} ms "
        f"next to {1000 * computing:.1f} ms of computing; devices wait for {1000 * waiting:.1f} ms "
        f"({waiting / (computing + waiting):.0%} of the step)."
    )
    ...
    return waiting
