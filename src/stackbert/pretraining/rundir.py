"""The run directory: what was asked, what was made of it, and whether a run may go on there."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stackbert.errors import RunError, UserError
from stackbert.files import write_json_atomically, write_text_atomically
from stackbert.recipe import Recipe
from stackbert.recipe_files import differing_fields, load_recipe, parse_recipe
from stackbert.stored import parse_json, stored

FORMAT = 1
RUN = "run.json"
RECIPE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
MODEL = "model"


@dataclass(frozen=True)
class Request:
    """What the user asked for; a run may only be resumed with the same."""

    recipe: Recipe
    """As loaded: precision may be "auto", steps are those before scaling."""
    budget: str | None
    steps: int | None
    corpus: str
    """Fingerprint."""


@dataclass(frozen=True)
class RunRecord:
    """run.json: the request, where the corpus lay, the machine, the measured matrix rate."""

    request: Request
    corpus_folder: str
    machine: dict[str, Any]
    matrix_rate: float
    """FLOP/s of this machine in the run's precision: what MFU is a share of."""


def write_record(run: Path, recipe: Recipe, record: RunRecord) -> None:
    """Write run.json, with which the run exists, and recipe.yaml, its recipe to read."""
    request = asdict(record.request) | {"recipe": record.request.recipe.model_dump(mode="json")}
    write_json_atomically(
        run / RUN,
        {
            "format": FORMAT,
            "request": request,
            "recipe": recipe.model_dump(mode="json"),
            "corpus_folder": record.corpus_folder,
            "machine": record.machine,
            "matrix_rate": record.matrix_rate,
        },
    )
    write_recipe(run, recipe)


def write_recipe(run: Path, recipe: Recipe) -> None:
    """Write recipe.yaml, unless it is there: a kill after run.json loses it."""
    if not (run / RECIPE).exists():
        write_text_atomically(run / RECIPE, recipe.to_yaml())


def read_record(run: Path) -> tuple[Recipe, RunRecord]:
    """The recipe as run, and the record.

    Raises:
        UserError: run.json is missing or damaged, or recipe.yaml was changed.
    """
    path = run / RUN
    try:
        raw = parse_json(path.read_bytes())
        if raw.pop("format") != FORMAT:
            raise UserError(f"{path} is of another version of StackBERT.")
        recipe = parse_recipe(raw.pop("recipe"), str(path))
        asked = raw["request"]
        raw["request"] = {**asked, "recipe": parse_recipe(asked["recipe"], str(path))}
        record = stored(RunRecord, raw)
        if not (record.matrix_rate > 0.0 and stored(int, record.machine.get("processes", 1)) > 0):
            raise ValueError("matrix_rate or machine.processes is not above zero")
    except FileNotFoundError as error:
        raise UserError(f"{run} is not a run directory: it has no {RUN}.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Start a new run in another folder."
        ) from error
    copy = run / RECIPE
    changed = differing_fields(recipe, load_recipe(copy)) if copy.exists() else []
    if changed:
        raise UserError(
            f"{copy} was changed after the run had begun: {'; '.join(changed)}. Put it back; for "
            "another recipe, start a new run in another folder."
        )
    return recipe, record


def is_run(run: Path) -> bool:
    """Whether a run was begun in this folder."""
    return (run / RUN).is_file()


def identity(path: Path) -> tuple[int, int] | None:
    """What tells a file or folder from another of its name; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def vanished(run: Path) -> RunError:
    """What to say when a run directory is not there any more, or another is in its place."""
    return RunError(
        f"{run} was removed, renamed or replaced while it was being trained, so the run was "
        "stopped. If it has another name now, give --out that name, or put it back, and run the "
        "same command again: the run goes on from its last checkpoint."
    )


def check_may_begin(run: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UserError: it holds files that no run wrote.
    """
    # The lock, and what a run killed before its run.json left, are ours and hidden.
    foreign = [p.name for p in run.iterdir() if not p.name.startswith(".")]
    if foreign:
        raise UserError(
            f"{run} is not empty and not a run directory (it holds {', '.join(sorted(foreign)[:3])}"
            f"{', …' if len(foreign) > 3 else ''}). Choose a new folder for --out."
        )


def check_same_request(run: Path, stored: Request, asked: Request) -> None:
    """Refuse to resume a run with another recipe, budget or corpus.

    Raises:
        UserError: naming every field that differs.
    """
    differences = differing_fields(stored.recipe, asked.recipe)
    for name in ("budget", "steps"):
        there, here = getattr(stored, name), getattr(asked, name)
        if there != here:
            differences.append(f"--{name} ({there or 'none'} there, {here or 'none'} here)")
    if differences:
        raise UserError(
            f"{run} holds a run of another recipe. It differs in: {'; '.join(differences)}. "
            "Resume with the same recipe and options, or choose a new folder for --out."
        )
    if stored.corpus != asked.corpus:
        raise UserError(
            f"{run} was trained on another corpus (fingerprint {stored.corpus}, this one has "
            f"{asked.corpus}). Resume with the same corpus, or choose a new folder for --out."
        )
