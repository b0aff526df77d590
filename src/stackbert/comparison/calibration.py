"""Measuring the reference table: seconds of every kind of step, all kinds in turn, repeatedly.

Each reading is taken in a process of its own with the threads that the runs will have, and as many
at a time as runs will be, so that what runs slow down by each other is in the table.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stackbert.comparison.costs import GrowthCost, Reference, StepCost, StepKind, step_kinds
from stackbert.comparison.processes import environment
from stackbert.errors import RunError, StackBertError, UserError
from stackbert.recipe import Recipe, ScheduleSpec, Stage
from stackbert.recipe_files import parse_recipe
from stackbert.stored import stored

ROUNDS = 3
"""Processes one after the other, on each of the places that run side by side."""
_PATIENCE = 8.0
"""Seconds that the timed steps of a process may take, if the fewest turns take less."""
_STEPS = 1000
"""Of every stage of the measured recipe; more than are timed."""


@dataclass(frozen=True)
class Settings:
    """What every run of a comparison has in common and would otherwise settle by itself."""

    precision: str
    compile: bool
    micro_batches: tuple[tuple[StepKind, int], ...]
    """Rows a forward pass, by the kind of step."""

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with nothing left to be measured."""
        rows = dict(self.micro_batches)
        stages = tuple(
            stage.model_copy(update={"micro_batch": rows[kind]})
            for stage, kind in zip(recipe.stages, step_kinds(recipe), strict=True)
        )
        return recipe.model_copy(
            update={"precision": self.precision, "compile": self.compile, "stages": stages}
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Settings":
        """From `to_json`'s values."""
        return stored(cls, raw)


def settle_kinds(
    recipe: Recipe,
    kinds: Sequence[StepKind],
    longest: Recipe,
    corpus: Path,
    *,
    threads: int,
    seconds: float | None,
) -> tuple[Settings, dict[str, Any]]:
    """Settle precision, compilation and micro-batches, once for all runs.

    Args:
        recipe: whose model and optimiser.
        kinds: of step.
        longest: the run that takes the longest: long ones measure, short ones take what is usual.
        corpus: folder.
        threads: of a run.
        seconds: of that run, where its steps are not known yet.

    Returns:
        The settings, and the machine as a run describes it.
    """
    (answer,) = _ask(
        {
            "what": "settle",
            "recipe": _recipe_of_kinds(recipe, kinds).model_dump(mode="json"),
            "longest": longest.model_dump(mode="json"),
            "seconds": seconds,
        },
        corpus,
        threads=threads,
        jobs=1,
    )
    settled = parse_recipe(answer["recipe"], "the settled recipe")
    rows = tuple(zip(kinds, answer["rows"], strict=True))
    return Settings(settled.precision, settled.compile is True, rows), answer["machine"]


def calibrate(
    recipe: Recipe,
    kinds: Sequence[StepKind],
    growths: Sequence[tuple[int, int]],
    settings: Settings,
    corpus: Path,
    *,
    threads: int,
    jobs: int,
) -> Reference:
    """Measure the reference table on this machine.

    Args:
        recipe: whose model, optimiser and growth operator.
        kinds: of step.
        growths: (layers before, after).
        settings: of all runs.
        corpus: folder.
        threads: of a run.
        jobs: runs side by side.
    """
    request = {
        "what": "measure",
        "recipe": settings.apply(_recipe_of_kinds(recipe, kinds)).model_dump(mode="json"),
        "growth": recipe.growth.model_dump(mode="json"),
        "growths": [list(pair) for pair in growths],
        "patience": _PATIENCE,
    }
    answers = []
    for _ in range(ROUNDS):
        answers += _ask(request, corpus, threads=threads, jobs=jobs)
    steps = []
    for index, kind in enumerate(kinds):
        readings = tuple(answer["steps"][index] for answer in answers)
        flops = answers[0]["flops"][index]
        steps.append(StepCost(kind, statistics.median(readings), readings, flops))
    grown = tuple(
        GrowthCost(a, b, statistics.median(answer["growths"][index] for answer in answers))
        for index, (a, b) in enumerate(growths)
    )
    return Reference(tuple(steps), grown)


def extended(old: Reference, new: Reference, anchor: StepKind) -> Reference:
    """`old` with the rows of `new` that it lacks, brought to the speed at which `old` was taken.

    Args:
        old: keeps every row.
        new: measured later, when the machine may have been faster or slower.
        anchor: a kind that both have.
    """
    scale = old.step(anchor).seconds / new.step(anchor).seconds
    known = {row.kind for row in old.steps}
    pairs = {(row.source_depth, row.target_depth) for row in old.growths}
    steps = [
        StepCost(r.kind, r.seconds * scale, tuple(s * scale for s in r.readings), r.flops)
        for r in new.steps
        if r.kind not in known
    ]
    growths = [
        GrowthCost(r.source_depth, r.target_depth, r.seconds * scale)
        for r in new.growths
        if (r.source_depth, r.target_depth) not in pairs
    ]
    return Reference((*old.steps, *steps), (*old.growths, *growths))


def _recipe_of_kinds(recipe: Recipe, kinds: Sequence[StepKind]) -> Recipe:
    """A recipe with a stage for each kind; whose growth is never asked for."""
    stages = tuple(
        Stage(
            depth=k.depth,
            steps=_STEPS,
            sequences=k.sequences,
            sequence_length=k.sequence_length,
            mask_rate=k.mask_rate,
        )
        for k in kinds
    )
    # Fresh layers on top go from any depth to any larger one, which a validated recipe must.
    growth = recipe.growth.model_copy(update={"operator": "random"})
    # Nor may a warm-up be as long as the run; the rate plays no part in how long a step takes.
    schedule = ScheduleSpec(name="constant")
    return recipe.model_copy(update={"stages": stages, "growth": growth, "schedule": schedule})


def _ask(request: dict[str, Any], corpus: Path, *, threads: int, jobs: int) -> list[dict[str, Any]]:
    """Answers of as many measuring processes at once as there are jobs."""
    command = [sys.executable, "-m", "stackbert.comparison.calibration"]
    text = json.dumps({**request, "corpus": str(corpus)})
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(threads),
        )
        for _ in range(jobs)
    ]
    try:
        for process in processes:  # all start before any is waited for
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # it died, and is asked why below
                    process.stdin.write(text)
                    process.stdin.close()
                process.stdin = None
        answers = []
        for process in processes:
            output, errors = process.communicate()
            if process.returncode != 0:
                last = errors.strip().rpartition("\n")[2] or "no message"
                refused = process.returncode == UserError.exit_code
                raise (
                    UserError(last)
                    if refused
                    else RunError(f"Measuring seconds per step failed: {last}")
                )
            answers.append(json.loads(output.strip().rpartition("\n")[2]))
        return answers
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    from stackbert.corpus.store import open_corpus
    from stackbert.pretraining.machine import (
        describe,
        fastest_precision,
        keep_memory,
        matrix_rate,
        pick_device,
    )
    from stackbert.pretraining.start import batch_plan
    from stackbert.pretraining.trainer import rows_at_once
    from stackbert.pretraining.tuning import estimate, settle
    from stackbert.vocabulary import load_vocabulary

    keep_memory()
    recipe = parse_recipe(request["recipe"], "the measured recipe")
    corpus = open_corpus(request["corpus"])
    vocabulary = load_vocabulary(corpus)
    device = pick_device()
    if request["what"] == "settle":
        seconds = request["seconds"]
        if seconds is None:
            longest = parse_recipe(request["longest"], "the longest recipe")
            rate = matrix_rate(device, fastest_precision(device))
            seconds = estimate(longest, vocabulary, batch_plan(longest, corpus, vocabulary), rate)
        plan = batch_plan(recipe, corpus, vocabulary)
        settled = settle(recipe, vocabulary, plan, device=device, seconds=seconds)
        stages = [settled.recipe.resolved_stage(i) for i in range(len(settled.recipe.stages))]
        return {
            "recipe": settled.recipe.model_dump(mode="json"),
            "rows": [
                rows_at_once(s.micro_batch, s.sequences, s.sequence_length, device) for s in stages
            ],
            "machine": describe(device),
        }
    with torch.random.fork_rng():
        return _measure(recipe, corpus, vocabulary, device, request)


