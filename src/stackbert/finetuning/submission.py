"""Predictions of GLUE's test splits as the zip file that its server takes."""

import io
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stackbert.errors import RunError, UserError
from stackbert.files import explaining_os_errors, sync_folder
from stackbert.finetuning.tasks import GLUE, MISMATCHED, Task

SIZES = {
    "CoLA.tsv": 1063,
    "SST-2.tsv": 1821,
    "MRPC.tsv": 1725,
    "STS-B.tsv": 1379,
    "QQP.tsv": 390965,
    "MNLI-m.tsv": 9796,
    "MNLI-mm.tsv": 9847,
    "QNLI.tsv": 5463,
    "RTE.tsv": 3000,
    "WNLI.tsv": 146,
    "AX.tsv": 1104,
}
"""The files that the server wants, all of them, each with its number of rows."""
NAME = "glue-submission.zip"
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)

Predictions = Sequence[tuple[str, str | float]]
"""Of each test example its key (its index in the test file), and the class's name or the number."""


@dataclass(frozen=True)
class Submission:
    """What was written.

    Attributes:
        path: the zip file.
        files: the files in it that hold predictions.
        missing: the files without predictions, filled in or left out.
        notes: sentences on what the server will not like.
    """

    path: Path
    files: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def server_file(task: Task, split: str) -> str:
    """The file that the server expects the predictions of a test split in ("MNLI-mm.tsv")."""
    return task.test_file.replace("-m.", "-mm.") if split.endswith(MISMATCHED) else task.test_file


def write_submission(
    folder: Path, predictions: Mapping[str, Predictions], *, fill: bool = False
) -> Submission:
    """Write the zip for GLUE's server.

    The same predictions give the same bytes: files are in a fixed order with a fixed date.

    Args:
        folder: where `NAME` is written; made if need be.
        predictions: by the file's name (see `server_file`), in any order; numbers are clipped to
            0…5, STS-B's range.
        fill: give the tasks without predictions one answer throughout (the first class, or 0), as
            the server takes only whole submissions. Their scores mean nothing then.

    Raises:
        UserError: a file is none that the server knows, a key is no index or occurs twice, or a
            class is none of the task's.
        RunError: a number is not finite, or the disk is full.
    """
    tasks = {
        server_file(task, split): task for task in GLUE.values() for split in ("test", MISMATCHED)
    }
    unknown = sorted(set(predictions) - set(SIZES))
    if unknown:
        raise UserError(
            f"GLUE's server takes no file {', '.join(unknown)}. It takes: {', '.join(SIZES)}."
        )
    missing = tuple(name for name in SIZES if name not in predictions)
    notes: list[str] = []
    contents: dict[str, str] = {}
    for name, size in SIZES.items():
        task = tasks[name]
        if name in predictions:
            rows = _rows(name, task, predictions[name])
            if len(rows) != size:
                notes.append(f"{name} has {len(rows):,} rows; the server expects {size:,}.")
        elif fill:
            rows = [(index, task.labels[0] if task.labels else "0.000") for index in range(size)]
        else:
            continue
        lines = ["index\tprediction", *(f"{index}\t{value}" for index, value in rows)]
        contents[name] = "\n".join(lines) + "\n"
    if missing:
        how = "filled in with one answer throughout" if fill else "left out"
        notes.append(
            f"No predictions for {', '.join(missing)}: {how}. The server takes only whole "
            "submissions" + (", and these scores mean nothing." if fill else "; ask to fill them.")
        )
    path = folder / NAME
    with explaining_os_errors(f"writing {path}"):
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, _zipped(contents))
    return Submission(
        path, tuple(name for name in SIZES if name in predictions), missing, (*notes,)
    )


def _rows(name: str, task: Task, predictions: Predictions) -> list[tuple[int, str]]:
    rows: dict[int, str] = {}
    for key, value in predictions:
        if not (key.isascii() and key.isdigit()):
            raise UserError(
                f"{name}: '{key}' is no index of a test row. Predict GLUE's own test file."
            )
        if int(key) in rows:
            raise UserError(f"{name}: two predictions for the index {key}. Give each row one.")
        rows[int(key)] = _spelled(name, task, value)
    return sorted(rows.items())


def _spelled(name: str, task: Task, value: str | float) -> str:
    if task.kind == "classification":
        if value not in task.labels:
            raise UserError(
                f"{name}: '{value}' is no class of {task.title}. The classes are: "
                f"{', '.join(task.labels)}."
            )
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        raise RunError(f"{name}: a prediction is not finite. The model's training has diverged.")
    return f"{min(5.0, max(0.0, number)):.3f}"


def _zipped(contents: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, _FIXED_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, contents[name])
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)
