"""Ctrl-C, SIGTERM and SIGHUP finish the step at hand instead of cutting it off."""

import signal
import threading
import time
from types import FrameType
from typing import Any, Self

from stackbert.errors import Interrupted


class StopRequest:
    """Within this block a first signal is only noted, in `signal`; a later one stops at once.

    Outside the main thread nothing changes (Python allows handlers there alone).
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
                numbers.append(signal.SIGHUP)
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > 1.0:  # not the same request, sent several times
            raise Interrupted("Stopped at once, without saving again.", number)
