"""Measuring the reference table: seconds of every kind of step, all kinds in turn, repeatedly.

Each reading is taken in a process of its own with a run's threads, by as many processes at a time
as runs will train, so that what they take from each other is in the table.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stackbert.batches.batches import training_plan
from stackbert.comparison.processes import end_with_parent, environment, lifeline
from stackbert.comparison.reference import Reference, StepKind, step_kinds
from stackbert.comparison.variants import growths_of
from stackbert.corpus.store import open_corpus
from stackbert.errors import RunError, StackBertError, UserError
from stackbert.growth.grow import find_layers
from stackbert.machine import describe, keep_memory, pick_device, synchronise
from stackbert.model import parameter_count
from stackbert.pretraining.autotune import autotune, measure
from stackbert.pretraining.trainer import Trainer, recipe_model, rows_at_once, stage_flops
from stackbert.recipe import GrowthSpec, Recipe, ScheduleSpec, StageSpec
from stackbert.recipes import parse_recipe

ROUNDS = 3
"""Measuring processes one after the other, in each of the places that run side by side."""
PATIENCE = 8.0
"""Seconds that each may time steps, so that a short burst of load does not move the median."""


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
    """A reference table that covers every step and growth of some recipes, scratch's first.

    A process that meets a busy minute is slow with all kinds, so each one's readings are taken as
    shares of its own step of the last kind of scratch; the median of these shares counts. Rows of
    `known` stay, and new ones are brought to its speed. `seconds` of a run, where they are known,
    decide whether measuring micro-batches and compilation pays. RunError if a process fails.
    """
    kinds = sorted({kind for recipe in recipes for kind in step_kinds(recipe)})
    pairs = list(dict.fromkeys(pair for recipe in recipes for pair in growths_of(recipe)))
    have = known.by_kind if known else {}
    if known and have.keys() >= set(kinds) and known.growth_seconds.keys() >= set(pairs):
        return known
    say("measuring seconds per step …")

    # `autotune` estimates a run's length by scratch's stages.
    scratch = recipes[0]
    lengths = {k: s.steps for k, s in zip(step_kinds(scratch), scratch.stages, strict=True)}
    sizes = {kind: row.micro_batch for kind, row in have.items()}
    changes: dict[str, Any] = {
        "stages": tuple(
            StageSpec(steps=lengths.get(kind, 1), micro_batch=sizes.get(kind), **kind._asdict())
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
    # A row for each process: seconds of every kind of step, then of every growth.
    rounds = [_ask("measure", request, threads, jobs) for _ in range(ROUNDS)]
    readings = pd.DataFrame([reading for answers in rounds for reading in answers])
    last = step_kinds(scratch)[-1]
    anchor = readings[kinds.index(last)]
    times = readings.div(anchor, axis="index")
    times *= have[last].seconds if last in have else anchor.median()
    middle = times.median()
    steps = pd.DataFrame(kinds, columns=list(StepKind._fields)).assign(
        micro_batch=[stage["micro_batch"] for stage in tuned["recipe"]["stages"]],
        flops=tuned["flops"],
        parameters=tuned["parameters"],
        seconds=middle,
        fastest=times.min(),
        slowest=times.max(),
        readings=len(times),
    )
    rows = steps.itertuples()
    say(", ".join(f"{1e3 * row.seconds:.0f} ms a step at depth {row.depth}" for row in rows))
    growths = pd.DataFrame(pairs, columns=["source_depth", "target_depth"])
    growths = growths.assign(seconds=middle[len(kinds) :].to_numpy())
    settings = {name: tuned["recipe"][name] for name in ("precision", "compile")}
    new = Reference(
        machine=tuned["machine"], threads=threads, steps=steps, growths=growths, **settings
    )
    return known.extended(new) if known else new


def _ask(what: str, request: dict[str, Any], threads: int, processes: int) -> list[Any]:
    command, answers = [sys.executable, "-m", __name__, what, json.dumps(request)], []
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    options = {"stdin": lifeline(), "env": environment(threads), "text": True, **pipes}
    asked = [subprocess.Popen(command, **options) for _ in range(processes)]
    try:
        for process in asked:
            out, err = process.communicate()
            last = (err if process.returncode else out).strip().rpartition("\n")[2]
            if process.returncode == UserError.exit_code:
                raise UserError(last)
            if process.returncode:
                raise RunError(f"Measuring seconds per step failed: {last}")
            answers.append(json.loads(last))
    finally:  # an interrupt ends them, too
        for process in asked:
            process.kill()
            process.wait()
    return answers


def _answer(what: str, request: dict[str, Any]) -> Any:  # noqa: ANN401 (JSON)
    recipe = parse_recipe(request["recipe"], "the measured recipe")
    keep_memory()
    corpus, device = open_corpus(request["corpus"]), pick_device()
    if what == "autotune":
        tuned, _ = autotune(recipe, corpus, device=device, seconds=request["seconds"])
        chosen, parameters = tuned.model_dump(mode="json"), []
        for index, spec in enumerate(chosen["stages"]):
            stage = tuned.stage(index)
            spec["micro_batch"] = rows_at_once(
                stage.micro_batch, stage.sequences, stage.sequence_length, device
            )
            with torch.device("meta"):
                model = recipe_model(tuned, corpus.vocabulary, stage.depth)
            parameters.append(parameter_count(find_layers(model)[1]))
        counts = {"flops": stage_flops(tuned, corpus), "parameters": parameters}
        return {"recipe": chosen, "machine": describe(device), **counts}

    timing = measure(recipe, corpus, device=device, patience=PATIENCE)
    plan, growths = training_plan(recipe, corpus), []
    depths = [stage.depth for stage in recipe.stages]
    for source, target in request["pairs"]:
        index = depths.index(source)
        trainer = Trainer(recipe_model(recipe, corpus.vocabulary, source), recipe, device=device)
        trainer.micro_batch = recipe.stage(index).micro_batch
        first = plan.batch(recipe.boundaries[index])
        trainer.step(0, first, 1.0)  # so that the optimizer has a state
        synchronise(device)
        start = time.perf_counter()
        trainer.grow(target, 1)
        synchronise(device)
        growths.append(time.perf_counter() - start)
    return [*timing.step, *growths]


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        sys.stdout.write(json.dumps(_answer(sys.argv[1], json.loads(sys.argv[2]))))
    except StackBertError as error:
        sys.stderr.write(str(error))
        sys.exit(error.exit_code)
