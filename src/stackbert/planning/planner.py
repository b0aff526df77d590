"""`plan`: what a recipe's run would take in time, memory and money, before it is paid for."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from stackbert.corpus.store import Corpus, open_corpus
from stackbert.errors import UserError
from stackbert.planning.devices import GIB, HERE, Device, find_device, this_machine
from stackbert.planning.exchange import check_devices, exchange, exchange_notes
from stackbert.planning.pace import measured, predicted
from stackbert.planning.rehearsal import PAPER_VOCABULARY, stand_in_vocabulary
from stackbert.planning.result import Plan, StagePlan
from stackbert.planning.workload import Workload, evaluation_shape, workloads
from stackbert.pretraining.budget import Timing, evaluations_by_stage, parse_duration, scaled_to
from stackbert.pretraining.evaluation import evaluation_batch
from stackbert.pretraining.machine import Precision, fastest_precision, pick_device
from stackbert.pretraining.trainer import POSITIONS_AT_ONCE
from stackbert.recipe import Recipe
from stackbert.vocabulary import Vocabulary, load_vocabulary

ASSUMED_MFU = 0.4
"""Model FLOPs utilisation: the share of a data sheet's peak that training turns into arithmetic.
A target and not a measurement: between the 0.35 that we aim at for 12 × 768 and the 0.45 for
24 × 1024. A shallow or narrow model reaches less."""
_USABLE = 0.9
"""Share of a device's memory for training; the rest goes to the driver's context and to gaps."""


def plan(
    recipe: Recipe,
    *,
    device: str = HERE,
    budget: str | None = None,
    steps: int | None = None,
    corpus: str | Path | Corpus | None = None,
    vocab_size: int | None = None,
    mfu: float | None = None,
    price: float | None = None,
    devices: int = 1,
) -> Plan:
    """Predict time, FLOPs, memory and money of a run, and of the same run from scratch.

    Counted are training steps and evaluations. Start-up, tuning, growth and checkpoints come on
    top.

    Args:
        recipe: from `load_recipe`.
        device: "here" trains some steps of every stage on this machine, on models thrown away
            after; a name of the table (A100, H100, H200, L4, RTX 4090, cpu) divides FLOPs by
            the device's published peak times `mfu`.
        budget: wall-clock time such as "30m" to scale the stages to, as `pretrain` does.
        steps: scale to this many steps instead.
        corpus: sizes the vocabulary and the evaluation, and is what "here" measures on.
        vocab_size: word pieces without a corpus; by default the paper's 32,768. The embedding
            and the head over the vocabulary are as costly as some layers.
        mfu: assumed share of the peak, for a named device. By default 0.4, which is a target and
            not a measurement: between the 0.35 we aim at for 12 × 768 and the 0.45 for 24 × 1024.
        price: USD an hour of the device.
        devices: how many share every step, of a named kind, eight to a machine; see
            docs/scaling.md for what is assumed.

    Returns:
        The plan, stage by stage.

    Raises:
        UserError: an unknown device, a field that is wrong, a budget too short, too little memory
            here to measure in.

    Example:
        >>> import stackbert as sb
        >>> plan = sb.plan(sb.load_recipe("bert-base"), device="H200", price=3.0)
        >>> plan.cost < plan.scratch_cost
        True
    """
    _check(device, budget, steps, corpus, vocab_size, mfu, price)
    named = None if device == HERE else find_device(device)
    seconds = None if budget is None else parse_duration(budget)
    vocabulary, opened, source = _vocabulary(corpus, vocab_size)
    if steps is not None:
        recipe = recipe.scaled(steps)
    evaluation = evaluation_shape(recipe)
    if opened is not None:
        rows = len(evaluation_batch(recipe, opened, vocabulary).input_ids)
        evaluation = dataclasses.replace(evaluation, rows=rows)
    notes: tuple[str, ...] = ()
    here = pick_device()
    with torch.random.fork_rng():  # measuring seeds dropout and draws matrices
        precision = _precision(recipe, named, here)
        recipe = recipe.model_copy(update={"precision": precision})
        machine = named or this_machine(here, precision)
        loads = workloads(
            recipe, vocabulary, evaluation, precision=precision, is_cpu=machine.is_cpu
        )
        check_devices(loads, named, devices)
        if recipe.engine == "fsdp":
            loads = tuple(
                dataclasses.replace(load, footprint=load.footprint.cut(devices)) for load in loads
            )
        if named is not None:
            mfu = ASSUMED_MFU if mfu is None else mfu
            timing = predicted(loads, devices * mfu * machine.rates[precision])
        else:
            found = measured(
                recipe,
                loads,
                vocabulary,
                opened,
                evaluation,
                machine=machine,
                device=here,
                budget=seconds,
            )
            recipe, timing, notes = found.recipe, found.timing, found.notes
    micro_batches = [
        _micro_batch(recipe.resolved_stage(index).micro_batch, load, machine, devices)
        for index, load in enumerate(loads)
    ]
    exchanges = [
        exchange(load, machine, devices, micro_batch=rows, compute=compute, engine=recipe.engine)
        for load, rows, compute in zip(loads, micro_batches, timing.step, strict=True)
    ]
    notes = (*notes, *exchange_notes(loads, exchanges, list(timing.step), devices))
    waited = [each.waited for each in exchanges]
    steps_taken = tuple(a + b for a, b in zip(timing.step, waited, strict=True))
    timing = dataclasses.replace(timing, step=steps_taken)
    if seconds is not None:
        recipe = scaled_to(recipe, timing, seconds)
    stages, scratch = _stages(recipe, loads, timing, micro_batches, waited)
    return Plan(
        recipe=recipe,
        device=machine,
        precision=precision,
        mfu=mfu,
        vocabulary_size=vocabulary.size,
        vocabulary_source=source,
        price=price,
        stages=stages,
        scratch=scratch,
        devices=devices,
        notes=(*notes, *_memory_notes(stages, loads, machine)),
    )


def _check(
    device: str,
    budget: str | None,
    steps: int | None,
    corpus: object,
    vocab_size: int | None,
    mfu: float | None,
    price: float | None,
) -> None:
    if budget is not None and steps is not None:
        raise UserError("Give a budget or a number of steps, not both.")
    if corpus is not None and vocab_size is not None:
        raise UserError("Give a corpus, which has its vocabulary, or a vocabulary's size.")
    if mfu is not None and device == HERE:
        raise UserError("Steps are measured here, so there is no MFU to assume. Name a device.")
    if mfu is not None and not 0.0 < mfu <= 1.0:
        raise UserError(f"An MFU is a share of the peak, above 0 and at most 1, not {mfu}.")
    if price is not None and not (price >= 0.0 and math.isfinite(price)):
        raise UserError(f"A price is a number of USD an hour, not {price}.")


def _vocabulary(
    corpus: str | Path | Corpus | None, vocab_size: int | None
) -> tuple[Vocabulary, Corpus | None, str]:
    if corpus is not None:
        opened = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
        return load_vocabulary(opened), opened, "the corpus'"
    if vocab_size is not None:
        return stand_in_vocabulary(vocab_size), None, "as given"
    return stand_in_vocabulary(PAPER_VOCABULARY), None, "the paper's, as none is given"


def _precision(recipe: Recipe, named: Device | None, here: torch.device) -> Precision:
    if recipe.precision == "auto":
        if named is None:
            return fastest_precision(here)
        return "fp32" if named.is_cpu else "bf16"
    if named is not None and recipe.precision not in named.rates:
        raise UserError(
            f"'{recipe.name}' asks for {recipe.precision}, and the table has no such rate for "
            f"'{named.name}': processors commonly emulate it, many times slower than fp32. Plan "
            f"with --set precision=fp32."
        )
    return recipe.precision


def _stages(
    recipe: Recipe,
    loads: Sequence[Workload],
    timing: Timing,
    micro_batches: Sequence[int],
    waited: Sequence[float],
) -> tuple[tuple[StagePlan, ...], StagePlan]:
    """The stages of a run, and its like from scratch."""

    def staged(index: int, steps: int, evaluations: int) -> StagePlan:
        load, micro_batch = loads[index], micro_batches[index]
        return StagePlan(
            depth=load.depth,
            steps=steps,
            tokens=steps * load.shape.rows * load.shape.sequence_length,
            parameters=load.parameters,
            flops=steps * load.step_flops,
            micro_batch=micro_batch,
            memory=load.footprint.at(micro_batch),
            step_seconds=timing.step[index],
            evaluations=evaluations,
            evaluation_seconds=timing.evaluations[index],
            waiting_seconds=waited[index],
        )

    counts = evaluations_by_stage(recipe)
    stages = [staged(i, stage.steps, counts[i]) for i, stage in enumerate(recipe.stages)]
    alone = recipe.stages[-1].model_copy(update={"steps": recipe.total_steps})
    (count,) = evaluations_by_stage(recipe.model_copy(update={"stages": (alone,)}))
    return tuple(stages), staged(len(loads) - 1, recipe.total_steps, count)


def _micro_batch(
    asked: int | Literal["auto"], load: Workload, machine: Device, devices: int
) -> int:
    rows = load.shape.rows // devices
    if isinstance(asked, int):
        return min(rows, asked)
    positions = POSITIONS_AT_ONCE["cpu" if machine.is_cpu else "cuda"]
    fitting = load.footprint.rows_within(_USABLE * machine.memory)
    return max(1, min(rows, positions // load.shape.sequence_length, fitting))


def _memory_notes(
    stages: Sequence[StagePlan], loads: Sequence[Workload], machine: Device
) -> list[str]:
    usable = _USABLE * machine.memory
    notes = []
    for stage, load in zip(stages, loads, strict=True):
        if stage.memory.total <= usable:
            continue
        most = load.footprint.rows_within(usable)
        start = f"Depth {stage.depth} does not fit on {machine.name}:"
        if most == 0:
            notes.append(
                f"{start} even with one row a micro-batch it needs about "
                f"{load.footprint.at(1).total / GIB:.1f} GiB of the {usable / GIB:.1f} GiB that "
                f"training can use. Take a larger device, a smaller model or shorter rows."
            )
        else:
            notes.append(
                f"{start} micro-batches of {stage.micro_batch} rows need about "
                f"{stage.memory.total / GIB:.1f} GiB of the {usable / GIB:.1f} GiB that training "
                f"can use; {most} rows fit (batch.micro_batch)."
            )
    return notes
