"""Measuring the reference table: seconds of every kind of step, all kinds in turn, repeatedly.

Each reading is taken in a process of its own with the threads that the runs will have, by as many
processes at a time as runs will train, so that what they take from each other is in the table.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stackbert.batches.batches import Batch, training_plan, validation_batch
from stackbert.comparison.processes import environment
from stackbert.comparison.reference import Reference, StepKind, step_kinds
from stackbert.comparison.variants import growths_of
from stackbert.corpus.store import open_corpus
from stackbert.errors import RunError, StackBertError, UserError
from stackbert.machine import describe, keep_memory, pick_device, synchronise, working_precision
from stackbert.pretraining.autotune import autotune, measure
from stackbert.pretraining.optimizers import step_flops
from stackbert.pretraining.trainer import Trainer, recipe_model, rows_at_once
from stackbert.recipe import GrowthSpec, Recipe, ScheduleSpec, StageSpec
from stackbert.recipes import parse_recipe

ROUNDS = 3
"""Measuring processes one after the other, in each of the places that run side by side."""
PATIENCE = 8.0
"""Keep timing steps for up to 8 s in each process, so that a short burst of load does not move the
median."""


def calibrate(
    known: Reference | None,
    recipes: Sequence[Recipe],
    corpus: Path,
    *,
    jobs: int,
    threads: int,
    seconds: float | None,
    say: Callable[[str], None],
) -> Reference:
    """A reference table that covers every step and growth of some recipes.

    Args:
        known: measured earlier; its rows stay, and new ones are brought to their speed.
        recipes: of all variants, scratch's first; its length decides whether measuring
            micro-batches and compilation pays, unless `seconds` (of each run) does.
        corpus: folder; steps are timed on its batches.
        jobs: runs side by side.
        threads: of a run.
        seconds: the budget, if it is a time.
        say: hears what is measured.

    Raises:
        UserError: a model that transformers cannot build.
        RunError: a measuring process failed.
    """
    have = known.by_kind if known else {}
    kinds = sorted({kind for recipe in recipes for kind in step_kinds(recipe)})
    pairs = list(dict.fromkeys(pair for recipe in recipes for pair in growths_of(recipe)))
    if known and have.keys() >= set(kinds) and known.growth_seconds.keys() >= set(pairs):
        return known
    say("measuring seconds per step …")

    scratch = recipes[0]
    steps = {k: s.steps for k, s in zip(step_kinds(scratch), scratch.stages, strict=True)}
    changes: dict[str, Any] = {
        "stages": tuple(
            StageSpec(
                steps=steps.get(kind, 1),
                micro_batch=have[kind].micro_batch if kind in have else None,
                **kind._asdict(),
            )
            for kind in kinds
        ),
        # Fresh layers reach any depth, in about the time of copies; a constant rate has no warm-up
        # that could be too long.
        "growth": GrowthSpec(operator="random"),
        "schedule": ScheduleSpec(name="constant"),
    }
    if known:
        changes |= {"precision": known.precision, "compile": known.compile}
    recipe = scratch.model_copy(update=changes).model_dump(mode="json")
    request = {"recipe": recipe, "corpus": str(corpus), "seconds": seconds, "pairs": pairs}
    (tuned,) = _ask("autotune", request, threads, 1)
    request["recipe"] = tuned["recipe"]
    answers = [answer for _ in range(ROUNDS) for answer in _ask("measure", request, threads, jobs)]

    readings = pd.DataFrame([answer["steps"] for answer in answers])
    growing = pd.DataFrame([answer["growths"] for answer in answers])
    reference = Reference(
        machine=tuned["machine"],
        threads=threads,
        precision=tuned["recipe"]["precision"],
        compile=tuned["recipe"]["compile"],
        steps=pd.DataFrame(kinds, columns=list(StepKind._fields)).assign(
            micro_batch=[stage["micro_batch"] for stage in tuned["recipe"]["stages"]],
            flops=tuned["flops"],
            seconds=readings.median(),
            fastest=readings.min(),
            slowest=readings.max(),
            readings=len(readings),
        ),
        growths=pd.DataFrame(pairs, columns=["source_depth", "target_depth"]).assign(
            seconds=growing.median()
        ),
    )
    rows = reference.steps.itertuples()
    pace = ", ".join(f"{1000 * row.seconds:.0f} ms at depth {row.depth}" for row in rows)
    say(f"a step takes {pace}")
    return known.extended(reference, step_kinds(scratch)[-1]) if known else reference


def _ask(what: str, request: dict[str, Any], threads: int, processes: int) -> list[dict[str, Any]]:
    """The answers of measuring processes that run at the same time."""
    command = [sys.executable, "-m", __name__, what, json.dumps(request)]

    def ask(_: int) -> dict[str, Any]:
        done = subprocess.run(command, capture_output=True, text=True, env=environment(threads))
        last = (done.stderr if done.returncode else done.stdout).strip().rpartition("\n")[2]
        if done.returncode == UserError.exit_code:
            raise UserError(last)
        if done.returncode:
            raise RunError(f"Measuring seconds per step failed: {last}")
        answer: dict[str, Any] = json.loads(last)
        return answer

    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(ask, range(processes)))


def _answer(what: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a measuring process finds out."""
    recipe = parse_recipe(request["recipe"], "the measured recipe")
    keep_memory()
    corpus, device = open_corpus(request["corpus"]), pick_device()
    vocabulary, plan = corpus.vocabulary, training_plan(recipe, corpus)
    if what == "autotune":
        tuned = autotune(recipe, vocabulary, plan, device=device, seconds=request["seconds"]).recipe
        stages, flops = [], []
        for index, spec in enumerate(tuned.stages):
            stage = tuned.stage(index)
            length = stage.sequence_length
            at_once = rows_at_once(stage.micro_batch, stage.sequences, length, device)
            stages.append(spec.model_copy(update={"micro_batch": at_once}))
            rows, masked = plan.masked_rows(tuned.boundaries[index])
            with torch.device("meta"):
                model = recipe_model(tuned, vocabulary, stage.depth)
            shape = {"rows": rows, "sequence_length": length, "masked": masked}
            flops.append(step_flops(model, tuned.optimizer, **shape))
        tuned = tuned.model_copy(update={"stages": tuple(stages)})
        found = {"recipe": tuned.model_dump(mode="json"), "flops": flops}
        return {**found, "machine": describe(device)}

    def batch(index: int, turn: int) -> Batch:
        return plan.batch(recipe.boundaries[index] + min(turn, recipe.stages[index].steps - 1))

    validation = validation_batch(recipe, corpus)
    timing = measure(recipe, batch, validation, vocabulary, device=device, patience=PATIENCE)
    growths = []
    depths = [stage.depth for stage in recipe.stages]
    for source, target in request["pairs"]:
        index = depths.index(source)
        trainer = Trainer(
            recipe_model(recipe, vocabulary, source),
            recipe.optimizer,
            device=device,
            precision=working_precision(recipe),
            micro_batch=recipe.stage(index).micro_batch,
            seed=0,
        )
        trainer.step(0, batch(index, 0), 1.0)  # so that the optimizer has a state
        synchronise(device)
        start = time.perf_counter()
        trainer.grow(target, recipe.growth, 1)
        synchronise(device)
        growths.append(time.perf_counter() - start)
    return {"steps": timing.step, "growths": growths}


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(_answer(sys.argv[1], json.loads(sys.argv[2]))))
    except StackBertError as error:
        sys.stderr.write(str(error))
        sys.exit(error.exit_code)
