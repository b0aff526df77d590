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
from stackbert.pretraining.rundir import identity, vanished
from stackbert.stored import parse_json, stored

LEDGER = "metrics.jsonl"
WORK = (
    "training",
    "input",
    "compilation",
    "evaluation",
    "checkpoint",
    "growth",
    "start-up",
    "tuning",
)
"""The kinds of work that are timed apart; together they are the wall time of a run from when its
folder is opened to its last checkpoint. Input is waiting for batches. A step that compiles is
compilation as a whole. Start-up is what comes before the first step or evaluation, tuning apart, in
every process of the run."""


_NEEDED = {
    "step": ("step", "depth", "tokens", "flops", "seconds", "loss"),
    "evaluation": ("step", "depth", "tokens", "flops", "seconds", "loss", "masked_lm"),
    "growth": (
        *("step", "seconds", "growth_seconds", "source_depth", "target_depth"),
        *("loss_before", "loss_after", "operator", "optimizer_state"),
    ),
    "time": ("step", "seconds", "wall"),
    "end": ("step", "seconds", "wall"),
}
"""What those who read a line of a kind rely on; there may be more in it, and other kinds."""
_LOSSES = ("loss", "masked_lm", "loss_before", "loss_after")


class Ledger:
    """Appends lines to metrics.jsonl; every line goes to the operating system at once."""

    def __init__(self, path: Path, *, keep_bytes: int = 0) -> None:
        """Open the ledger, dropping what lies behind its first `keep_bytes` bytes.

        A resumed run does the steps behind its checkpoint again, and writes their lines again.
        """
        self.path = path
        if path.is_symlink():
            raise UserError(
                f"{path} is a symbolic link to {path.resolve()}. A run writes into its own folder "
                "alone; put the file itself there."
            )
        with path.open("ab") as file:
            if file.tell() < keep_bytes:
                raise UserError(
                    f"{path} is shorter than when the last checkpoint was saved ({file.tell():,} "
                    f"bytes instead of {keep_bytes:,}). Put the file back, or start a new run."
                )
            file.truncate(keep_bytes)
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 (JSON values)
        """Append one line. A number that is not finite becomes null, so the file stays JSON.

        Raises:
            RunError: the file is not there any more, or another is in its place.
        """
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in fields.items()
        }
        self._check_place()
        self._file.write(json.dumps({"kind": kind, **clean}) + "\n")
        self._file.flush()

    def _check_place(self) -> None:
        # The system would let us write into a file that nobody can open any more, for days.
        status = os.fstat(self._file.fileno())
        if identity(self.path) != (status.st_dev, status.st_ino):
            raise vanished(self.path.parent)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def sync(self) -> None:
        """Bring every line to the disk.

        Raises:
            RunError: as in `write`.
        """
        self._check_place()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SilentLedger(Ledger):
    """Of the processes that write none."""

    def __init__(self) -> None:
        pass

    def write(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 (as the other's)
        """Nothing."""

    @property
    def size(self) -> int:
        """0."""
        return 0

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


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
    *lines, last = path.read_bytes().split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate((*lines, last) if last else lines, start=1):
        try:
            row = parse_json(line)
            _check(row)
        except ValueError as error:
            if number > len(lines):
                break
            raise UserError(f"{path}, line {number} is damaged: {error}.") from error
        rows.append(row)
    return rows


def _check(row: Any) -> None:  # noqa: ANN401 (JSON is any value)
    """See that a line has what its kind needs.

    Raises:
        ValueError: it has not.
    """
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        raise ValueError("it is no object with a kind")
    for name in _NEEDED.get(row["kind"], ()):
        if name not in row:
            raise ValueError(f"it has no {name}")
        value = row[name]
        if name in ("operator", "optimizer_state"):
            stored(str, value)
        elif name == "wall":
            stored(dict[str, float], value)
        elif name in _LOSSES:
            if value is not None:
                stored(float, value)
        else:
            stored(float if name.endswith("seconds") else int, value)
            if value < 0:
                raise ValueError(f"{name} is below zero")


class Stopwatch:
    """Seconds by kind of work, carried over when a run resumes.

    Every moment belongs to one kind: while an inner kind is measured, the outer one pauses.
    """

    def __init__(self, synchronise: Callable[[], None]) -> None:
        self.seconds = dict.fromkeys(WORK, 0.0)
        self._synchronise = synchronise
        self._kinds: list[str] = []
        self._since = time.perf_counter()

    def carry_over(self, seconds: dict[str, float]) -> None:
        """Add what earlier processes of this run took."""
        for kind in WORK:
            self.seconds[kind] += float(seconds.get(kind, 0.0))

    @contextlib.contextmanager
    def measuring(self, kind: str, *, on_device: bool = True) -> Iterator[None]:
        """Add the time of this block to `kind`.

        Args:
            kind: one of `WORK`.
            on_device: count the device's outstanding work to the kind that gave it. False where
                nothing is asked of the device and waiting for it would hold it up.
        """
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
