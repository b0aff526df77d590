"""`stackbert` and `python -m stackbert`: run a command, turn errors into sentences."""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from types import FrameType


def main() -> None:
    """Run the command line; exits with 2 for wrong input, 1 for a failed run, 128 + a signal."""
    from stackbert.errors import Interrupted, StackBertError

    since = -math.inf

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if time.monotonic() - since > 1.0:  # not the same request, sent several times
            since = time.monotonic()
            name = signal.Signals(number).name
            raise Interrupted(f"Stopped by {name}. Run the same command again.", number)

    def repeat(lost: "sys.UnraisableHookArgs") -> None:
        # A signal that arrives in a callback of a weak reference, or the like, is lost there.
        nonlocal since
        if not isinstance(lost.exc_value, Interrupted):
            sys.__unraisablehook__(lost)
            return
        since, number = -math.inf, lost.exc_value.exit_code - 128
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = repeat
    # Of several ranks torchrun speaks, and gloo and NCCL wait in C++, where no handler runs.
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if is_alone else ():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        from stackbert.cli import app
        from stackbert.files import writing

        with writing("running the command"):
            app()
    except (StackBertError, Interrupted) as error:
        if str(error):  # of several ranks one says it
            with contextlib.suppress(OSError):
                print(f"stackbert: {error}", file=sys.stderr, flush=True)
        if not is_alone:
            os._exit(error.exit_code)  # gloo's threads may wait minutes for a rank that was lost
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
