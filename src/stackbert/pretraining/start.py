"""What a run starts from: the run that is in the folder, or what was asked, settled.

The first process reads, measures and writes; the others are told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stackbert.batches import BatchPlan, StageShape
from stackbert.corpus.store import Corpus
from stackbert.errors import UserError
from stackbert.models import create_model
from stackbert.pretraining.budget import Timing, measure, parse_duration, scaled_to
from stackbert.pretraining.machine import describe, working_precision
from stackbert.pretraining.progress import Reporter
from stackbert.pretraining.ranks import Ranks
from stackbert.pretraining.rundir import (
    MODEL,
    Request,
    RunRecord,
    check_may_begin,
    check_same_request,
    is_run,
    read_record,
    write_recipe,
    write_record,
)
from stackbert.pretraining.tuning import Settled, settle
from stackbert.recipe import Recipe
from stackbert.recipe_files import parse_recipe
from stackbert.vocabulary import Vocabulary

_CHECKED_EVERYWHERE = 1 << 33
"""Tokens of a corpus that every machine of a run checks as a whole: some 16 GB, 20 s of a core."""


@dataclass(frozen=True)
class Start:
    """A run that was begun, now or earlier."""

    recipe: Recipe
    """As run: nothing in it is open any more."""
    matrix_rate: float
    """FLOP/s of one process's device, of the run's record."""
    is_finished: bool = False


def batch_plan(recipe: Recipe, corpus: Corpus, vocabulary: Vocabulary) -> BatchPlan:
    """The training batches of a recipe on a corpus, as a function of the step."""
    stages = [recipe.resolved_stage(index) for index in range(len(recipe.stages))]
    return BatchPlan(
        corpus.train,
        vocabulary,
        [StageShape(s.steps, s.sequences, s.sequence_length, s.mask_rate) for s in stages],
        seed=recipe.seed,
        next_sentence=recipe.objective.next_sentence,
    )


def find_start(run: Path, asked: Request, resume: str, say: Reporter, ranks: Ranks) -> Start | None:
    """The run in the folder, if it is the one that is asked for; None if the folder is empty.

    Raises:
        UserError: the folder holds another run or other files, or `resume` is "never".
    """

    def look() -> dict[str, Any] | None:
        if not is_run(run):
            check_may_begin(run)
            return None
        if resume == "never":
            raise UserError(
                f"{run} holds a run already. Resume it (--resume auto) or choose a new folder."
            )
        recipe, record = read_record(run)
        check_same_request(run, record.request, asked)
        write_recipe(run, recipe)
        is_finished = (run / MODEL).exists()
        if is_finished:
            say.say(f"{run} is finished already; its model is {run / MODEL}.")
        return {
            "recipe": recipe.model_dump(mode="json"),
            "matrix_rate": record.matrix_rate,
            "is_finished": is_finished,
        }

    found = ranks.from_first(look)
    return None if found is None else Start(**{**found, "recipe": _recipe(found["recipe"])})


def make_start(
    run: Path,
    asked: Request,
    corpus: Corpus,
    vocabulary: Vocabulary,
    device: torch.device,
    say: Reporter,
    ranks: Ranks,
) -> Start:
    """Settle what the request left open (precision, micro-batches, compilation, steps).

    Raises:
        UserError: a model field that transformers does not know, rows that cannot be shared by the
            processes, a budget too short for a step.
    """
    recipe = asked.recipe
    with torch.device("meta"):  # a wrong model field is found before anything is written
        create_model(
            recipe.model,
            depth=recipe.stages[-1].depth,
            vocabulary=vocabulary,
            sequence_length=recipe.longest_sequence,
            next_sentence=recipe.objective.next_sentence,
        )
    if asked.steps is not None:
        recipe = recipe.scaled(asked.steps)
    check_shares(recipe, ranks.count)
    seconds = None if asked.budget is None else parse_duration(asked.budget)
    plan = batch_plan(recipe, corpus, vocabulary)

    def settled() -> Settled:
        return settle(
            recipe, vocabulary, plan, device=device, seconds=seconds, processes=ranks.count
        )

    recipe, rate = _tell_settled(settled, say, ranks)
    if seconds is not None:
        say.say("measuring seconds per step at every depth …")
        precision = working_precision(recipe)
        timing = _first_timing(
            measure(
                recipe, corpus, vocabulary, plan, device=device, precision=precision, ranks=ranks
            ),
            ranks,
        )
        recipe = scaled_to(recipe, timing, seconds)
        pace = ", ".join(
            f"{1000 * s:.0f} ms at depth {stage.depth}"
            for s, stage in zip(timing.step, recipe.stages, strict=True)
        )
        say.say(f"{recipe.total_steps:,} steps fit into {asked.budget}: a step takes {pace}")
    if ranks.is_first:
        machine = describe(device) | ({"processes": ranks.count} if ranks.count > 1 else {})
        write_record(run, recipe, RunRecord(asked, str(corpus.folder), machine, rate))
    return Start(recipe, rate)


def check_shares(recipe: Recipe, processes: int) -> None:
    """Refuse batches that the processes cannot share equally.

    Raises:
        UserError: naming the stage.
    """
    for index in range(len(recipe.stages)):
        rows = recipe.resolved_stage(index).sequences
        if rows % processes:
            raise UserError(
                f"Stage {index + 1} has {rows} rows a step (batch.sequences), which {processes} "
                "processes cannot share equally. Take a number of processes that divides them."
            )


def check_corpus(corpus: Corpus, ranks: Ranks) -> None:
    """Compare every shard with its checksum, which finds a flipped bit, or a shard exchanged.

    The processes of a machine do it together. A corpus that takes long to read lies on storage that
    all machines read, or is a copy of such a one: there each process of the run takes its share.

    Raises:
        UserError: a shard is damaged or missing.
        SaidByFirstError: another process says so.
    """
    shards = (*corpus.manifest.train.shards, *corpus.manifest.validation.shards)
    if sum(shard.tokens for shard in shards) > _CHECKED_EVERYWHERE:
        share, of = ranks.rank, ranks.count
    else:
        share, of = ranks.on_machine
    ranks.all_pass(lambda: corpus.verify(share, of))


def _tell_settled(
    settled: Callable[[], Settled], say: Reporter, ranks: Ranks
) -> tuple[Recipe, float]:
    def make() -> dict[str, Any]:
        found = settled()
        for note in found.notes:
            say.say(note)
        return {"recipe": found.recipe.model_dump(mode="json"), "rate": found.matrix_rate}

    told = ranks.from_first(make)
    return _recipe(told["recipe"]), told["rate"]


def _first_timing(timing: Timing, ranks: Ranks) -> Timing:
    """The first process's clock decides, or the processes would plan different runs."""
    told = ranks.from_first(lambda: [timing.step, timing.evaluation, timing.evaluations])
    return Timing(tuple(told[0]), told[1], tuple(told[2]))


def _recipe(raw: dict[str, Any]) -> Recipe:
    return parse_recipe(raw, "the first process's recipe")
