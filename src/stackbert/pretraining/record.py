"""run.json: what was asked for, and the recipe that was made of it.

RUN/run.json  RUN/recipe.yaml  RUN/metrics.jsonl  RUN/log.txt  RUN/checkpoints/step-00000500/
RUN/model/
"""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, PositiveFloat

from stackbert.errors import UserError
from stackbert.files import Record, refuse_foreign, write_text
from stackbert.recipe import Recipe
from stackbert.recipes import differing_fields, load_recipe

RUN, RECIPE = "run.json", "recipe.yaml"
CHECKPOINTS, MODEL, LOG = "checkpoints", "model", "log.txt"


class Request(BaseModel):
    """What the user asked for. A run can only be resumed with the same request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    """As loaded: "auto" is open still, the steps are those before scaling."""
    budget: str | None = None
    steps: int | None = None
    corpus: str
    """Its fingerprint."""
    extend: str | None = None
    """By how much a finished run is trained longer; `recipe` is that run's."""
    parent: str | None = None
    """What that run had come to."""


class RunRecord(Record):
    """The content of run.json, written once, before the first step."""

    what: ClassVar[str] = "a run directory"
    request: Request
    recipe: Recipe  # as run: nothing in it is left open
    corpus_folder: str
    machine: dict[str, Any]  # versions and hardware; "processes" if there were several
    matrix_rate: PositiveFloat  # FLOP/s of one process' matrix products: what MFU is a share of


def is_run(folder: Path) -> bool:
    """Whether a run was started in this folder."""
    return (folder / RUN).is_file()


def final_model(folder: Path) -> Path:
    """`folder` itself, or the place where a run directory has its final model."""
    if not is_run(folder):
        return folder
    if not (folder / MODEL).is_dir():
        raise UserError(
            f"The run {folder} has no {MODEL}/ yet. Let it finish, or name a checkpoint."
        )
    return folder / MODEL


def model_name(folder: Path) -> str:
    """What readers call a model: its folder or run, and the step of a checkpoint."""
    folder = folder.resolve()
    if is_run(folder.parent.parent):
        return f"{folder.parent.parent.name} {folder.name}"
    return folder.parent.name if is_run(folder.parent) else folder.name


def read_run(folder: str | Path) -> RunRecord:
    """A run's record; UserError if the folder holds no run, or run.json is damaged."""
    return RunRecord.read(Path(folder) / RUN)


def write_run(folder: Path, record: RunRecord) -> None:
    """Write run.json, with which the run exists, and recipe.yaml, which is there to be read."""
    record.write(folder / RUN)
    write_text(folder / RECIPE, record.recipe.to_yaml())


def find_run(folder: Path, asked: Request, resume: str) -> RunRecord | None:
    """The record of the run in a folder, if it is the one asked for; None if the folder is empty.

    Raises:
        UserError: the folder holds other files, or a run of another recipe, budget or corpus (every
            difference is named), or any run where `resume` is "never".
    """
    if not is_run(folder):
        refuse_foreign(folder, RunRecord.what, RUN, LOG)  # killed while it measured
        return None
    if resume == "never":
        raise UserError(
            f"{folder} holds a run already. Resume it (--resume auto) or choose a new folder."
        )
    record = read_run(folder)
    then = record.request
    there, here = then.recipe, asked.recipe
    differences = []
    if there.start != here.start:
        differences.append(f"--from ({_start_of(there)} there, {_start_of(here)} here)")
        there, here = (r.model_copy(update={"model": None, "start": None}) for r in (there, here))
    differences += differing_fields(there, here)
    for name in ("budget", "steps", "corpus", "extend", "parent"):
        old, new = getattr(then, name), getattr(asked, name)
        if old != new:
            option = "the finished run" if name == "parent" else f"--{name}"
            differences.append(f"{option} ({old or 'none'} there, {new or 'none'} here)")
    if differences:
        raise UserError(
            f"{folder} holds another run. It differs in: {'; '.join(differences)}. Resume with the "
            "same recipe, corpus and options, or choose a new folder for --out."
        )
    copy = folder / RECIPE
    if not copy.exists():  # killed right after run.json was written
        write_text(copy, record.recipe.to_yaml())
    elif changed := differing_fields(record.recipe, load_recipe(copy)):
        raise UserError(
            f"{copy} was changed after the run had started: {'; '.join(changed)}. Put it back; to "
            "train another recipe, start a new run in another folder."
        )
    return record


def _start_of(recipe: Recipe) -> str:
    return f"{recipe.start.folder}, {recipe.start.sha256[:12]}" if recipe.start else "none"
