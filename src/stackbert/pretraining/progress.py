"""What a run says while it goes: a bar on a terminal, plain lines elsewhere, or nothing."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Reporter(Protocol):
    """Hears of a run's progress."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End, also after an error."""
        ...

    def step(self, done: int, total: int, text: str) -> None:
        """`done` of `total` steps are done; `text` says how it stands."""
        ...

    def say(self, text: str) -> None:
        """A line that stays: an evaluation, a growth, a checkpoint."""
        ...


class Silent:
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def step(self, done: int, total: int, text: str) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class Bar(Silent):
    """A progress bar that redraws itself; for terminals."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def step(self, done: int, total: int, text: str) -> None:
        """Redraw the bar."""
        if self._task is None:
            # Counted from where the run resumed, so that the time left is not flattered.
            self._task = self._progress.add_task(text, total=total, completed=done)
        self._progress.update(self._task, completed=done, description=text)

    def say(self, text: str) -> None:
        """Print above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)


class Lines(Silent):
    """Plain lines: what is said, and how it stands every `seconds`; for logs and pipes."""

    def __init__(self, seconds: float = 20.0) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def step(self, done: int, total: int, text: str) -> None:
        """Print if the last line is old enough."""
        if time.monotonic() - self._last >= self._seconds:
            self.say(f"{done:,}/{total:,} {text}")

    def say(self, text: str) -> None:
        """Print a line at once."""
        self._last = time.monotonic()
        print(text, file=sys.stderr, flush=True)


def console_reporter() -> Reporter:
    """The bar on a terminal, lines elsewhere."""
    return Bar() if Console().is_terminal else Lines()


@contextlib.contextmanager
def corpus_progress() -> Iterator[Callable[[str, int, int], None]]:
    """What `build_corpus` reports to: a bar on a terminal, a line a phase elsewhere."""
    reporter = console_reporter()
    phase = ""

    def report(now: str, done: int, total: int) -> None:
        nonlocal phase
        if now != phase:
            phase = now
            if not isinstance(reporter, Bar):
                reporter.say(f"{now} …")
        reporter.step(done >> 20, max(1, total >> 20), f"MB, {now}")

    with reporter:
        yield report
