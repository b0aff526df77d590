"""`plan`: what a recipe's run takes in time, memory and money, before it is paid for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from stackbert.batches.batches import data_sentences, training_plan, validation_batch
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.corpus.tokenizer import VOCAB_SIZE
from stackbert.devices import GIB, NODE, Device, find_device, this_machine
from stackbert.errors import UserError
from stackbert.machine import Precision, fastest_precision, gpu_settings, keep_memory, pick_device
from stackbert.model import forward_flops, parameter_count
from stackbert.pretraining import autotune as tuning
from stackbert.pretraining.memory import footprint, refuse_beyond_memory
from stackbert.pretraining.synthetic import SyntheticCorpus
from stackbert.pretraining.trainer import recipe_model, rows_at_once, stage_flops
from stackbert.recipe import Recipe
from stackbert.tables import Tables, table_text
from stackbert.units import format_duration, parse_duration

ASSUMED_MFU = 0.4  # a target: we aim at 0.35 for 12 × 768 and at 0.45 for 24 × 1024
USABLE = 0.9  # of a device's memory; the rest goes to the driver's context and to gaps
LINK_EFFICIENCY = 0.7  # of a link's published rate, by an all-reduce of large tensors; assumed
MAX_TIMING_SECONDS = 30.0  # so that a short burst of load does not move the median
# Seconds of matrix products in a step of every stage; beyond, fewer rows are timed and scaled up.
LONGEST_TURN = 5.0


@dataclass(frozen=True)
class Plan(Tables):
    """A run before it is started, and the same number of steps from scratch."""

    title: str
    recipe: Recipe  # over its final steps, and autotuned if it was measured here
    table: pd.DataFrame
    """Rows "stage 1" …, "stacked" (all of them together) and "scratch" (the last stage for as many
    steps). `memory` is in bytes at the peak, `waiting_seconds` (for other devices) are of a step,
    `evaluation_seconds` of all evaluations, `cost` is USD on all devices."""
    sentences: tuple[str, ...]  # what it comes to, what was assumed, what does not fit

    @property
    def saving(self) -> float:
        """Share of the time from scratch that stacking saves; negative where it costs."""
        return float(1.0 - self.table.seconds["stacked"] / self.table.seconds["scratch"])

    def tables(self) -> dict[str, pd.DataFrame]:
        """The table, each row with its name."""
        return {"plan": self.table.rename_axis("part").reset_index()}

    def text(self) -> str:
        """The table and the sentences."""
        table = self.table
        columns = {  # heading: (values, how they are written)
            "": (table.index.to_series(), "{}"),
            "depth": (table.depth, "{}"),
            "parameters": (table.parameters / 1e6, "{:,.1f} M"),
            "steps": (table.steps, "{:,.0f}"),
            "FLOPs": (table.flops, "{:.2e}"),
            "micro-batch": (table.micro_batch, "{:,.0f}"),
            "memory": (table.memory / GIB, "{:.2f} GiB"),
            "step": (1000.0 * table.step_seconds, "{:,.0f} ms"),
            "training": (table.training_seconds.map(format_duration), "{}"),
            "evaluation": (table.evaluation_seconds.map(format_duration), "{}"),
            "share": (table.seconds / table.seconds["stacked"], "{:.0%}"),
        }
        shown = pd.DataFrame({heading: values for heading, (values, _) in columns.items()})
        formats = {heading: form for heading, (_, form) in columns.items()}
        return "\n".join([table_text(shown, self.title, formats), "", *self.sentences])


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

    Args:
        device: "here" trains some steps of every stage on this machine, on models thrown away
            afterwards. A name from `DEVICES` divides FLOPs by the published peak times `mfu`.
        budget: wall-clock time such as "30m" to scale the stages to, as `pretrain` does.
        corpus: sizes the vocabulary and the evaluation, and is what "here" measures on.
        vocab_size: word pieces without a corpus; by default the paper's 32,768.
        mfu: assumed share of a named device's peak, by default `ASSUMED_MFU`.
        price: USD an hour of one device.
        devices: how many of a named kind share every step, eight to a machine.

    Raises:
        UserError: what cannot be planned, or too little memory here to measure in.
    """
    if budget is not None and steps is not None:
        raise UserError("Give a budget or a number of steps, not both.")
    if corpus is not None and vocab_size is not None:
        raise UserError("Give a corpus, which has its own vocabulary, or a vocabulary's size.")
    named = None if device == "here" else find_device(device)
    if (named is None and mfu is not None) or (devices > 1 and not (named and named.link)):
        raise UserError(
            "Steps are measured here, and no link between CPUs is known. To assume an MFU or to "
            "plan for several devices, name a GPU (--device H100)."
        )
    seconds = None if budget is None else parse_duration(budget)
    recipe = recipe if steps is None else recipe.scaled(steps)
    if corpus is None:
        corpus = SyntheticCorpus(vocab_size or VOCAB_SIZE)
    opened = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    if not isinstance(opened, SyntheticCorpus):
        opened.verify()

    notes: list[str] = []
    here, asked = pick_device(), recipe.precision
    with gpu_settings(here):  # measuring seeds dropout and draws matrices
        usual = next(iter(named.rates)) if named else None
        precision = (usual or fastest_precision(here)) if asked == "auto" else asked
        if named and precision not in named.rates:
            raise UserError(
                f"Of {precision} on '{named.name}' no rate is known: most processors emulate it, "
                "many times slower than fp32. Plan with --set precision=fp32."
            )
        recipe = recipe.model_copy(update={"precision": precision})
        if named is None:
            refuse_beyond_memory(recipe, opened.vocabulary, here)
        machine = named or this_machine(here, precision)
        rate = machine.rates[precision]
        stages = _stages(recipe, opened, machine, precision, devices)
        if named is None:
            recipe, timing = _measured(recipe, stages, opened, machine, here, seconds, notes)
        else:
            mfu = ASSUMED_MFU if mfu is None else mfu
            reached = devices * mfu * rate
            step, evaluation = stages.step_flops / reached, stages.evaluation_flops / reached
            timing = tuning.Timing(tuple(step), tuple(evaluation))
    sizes = _micro_batches(recipe, stages, machine, devices, notes)
    stages["micro_batch"] = pd.Series(sizes, dtype=object)
    stages["memory"] = stages.fixed_memory + stages.micro_batch * stages.row_memory
    stages["waiting_seconds"] = _waiting(recipe, stages, timing.step, machine, devices)
    timing = replace(timing, step=tuple(timing.step + stages.waiting_seconds))
    if devices > 1:
        shares = ", ".join(f"{share:.0%}" for share in stages.waiting_seconds / timing.step)
        notes.append(f"Devices wait for each other's gradients for {shares} of a step.")
    recipe = recipe if seconds is None else tuning.scaled_to(recipe, timing, seconds)
    table = _table(recipe, stages, timing, math.nan if price is None else devices * price / 3600)

    name = machine.name if devices == 1 else f"{devices:,} × {machine.name}"
    how = "measured here" if mfu is None else f"at an assumed MFU of {mfu:g}"
    title = f"Plan of {recipe.name} on {name}, {precision}, {how}"
    notes += _sentences(table, rate, precision, mfu, price)
    words = opened.vocabulary.size
    notes.append(f"Vocabulary {words:,}. Start-up, tuning, growth and checkpoints come on top.")
    if not isinstance(opened, SyntheticCorpus):
        notes += data_sentences(recipe, opened)
    return Plan(title, recipe, table, tuple(notes))


