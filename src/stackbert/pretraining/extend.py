"""A finished run trained longer: from which of its checkpoints, and by which recipe."""

import re
import shutil
from pathlib import Path

from stackbert.corpus.store import Corpus
from stackbert.errors import UserError
from stackbert.files import new_folder
from stackbert.pretraining.checkpoints import checkpoint_name, read_checkpoint
from stackbert.pretraining.ledger import LEDGER
from stackbert.pretraining.record import CHECKPOINTS, MODEL, Request, read_run
from stackbert.pretraining.starting import check_tokenizer
from stackbert.recipe import Recipe
from stackbert.units import parse_duration


def extension(run: Path, by: str, corpus: Corpus) -> Request:
    """The request to train a finished run longer; UserError if it cannot be."""
    record = read_run(run)
    if not (run / MODEL).is_dir():
        raise UserError(f"{run} is not finished. Resume it first: pretrain with --out {run}.")
    check_tokenizer(run / MODEL, corpus)
    state = read_checkpoint(source_checkpoint(run, record.recipe))
    return Request(
        recipe=record.recipe,
        corpus=corpus.fingerprint,
        extend=by,
        parent=f"weights `{state.sha256['model.safetensors'][:16]}` after {state.counters.step:,} "
        f"steps, corpus `{record.request.corpus[:16]}`",
    )


def source_checkpoint(run: Path, recipe: Recipe) -> Path:
    """The last checkpoint before wsd's decay, if it is there; otherwise the last of all."""
    steps = [recipe.decay_start] if recipe.schedule.name == "wsd" else []
    places = (run / CHECKPOINTS / checkpoint_name(step) for step in (*steps, recipe.total_steps))
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(
            f"{run} has lost its last checkpoint. Start a new run from its model: --from {run}."
        )
    return found


def longer_recipe(run: Path, recipe: Recipe, by: str, step_seconds: float) -> Recipe:
    """The recipe of a finished run with more steps in its last stage.

    Where the rate had fallen at the checkpoint, the schedule begins anew there. Otherwise the run
    is what it would have been had it been so long from the start.
    """
    step = int(source_checkpoint(run, recipe).name.removeprefix("step-"))
    more = steps_of(by)
    if more is None:
        more = step + int(parse_duration(by) / step_seconds) - recipe.total_steps
        if more <= 0:
            raise UserError(
                f"{by} from step {step:,} on is not longer than the {recipe.total_steps:,} steps "
                f"that {run} has. Give more time."
            )
    last = recipe.stages[-1]
    longer = last.model_copy(update={"steps": last.steps + more})
    schedule = recipe.schedule
    if step == recipe.total_steps and schedule.name != "constant":
        schedule = schedule.model_copy(update={"restarts": (*schedule.restarts, step)})
    return recipe.model_copy(update={"stages": (*recipe.stages[:-1], longer), "schedule": schedule})


def steps_of(by: str) -> int | None:
    """The number in "2000steps"; None of a duration."""
    found = re.fullmatch(r"([1-9]\d*)steps", by)
    return int(found[1]) if found else None


def copy_checkpoint(run: Path, recipe: Recipe, folder: Path) -> None:
    """Bring the checkpoint of a finished run, and the ledger up to it, into a new run's folder."""
    checkpoint = source_checkpoint(run, recipe)
    ledger_bytes = read_checkpoint(checkpoint).ledger_bytes
    (folder / LEDGER).write_bytes((run / LEDGER).read_bytes()[:ledger_bytes])
    with new_folder(folder / CHECKPOINTS / checkpoint.name) as place:
        shutil.copytree(checkpoint, place, dirs_exist_ok=True, copy_function=shutil.copyfile)
