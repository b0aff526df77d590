"""What long work says while it runs: a bar on a terminal, plain lines elsewhere, or nothing."""

import contextlib
import sys
import time
from typing import Self


class Progress:
    """Hears of progress and says nothing; the base of those that do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def step(self, done: int, total: int, text: str) -> None:
        """`done` of `total` are done; `text` says how things stand."""

    def say(self, text: str) -> None:
        """A line that stays: an evaluation, a growth, a finished run."""


class Bar(Progress):
    """A progress bar that redraws itself; for terminals, whose closing must not end a run."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(console=Console(stderr=True))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._bar.stop()

    def step(self, done: int, total: int, text: str) -> None:
        """Redraw the bar."""
        text = f"{done:,}/{total:,} {text}"
        if not self._bar.task_ids:
            # Counted from where the run resumed, so that the time left is not flattered.
            with contextlib.suppress(OSError):
                self._bar.add_task(text, total=total, completed=done)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=text)

    def say(self, text: str) -> None:
        """Print above the bar."""
        with contextlib.suppress(OSError):
            self._bar.console.print(text, markup=False, highlight=False)


class Lines(Progress):
    """Plain lines on stderr: what is said, and every 20 s how things stand; for logs and pipes."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def step(self, done: int, total: int, text: str) -> None:
        """Print if the last line is old enough."""
        if time.monotonic() - self._last >= 20.0:
            self.say(f"{done:,}/{total:,} {text}")

    def say(self, text: str) -> None:
        """Print a line at once."""
        self._last = time.monotonic()
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def console_progress() -> Progress:
    """The bar on a terminal, lines elsewhere."""
    return Bar() if sys.stderr.isatty() else Lines()
