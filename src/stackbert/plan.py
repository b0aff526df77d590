"""`plan`: what a recipe's run takes in time, memory and money, before it is paid for."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stackbert.batches.batches import Batch, BatchPlan, training_plan, validation_batch
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.corpus.tokenizer import Vocabulary
from stackbert.errors import UserError
from stackbert.machine import (
    Precision,
    describe,
    explaining_out_of_memory,
    fastest_precision,
    keep_memory,
    matrix_rate,
    pick_device,
)
from stackbert.model import forward_flops, parameter_count, training_flops
from stackbert.pretraining.autotune import (
    Timing,
    autotune,
    evaluations_by_stage,
    measure,
    scaled_to,
)
from stackbert.pretraining.memory import Footprint, footprint
from stackbert.pretraining.synthetic import SyntheticStream, synthetic_vocabulary
from stackbert.pretraining.trainer import recipe_model, rows_at_once
from stackbert.recipe import Recipe, Stage
from stackbert.tables import table_text
from stackbert.units import format_duration, parse_duration

GIB = 2**30
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
"""Seconds of matrix products in one step of every stage, of which seven turns are timed; real steps
take two or three times as long. Beyond, steps are timed on fewer rows and scaled up."""


@dataclass(frozen=True)
class Device:
    """What a plan needs to know of a machine."""

    name: str
    memory: int
    """Bytes."""
    rates: Mapping[Precision, float]
    """Matrix products, in FLOP/s: dense peaks of the data sheet, or as measured."""
    is_cpu: bool = False
    link: float = math.nan
    """Bytes a second, each way, to the seven other devices of its machine."""
    network: float = math.nan
    """The same to other machines: the device's share of its machine's network."""


def _gpu(name: str, gib: int, bf16: float, fp32: float, link: float, network: float) -> Device:
    rates: dict[Precision, float] = {"bf16": bf16 * 1e12, "fp32": fp32 * 1e12}
    return Device(name, gib * GIB, rates, link=link * 1e9, network=network * 1e9)


DEVICES = (
    #    name    GiB  TFLOP/s: bf16  fp32  GB/s: link  network
    _gpu("A100", 80, 312, 19.5, 300, 25),
    _gpu("H100", 80, 989, 67, 450, 50),
    _gpu("H200", 141, 989, 67, 450, 50),
    _gpu("L4", 24, 121, 30.3, 32, 1.6),
    _gpu("RTX 4090", 24, 165, 82.6, 32, 1.6),
    Device("cpu", 8 * GIB, {"fp32": 0.1e12}, is_cpu=True),
)
"""Published dense peaks, without sparsity: bf16 with fp32 sums on tensor cores (the 80 GB A100, the
SXM form of H100 and H200), and fp32 outside them, as torch multiplies fp32 by default. Links each
way: NVLink or 16 lanes of PCIe 4 within a machine of eight; between machines one network card of
200 (A100) or 400 Gbit/s a device, for the two others one of 100 Gbit/s a machine. "cpu" is a round
figure for two cores with AVX2: 2 × 16 multiply-adds at 1.6 GHz."""


@dataclass(frozen=True)
class Plan:
    """A run before it is started, and the same steps from scratch at the last stage's depth."""

    title: str
    recipe: Recipe
    """As it would run: over its final steps; planned for this machine, also autotuned."""
    stages: pd.DataFrame
    """A row a stage: depth, parameters, steps, tokens, flops (of training), micro_batch, memory
    (bytes at the peak), step_seconds, waiting_seconds (of a step, for other devices),
    training_seconds, evaluations, evaluation_seconds (of all), seconds."""
    scratch: pd.DataFrame
    """One such row: the last stage for as many steps as all stages have."""
    hourly_price: float | None
    """USD an hour of all devices."""
    sentences: tuple[str, ...]
    """What the table comes to, what was assumed, and what does not fit."""

    @property
    def seconds(self) -> float:
        """Training and evaluations of the stacked run."""
        return float(self.stages["seconds"].sum())

    @property
    def flops(self) -> int:
        """Training FLOPs of the stacked run."""
        return int(self.stages["flops"].sum())

    @property
    def memory(self) -> int:
        """The largest memory of any stage, in bytes."""
        return int(self.stages["memory"].max())

    @property
    def saving(self) -> float:
        """Share of the time from scratch that stacking saves; negative where it costs."""
        return 1.0 - self.seconds / float(self.scratch["seconds"].sum())

    @property
    def cost(self) -> float | None:
        """USD of the stacked run; None without a price."""
        return None if self.hourly_price is None else self.hourly_price * self.seconds / 3600.0

    def text(self) -> str:
        """The table of stages and the sentences."""
        total = self.stages[["steps", "flops", "training_seconds", "evaluation_seconds"]].sum()
        rows = pd.concat([self.stages, total.to_frame().T, self.scratch], ignore_index=True)
        names = [*map(str, self.stages["depth"]), "stacked", f"scratch {self.scratch['depth'][0]}"]
        table = pd.DataFrame(
            {
                "depth": names,
                "parameters": rows["parameters"] / 1e6,
                "steps": rows["steps"],
                "FLOPs": rows["flops"],
                "micro-batch": rows["micro_batch"],
                "memory": rows["memory"] / GIB,
                "step": 1000.0 * rows["step_seconds"],
                "training": rows["training_seconds"].map(format_duration),
                "evaluation": rows["evaluation_seconds"].map(format_duration),
                "share": self.stages["seconds"] / self.seconds,
            }
        )
        formats = {
            "parameters": "{:,.1f} M",
            "steps": "{:,.0f}",
            "FLOPs": "{:.2e}",
            "micro-batch": "{:,.0f}",
            "memory": "{:.2f} GiB",
            "step": "{:,.0f} ms",
            "share": "{:.0%}",
        }
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

    Training steps and evaluations are counted; start-up, autotuning, growth and checkpoints are
    not.

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
        >>> 0.2 < plan.saving < 0.5
        True
    """
    _check(device, budget, steps, corpus, vocab_size, mfu, price)
    named = None if device == "here" else _find_device(device)
    seconds = None if budget is None else parse_duration(budget)
    if steps is not None:
        recipe = recipe.scaled(steps)

    if corpus is not None:
        opened = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
        vocabulary, source = opened.vocabulary, "of the corpus"
        training, validation = training_plan(recipe, opened), validation_batch(recipe, opened)
    else:
        source = "the paper's, as none is given" if vocab_size is None else "as given"
        vocabulary = synthetic_vocabulary(vocab_size or PAPER_VOCABULARY)
        training, validation = _synthetic_batches(recipe, vocabulary)

    with torch.random.fork_rng():  # measuring seeds dropout and draws matrices
        here = pick_device()
        precision = _precision(recipe, named, here)
        recipe = recipe.model_copy(update={"precision": precision})
        machine = named or _this_machine(here, precision)
        rate = machine.rates[precision]
        works = [
            _work(recipe, index, vocabulary, training, validation, machine, devices)
            for index in range(len(recipe.stages))
        ]
        notes = []
        if named is None:
            _check_memory(recipe, works, machine)
            recipe, timing, notes = _measured(
                recipe, works, vocabulary, training, validation, here, rate, seconds
            )
        else:
            _check_devices(works, named, devices)
            mfu = ASSUMED_MFU if mfu is None else mfu
            reached = devices * mfu * rate
            timing = Timing(
                tuple(work.step_flops / reached for work in works),
                tuple(work.evaluation_flops / reached for work in works),
            )

    usable = USABLE * machine.memory
    micro_batches, waiting = [], []
    for index, (work, computing) in enumerate(zip(works, timing.step, strict=True)):
        rows = rows_at_once(
            recipe.stage(index).micro_batch,
            work.stage.sequences // devices,
            work.stage.sequence_length,
            torch.device("cpu" if machine.is_cpu else "cuda"),
        )
        if recipe.stage(index).micro_batch == "auto":
            rows = max(1, min(rows, work.footprint.rows_within(usable)))
        micro_batches.append(rows)
        waiting.append(0.0)
        if devices > 1:
            waiting[-1], note = _waiting(work, machine, devices, rows, computing, recipe.engine)
            notes.append(note)
    step_seconds = tuple(map(sum, zip(timing.step, waiting, strict=True)))
    if seconds is not None:
        recipe = scaled_to(recipe, Timing(step_seconds, timing.evaluation), seconds)

    def row(index: int, steps: int, evaluations: int) -> dict[str, Any]:
        work = works[index]
        training, evaluating = steps * step_seconds[index], evaluations * timing.evaluation[index]
        return {
            "depth": work.stage.depth,
            "parameters": work.parameters,
            "steps": steps,
            "tokens": steps * work.stage.sequences * work.stage.sequence_length,
            "flops": steps * work.step_flops,
            "micro_batch": micro_batches[index],
            "memory": work.footprint.total(micro_batches[index]),
            "step_seconds": step_seconds[index],
            "waiting_seconds": waiting[index],
            "training_seconds": training,
            "evaluations": evaluations,
            "evaluation_seconds": evaluating,
            "seconds": training + evaluating,
        }

    counts = evaluations_by_stage(recipe)
    rows = [row(i, stage.steps, counts[i]) for i, stage in enumerate(recipe.stages)]
    alone = recipe.stages[-1].model_copy(update={"steps": recipe.total_steps})
    (count,) = evaluations_by_stage(recipe.model_copy(update={"stages": (alone,)}))
    scratch = row(len(works) - 1, recipe.total_steps, count)
