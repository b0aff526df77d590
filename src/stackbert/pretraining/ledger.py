"""The ledger: what a run did and how long each kind of work took, one JSON object a line."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stackbert.errors import UserError

LEDGER = "metrics.jsonl"
WORK = ("training", "evaluation", "checkpoint", "growth")
"""The kinds of work that are timed apart. Start-up is what is left of the wall time."""


class Ledger:
    """Appends lines to metrics.jsonl; every line goes to the operating system at once."""

    def __init__(self, path: Path, *, keep_bytes: int = 0) -> None:
        """Open the ledger, dropping what lies behind its first `keep_bytes` bytes.

        A resumed run does the steps behind its checkpoint again, and writes their lines again.
        """
        self.path = path
        with path.open("ab") as file:
            if file.tell() < keep_bytes:
                raise UserError(
                    f"{path} is shorter than when the last checkpoint was saved ({file.tell():,} "
                    f"bytes instead of {keep_bytes:,}). Put the file back, or start a new run."
                )
            file.truncate(keep_bytes)
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 (JSON values)
        """Append one line. A number that is not finite becomes null, so the file stays JSON."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in fields.items()
        }
        self._file.write(json.dumps({"kind": kind, **clean}) + "\n")
        self._file.flush()

    def sync(self) -> int:
        """Bring every line to the disk; the file's size in bytes."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_ledger(run: str | Path) -> list[dict[str, Any]]:
    """All lines of a run's ledger, as dictionaries.

    Args:
        run: the run directory.

    Raises:
        UserError: there is no ledger, or a line in it is damaged (the last one may be cut off by
            a crash; it is left out).
    """
    path = Path(run) / LEDGER
    if not path.is_file():
        raise UserError(f"{run} is not a run directory: it has no {LEDGER}.")
    lines = path.read_bytes().splitlines(keepends=True)
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode("utf-8"))
            if not isinstance(row, dict) or "kind" not in row:
                raise ValueError("it is no object with a kind")
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise UserError(f"{path}, line {number} is damaged: {error}.") from error
        rows.append(row)
    return rows


class Stopwatch:
    """Seconds by kind of work, carried over when a run resumes."""

    def __init__(self, synchronise: Callable[[], None], seconds: dict[str, float]) -> None:
        self.seconds = {kind: float(seconds.get(kind, 0.0)) for kind in WORK}
        self._synchronise = synchronise

    @contextlib.contextmanager
    def measuring(self, kind: str) -> Iterator[None]:
        """Add the time of this block to `kind`, the device's outstanding work included."""
        self._synchronise()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronise()
            self.seconds[kind] += time.perf_counter() - start