def _stages(
    recipe: Recipe, corpus: Corpus, machine: Device, precision: Precision, devices: int
) -> pd.DataFrame:
    """What a step and an evaluation of each stage take, whatever the number of steps."""
    training, validation = training_plan(recipe, corpus), validation_batch(recipe, corpus)
    length, masked = recipe.longest_sequence, validation.columns_BK.numel()
    evaluation = {"rows": len(validation), "sequence_length": length, "masked": masked}
    works, flops = [], stage_flops(recipe, corpus)
    for index, first_step in enumerate(recipe.boundaries[:-1]):
        stage = recipe.stage(index)
        with torch.device("meta"):
            model = recipe_model(recipe, corpus.vocabulary, stage.depth)
        work = {
            "depth": stage.depth,
            "rows": stage.sequences,
            "sequence_length": stage.sequence_length,
            "parameters": parameter_count(model),
            "step_flops": flops[index],
            "evaluation_flops": forward_flops(model, **evaluation),
        }
        work["fixed_memory"], work["row_memory"] = footprint(
            model,
            recipe.optimizer,
            training.batch(first_step, 0, devices).rows(0, 1),
            precision=precision,
            is_cpu=machine.is_cpu,
            shards=devices if recipe.engine == "fsdp" else 1,
        )
        works.append(work)
    return pd.DataFrame(works, dtype=object)  # Python's integers: FLOPs may not fit into 64 bits


def _measured(
    recipe: Recipe,
    stages: pd.DataFrame,
    corpus: Corpus,
    machine: Device,
    here: torch.device,
    budget: float | None,
    notes: list[str],
) -> tuple[Recipe, tuning.Timing]:
    """The recipe as a run would tune it, and seconds of steps and evaluations on this machine."""
    models = stages.drop_duplicates("depth").fixed_memory
    # A CPU times all depths in turn.
    needed = (models.sum() if machine.is_cpu else models.max()) + stages.row_memory.max()
    if needed > USABLE * machine.memory:
        raise UserError(
            f"Measuring '{recipe.name}' here takes about {needed / GIB:.0f} GiB of memory, and "
            f"there are {machine.memory / GIB:.0f}. Name a device instead of 'here'."
        )
    keep_memory()
    (rate,) = machine.rates.values()
    share = min(1.0, LONGEST_TURN * rate / stages.step_flops.sum())
    if share < 1.0:
        notes.append(
            "Steps are so long here that they were timed on a part of their rows (about "
            f"{share:.1%}) and scaled up, which overstates them."
        )
    else:
        recipe, _ = tuning.autotune(recipe, corpus, device=here, seconds=budget)
    patience = MAX_TIMING_SECONDS
    return recipe, tuning.measure(recipe, corpus, device=here, share=share, patience=patience)


