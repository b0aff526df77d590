"""The ledger metrics.jsonl: what a run did and how long each kind of work took, a line each."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from stackbert.errors import RunError, UserError
from stackbert.files import reading
from stackbert.pretraining.record import read_run

LEDGER = "metrics.jsonl"
WORK = (
    *("training", "input", "compilation", "evaluation"),
    *("checkpoint", "growth", "start-up", "tuning"),
)
"""The kinds of work timed apart; together the wall time from the opening of a run's folder to its
last checkpoint. Input is waiting for batches; a step that compiles is compilation as a whole."""
_COLUMNS = ("kind", "step", "depth", "tokens", "flops", "seconds", "loss", "loss_after", "wall")
"""Columns that a table of the ledger has whatever was written so far."""


class Ledger:
    """Appends lines to metrics.jsonl; every line goes to the operating system at once.

    What lies behind `keep_bytes` is dropped, as a resumed run does the steps after its checkpoint
    again.
    """

    def __init__(self, path: Path, *, keep_bytes: int = 0) -> None:
        self.path = path
        self._file = path.open("ab")
        self.close = self._file.close
        self._opened = os.fstat(self._file.fileno())
        if self._opened.st_size < keep_bytes:
            raise UserError(
                f"{path} is shorter than when the last checkpoint was saved "
                f"({self._opened.st_size:,} bytes instead of {keep_bytes:,}). Put the file back, "
                "or start a new run."
            )
        self._file.truncate(keep_bytes)

    def write(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 (JSON values)
        """Append one line. A number that is not finite becomes null, so the file stays JSON."""
        self.check_place()
        for key, value in fields.items():
            if isinstance(value, float) and not math.isfinite(value):
                fields[key] = None
        self._file.write(json.dumps({"kind": kind, **fields}).encode() + b"\n")
        self._file.flush()

    def check_place(self) -> None:
        """Raise RunError unless the file at the path is still the one that was opened."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self._opened, self.path.stat()):
                return
        raise RunError(
            f"{self.path.parent} was removed, renamed or replaced while it was being trained, so "
            "the run was stopped. If it has another name now, give --out that name, or put it "
            "back, and run the same command again to resume from its last checkpoint."
        )

    def sync(self) -> int:
        """Bring every line to the disk; how many bytes these are."""
        self.check_place()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size


def read_ledger(run: str | Path) -> pd.DataFrame:
    """A run's ledger, one row a line; what a line does not have is NaN.

    Column `kind` is step, evaluation, growth, time, end or skipped. A last line that a crash cut
    off is left out.

    Raises:
        UserError: there is no ledger, or a line in it is damaged.
    """
    path = Path(run) / LEDGER
    if not path.is_file():
        raise UserError(f"{run} is not a run directory: it has no {LEDGER}.")
    rows = []
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        with reading(path, f"Line {number} is damaged."):
            row = json.loads(line)
            rows.append({"kind": row["kind"], **row})
    with contextlib.suppress(ValueError):
        rows.append(json.loads(rest))
    columns = dict.fromkeys([*_COLUMNS, *(name for row in rows for name in row)])
    texts = ["kind", "operator", "optimizer_state", "wall", "layers", "warning"]
    with reading(path):
        table = pd.DataFrame(rows, columns=list(columns))
        numbers = table.columns.difference(texts)
        table[numbers] = table[numbers].apply(pd.to_numeric)
    return table


def stage_table(run: str | Path) -> pd.DataFrame:
    """What each stage that has ended cost and brought, one row a stage.

    Returns:
        depth, steps, tokens, flops, seconds (of training alone), mfu (share of the measured matrix
        rate that training used), loss_grown (validation loss right after growing into the stage;
        NaN if it did not grow) and loss (validation loss at the stage's end).

    Raises:
        UserError: not a run directory, a damaged ledger, or no stage has ended yet.
    """
    record, ledger = read_run(run), read_ledger(run)
    rate = record.matrix_rate * int(record.machine.get("processes", 1))
    with reading(Path(run) / LEDGER):
        evaluations = ledger[ledger.kind == "evaluation"].drop_duplicates("step", keep="last")
        ends = evaluations.set_index("step").reindex(record.recipe.boundaries).dropna(how="all")
        spent = ends[["tokens", "flops", "seconds"]].diff()[1:]
        grown = ledger[ledger.kind == "growth"].set_index("step").loss_after
        stages = record.recipe.stages[: len(spent)]
        table = spent.reset_index(drop=True).astype({"tokens": int})
        table.insert(0, "depth", [stage.depth for stage in stages])
        table.insert(1, "steps", [stage.steps for stage in stages])
        table["mfu"] = table.flops / table.seconds / rate
        table["loss_grown"] = grown.reindex(ends.index[:-1]).array
        table["loss"] = ends.loss[1:].array
    if table.empty:
        raise UserError(f"{run} has no finished stage yet.")
    return table


class Stopwatch:
    """Seconds by kind of work: while an inner kind is measured, the outer one pauses."""

    def __init__(self, synchronise: Callable[[], None]) -> None:
        self.seconds = dict.fromkeys(WORK, 0.0)
        self._synchronise = synchronise
        self._kinds: list[str] = []
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def measuring(self, kind: str, *, on_device: bool = True) -> Iterator[None]:
        """Add the time of this block, and of the device's work if `on_device`, to `kind`."""
        self._lap(on_device)
        self._kinds.append(kind)
        try:
            yield
        finally:
            self._lap(on_device)
            self._kinds.pop()

    def read(self, kind: str) -> float:
        """Seconds of `kind` until now, the device's outstanding work included."""
        self._lap(True)
        return self.seconds[kind]

    def _lap(self, on_device: bool) -> None:
        if on_device:
            self._synchronise()
        now = time.perf_counter()
        if self._kinds:
            self.seconds[self._kinds[-1]] += now - self._since
        self._since = now