def _measure(
    recipe: Recipe,
    corpus: Any,  # noqa: ANN401 (Corpus, which imports pyarrow)
    vocabulary: Any,  # noqa: ANN401 (likewise)
    device: Any,  # noqa: ANN401 (torch.device)
    request: dict[str, Any],
) -> dict[str, Any]:
    from stackbert.growth.operators import get_operator
    from stackbert.planning.workload import evaluation_shape, workloads
    from stackbert.pretraining.budget import measure_batches
    from stackbert.pretraining.evaluation import evaluation_batch
    from stackbert.pretraining.machine import synchronise, working_precision
    from stackbert.pretraining.start import batch_plan
    from stackbert.pretraining.tuning import trainer_at
    from stackbert.recipe import GrowthSpec

    plan = batch_plan(recipe, corpus, vocabulary)
    precision = working_precision(recipe)
    timing = measure_batches(
        recipe,
        vocabulary,
        lambda index, turn: plan.batch(recipe.boundaries[index] + turn),
        evaluation_batch(recipe, corpus, vocabulary),
        device=device,
        precision=precision,
        patience=request["patience"],
    )
    loads = workloads(
        recipe,
        vocabulary,
        evaluation_shape(recipe),
        precision=precision,
        is_cpu=device.type == "cpu",
    )
    spec = GrowthSpec.model_validate(request["growth"])
    # A variant of another operator may grow where the recipe's cannot; all take about as long.
    reaches = get_operator(spec.operator).reaches
    fresh = spec.model_copy(update={"operator": "random"})
    depths = [stage.depth for stage in recipe.stages]
    grown = []
    for source, target in request["growths"]:
        index = depths.index(source)
        trainer = trainer_at(recipe, index, vocabulary, device, compile=False)
        trainer.step(0, plan.batch(recipe.boundaries[index]), 1.0)  # so that there is a state
        synchronise(device)
        start = time.perf_counter()
        trainer.grow(target, spec if reaches(source, target) else fresh, 1)
        synchronise(device)
        grown.append(time.perf_counter() - start)
    return {
        "steps": list(timing.step),
        "flops": [load.step_flops for load in loads],
        "growths": grown,
    }


if __name__ == "__main__":
    try:
        print(json.dumps(_answer(json.load(sys.stdin))))
    except StackBertError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