def _micro_batches(
    recipe: Recipe, stages: pd.DataFrame, machine: Device, devices: int, notes: list[str]
) -> list[int]:
    """Rows of a forward pass on each device: as asked, or as many as run well and fit."""
    usable = USABLE * machine.memory
    kind = torch.device("cpu" if machine.is_cpu else "cuda")
    sizes = []
    for index, work in stages.iterrows():
        asked = recipe.stage(index).micro_batch
        rows = rows_at_once(asked, work.rows // devices, work.sequence_length, kind)
        fitting = max(0, int((usable - work.fixed_memory) / work.row_memory))
        if asked == "auto":
            rows = max(1, min(rows, fitting))
        sizes.append(rows)
        if rows > fitting:
            needed = work.fixed_memory + rows * work.row_memory
            notes.append(
                f"Depth {work.depth} does not fit on {machine.name}: {rows} rows need about "
                f"{needed / GIB:.1f} GiB of {usable / GIB:.1f}; {fitting} fit (batch.micro_batch)."
            )
    return sizes


def _waiting(
    recipe: Recipe, stages: pd.DataFrame, computing: Sequence[float], machine: Device, devices: int
) -> pd.Series:
    """Seconds of each stage's step in which devices wait for each other's gradients; an estimate.

    A ring moves 2·(N - 1)/N times the gradients' bytes (fp32) over each link (Patarasu and Yuan,
    2009) during the backward pass of the last micro-batch, two thirds of its time. FSDP gathers the
    weights twice and scatters the gradients once: half as much again.
    """
    if devices == 1:
        return 0.0 * stages.rows
    link = machine.link if devices <= NODE else min(machine.link, machine.network)
    rounds = 3 if recipe.engine == "fsdp" else 2
    moved = rounds * (devices - 1) / devices * 4 * stages.parameters
    passes = (stages.rows / (devices * stages.micro_batch)).map(math.ceil)
    hidden = 2 / 3 * pd.Series(computing) / passes
    return (moved / (LINK_EFFICIENCY * link) - hidden).astype(float).clip(lower=0.0)


def _table(recipe: Recipe, stages: pd.DataFrame, timing: tuning.Timing, usd: float) -> pd.DataFrame:
    """`Plan.table`; `usd` are of a second on all devices."""
    alone = recipe.stages[-1].model_copy(update={"steps": recipe.total_steps})
    scratch = recipe.model_copy(update={"stages": (alone,)})
    table = stages.assign(step_seconds=timing.step, evaluation_seconds=timing.evaluation)
    table = pd.concat([table, table.tail(1)], ignore_index=True)
    table["steps"] = pd.Series([stage.steps for stage in (*recipe.stages, alone)], dtype=object)
    evaluations = tuning.evaluations_by_stage
    table["evaluations"] = [*evaluations(recipe), *evaluations(scratch)]
    table["tokens"] = table.steps * table.rows * table.sequence_length
    table["flops"] = table.steps * table.step_flops
    table["training_seconds"] = table.steps * table.step_seconds
    table["evaluation_seconds"] *= table.evaluations
    sums = ["steps", "tokens", "flops", "training_seconds", "evaluations", "evaluation_seconds"]
    stacked = table[sums].iloc[:-1].sum().to_frame().T.assign(memory=stages.memory.max())
    table = pd.concat([table.iloc[:-1], stacked, table.iloc[-1:]])
    table["seconds"] = table.training_seconds + table.evaluation_seconds
    table["cost"] = table.seconds * usd
    return table.set_axis([*(f"stage {i + 1}" for i in stages.index), "stacked", "scratch"])


def _sentences(
    table: pd.DataFrame, rate: float, precision: Precision, mfu: float | None, price: float | None
) -> list[str]:
    stacked, scratch = table.loc["stacked"], table.loc["scratch"]
    saving = 1.0 - stacked.seconds / scratch.seconds
    saves = f"saves {saving:.0%}" if saving >= 0 else f"costs {-saving:.0%} more"
    said = [
        f"Stacked {format_duration(stacked.seconds)}, from scratch at depth {scratch.depth} "
        f"{format_duration(scratch.seconds)} for as many steps: stacking {saves}."
    ]
    if price is not None:
        said.append(
            f"At {price:,.2f} USD an hour and device: {stacked.cost:,.2f} USD stacked, "
            f"{scratch.cost:,.2f} USD from scratch."
        )
    speed = f"{rate / 1e12:.3g} TFLOP/s in {precision}"
    if mfu is not None:
        return [*said, f"Peak {speed} as published; the MFU is a target, not measured (--mfu)."]
    shares = (table.flops / table.training_seconds / rate).iloc[:-2]
    reached = ", ".join(f"{share:.0%}" for share in shares)
    return [*said, f"Matrix products run at {speed}; steps reach {reached} of it."]
