"""A run's result and predictions, as files.

results/TASK/MODEL-FINGERPRINT-seedN.json            scores, losses, seconds
results/TASK/MODEL-FINGERPRINT-seedN.jsonl           a prediction a line
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stackbert.errors import UserError
from stackbert.files import write_json_atomically, write_text_atomically
from stackbert.finetuning.folder import FORMAT, RESULTS, Member
from stackbert.stored import parse_json, stored


@dataclass(frozen=True)
class Result:
    """A run's JSON file."""

    key: str
    seed: int
    scores: dict[str, dict[str, float]]
    """By split, by metric; empty if it diverged."""
    splits: dict[str, str]
    """Fingerprints of the splits that were predicted."""
    seconds: float
    predicting: float
    steps: int
    losses: tuple[float | None, ...]
    diverged: bool
    notes: tuple[str, ...]


def result_path(folder: Path, task: str, member: Member, seed: int) -> Path:
    """Where a run's result lies; its predictions lie beside it as .jsonl."""
    return folder / RESULTS / task / f"{member.key}-seed{seed}.json"


def write_result(path: Path, result: Result, predictions: Mapping[str, list[Any]]) -> None:
    """Write predictions, then the result: where that is, they are whole.

    Args:
        path: of the result.
        result: of a run.
        predictions: by split, a JSON object a row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"split": split, **row}, ensure_ascii=False) + "\n"
        for split, rows in predictions.items()
        for row in rows
    ]
    write_text_atomically(path.with_suffix(".jsonl"), "".join(lines))
    write_json_atomically(path, {"format": FORMAT, **asdict(result)})


def read_result(path: Path) -> Result | None:
    """A run's result; None if it is not there.

    Raises:
        UserError: it is damaged.
    """
    try:
        raw = parse_json(path.read_bytes())
        if raw.pop("format") != FORMAT:
            raise UserError(f"{path} is of another version of StackBERT.")
        return stored(Result, raw)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it and fine-tune again; the other results stay."
        ) from error


def read_predictions(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The predictions beside a result, by split.

    Raises:
        UserError: they are missing or damaged.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    beside = path.with_suffix(".jsonl")
    try:
        with beside.open("rb") as file:
            for line in file:
                row = parse_json(line)
                found.setdefault(stored(str, row.pop("split")), []).append(row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{beside} is missing or damaged. Remove {path.name} and fine-tune again."
        ) from error
    return found
