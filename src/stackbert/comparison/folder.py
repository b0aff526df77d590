"""comparison.json: what was asked, what was measured for it, and which runs belong to it."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from stackbert.comparison.calibration import Settings
from stackbert.comparison.costs import Budget, Reference
from stackbert.errors import UserError
from stackbert.files import write_json_atomically
from stackbert.recipe import Recipe
from stackbert.recipe_files import differing_fields, parse_recipe
from stackbert.stored import parse_json, stored

FORMAT = 1
COMPARISON = "comparison.json"
Kind = Literal["variants", "switches"]
_KEY = re.compile("[0-9a-f]{12}")
_PLAIN = ("kind", "corpus", "budget", "jobs", "then")
"""Fields of a question that are JSON as they are."""


@dataclass(frozen=True)
class Question:
    """What a comparison asks; it is the same in every call that goes on with it."""

    kind: Kind
    recipe: Recipe
    corpus: str
    """Fingerprint."""
    budget: str | None
    """As the user wrote it; None is what scratch takes for the recipe's steps."""
    jobs: int
    rates: tuple[float, ...]
    """Factors of the learning rates that scratch tries."""
    then: int | None = None
    """Of switches: steps after each growth."""


@dataclass(frozen=True)
class Tried:
    """A learning rate that scratch was tried with."""

    rate: float
    loss: float | None
    """None where the run did not end."""


@dataclass(frozen=True)
class Entry:
    """A run of the comparison, as it was planned."""

    variant: str
    fraction: float
    seed: int
    key: str
    """Its folder's name ends in this; runs that are the same have one folder."""


@dataclass(frozen=True)
class Record:
    """Everything but the runs themselves."""

    question: Question
    corpus_folder: str
    entropy: float
    """Unigram entropy of the validation text, in nats."""
    machine: dict[str, Any]
    threads: int
    """Of each run."""
    settings: Settings
    reference: Reference
    budget: Budget
    """Of each run at a share of 1."""
    rate: float = 1.0
    """Factor of the learning rates, best for scratch of those tried."""
    tried: tuple[Tried, ...] = ()
    entries: tuple[Entry, ...] = ()
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each variant's recipe before it was scaled."""


def write_record(folder: Path, record: Record) -> None:
    """Write comparison.json, whole or not at all."""
    question = record.question
    write_json_atomically(
        folder / COMPARISON,
        {
            "format": FORMAT,
            "question": {
                **{name: getattr(question, name) for name in _PLAIN},
                "recipe": question.recipe.model_dump(mode="json"),
                "rates": list(question.rates),
            },
            "corpus_folder": record.corpus_folder,
            "entropy": record.entropy,
            "machine": record.machine,
            "threads": record.threads,
            "settings": record.settings.to_json(),
            "reference": record.reference.to_json(),
            "budget": asdict(record.budget),
            "rate": record.rate,
            "tried": [asdict(tried) for tried in record.tried],
            "entries": [asdict(entry) for entry in record.entries],
            "recipes": record.recipes,
        },
    )


def read_record(folder: Path) -> Record:
    """Read comparison.json.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    path = folder / COMPARISON
    try:
        raw = parse_json(path.read_bytes())
        if raw.pop("format") != FORMAT:
            raise UserError(f"{path} is of another version of StackBERT.")
        asked = raw["question"]
        raw["question"] = {**asked, "recipe": parse_recipe(asked["recipe"], str(path))}
        record = stored(Record, raw)
        _check(record)
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not a comparison: it has no {COMPARISON}.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Start the comparison in another folder; finished runs "
            "can be moved there."
        ) from error
    return record


def _check(record: Record) -> None:
    """See that a record of the right types means something.

    Raises:
        ValueError: it does not.
    """
    for name, number in (("threads", record.threads), ("budget.amount", record.budget.amount)):
        if number <= 0:
            raise ValueError(f"{name} is not above zero")
    for entry in record.entries:
        # It becomes a part of a folder's name.
        if not _KEY.fullmatch(entry.key):
            raise ValueError(f"the key {entry.key!r} is not of twelve hexadecimal digits")


def is_comparison(folder: Path) -> bool:
    """Whether a comparison was begun in this folder."""
    return (folder / COMPARISON).is_file()


def check_may_begin(folder: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UserError: it holds files that no comparison wrote.
    """
    foreign = [p.name for p in folder.iterdir() if not p.name.startswith(".") and p.name != "runs"]
    if foreign:
        raise UserError(
            f"{folder} is not empty and not a comparison (it holds {', '.join(foreign[:3])}). "
            "Choose a new folder for --out."
        )


def check_same_question(folder: Path, there: Question, here: Question) -> None:
    """Refuse to go on with another question; variants, seeds and shares may be added.

    Raises:
        UserError: naming what differs.
    """
    differences = differing_fields(there.recipe, here.recipe)
    for name in ("kind", "budget", "jobs", "rates", "then"):
        a, b = getattr(there, name), getattr(here, name)
        if a != b:
            differences.append(f"{name} ({_shown(a)} there, {_shown(b)} here)")
    if differences:
        raise UserError(
            f"{folder} holds another comparison. It differs in: {'; '.join(differences)}. "
            "Variants, seeds and fractions can be added; for anything else choose a new folder."
        )
    if there.corpus != here.corpus:
        raise UserError(
            f"{folder} was made on another corpus. Go on with the same, or choose a new folder."
        )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{item:g}" for item in value)
    return "none" if value is None else str(value)
