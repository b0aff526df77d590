"""What long work says while it runs: a bar on a terminal, plain lines elsewhere, or nothing."""

import contextlib
import math
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Self

from stackbert.units import format_duration


class Progress:
    """Hears of progress and says nothing; the base of those that do."""

    _first: tuple[float, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def step(self, done: float, total: int, text: str, left: float | None = None) -> None:
        """`done` of `total` (2.4 of 12 is shown as 3/12) of what `text` begins with are done.

        Without `left`, seconds to go, what is to come is taken to be as fast as what has been.
        """

    def _standing(self, done: float, total: int, text: str, left: float | None) -> str:
        # Counted from where the work resumed, so that the time left is not flattered.
        since, begun = self._first = self._first or (done, time.monotonic())
        if left is None and done > since:
            left = (total - done) * (time.monotonic() - begun) / (done - since)
        known = "" if left is None else f"{format_duration(left)} left, "
        return f"{known}{math.ceil(done):,}/{total:,} {text}"

    def say(self, text: str) -> None:
        """A line that stays: an evaluation, a growth, a finished run."""


class Bar(Progress):
    """A bar in one line of any width, for terminals, whose closing must not end a run."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console
        from rich.table import Column

        text = Column(no_wrap=True, overflow="ellipsis", ratio=1)  # what the others leave
        self._bar = progress.Progress(
            progress.BarColumn(bar_width=10),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.description}", markup=False, table_column=text),
            expand=True,
            console=Console(stderr=True),
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._bar.stop()

    def step(self, done: float, total: int, text: str, left: float | None = None) -> None:
        """Redraw the bar."""
        text = self._standing(done, total, text, left)
        if not self._bar.task_ids:
            with contextlib.suppress(OSError):
                self._bar.add_task(text)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=text)

    def say(self, text: str) -> None:
        """Print above the bar."""
        with contextlib.suppress(OSError):
            self._bar.console.print(text, markup=False, highlight=False)


class Lines(Progress):
    """Lines with the time: what is said, and every 20 s how things stand.

    They go to stderr, for pipes and logs, or to the end of a file; `beside` hears everything, too.
    """

    def __init__(self, file: Path | None = None, beside: Progress | None = None) -> None:
        self._file, self._beside = file, beside or Progress()
        self._last = time.monotonic()

    def step(self, done: float, total: int, text: str, left: float | None = None) -> None:
        """Print if the last line is old enough."""
        self._beside.step(done, total, text, left)
        text = self._standing(done, total, text, left)
        if time.monotonic() - self._last >= 20.0:
            self._print(text)

    def say(self, text: str) -> None:
        """Print a line at once."""
        self._beside.say(text)
        self._print(text)

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        # A closed pipe or a full disk must not end a run of hours.
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            file = sys.stderr
            if self._file is not None:
                file = stack.enter_context(self._file.open("a", encoding="utf-8"))
            print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}", file=file, flush=True)


def console_progress(quiet: bool = False) -> Progress:
    """The bar on a terminal, lines elsewhere; nothing if that is asked for."""
    if quiet:
        return Progress()
    return Bar() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else Lines()
