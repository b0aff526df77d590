"""Runs as processes, several side by side; a stop asked of this process is passed on to them."""

import functools
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from filelock import FileLock

from stackbert.errors import Interrupted, RunError, UserError
from stackbert.files import LOCK
from stackbert.pretraining.signals import StopRequest
from stackbert.units import counted


def environment(threads: int) -> dict[str, str]:
    """This process' environment, with a number of threads for torch and the tokenizer."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}


def threads_each(jobs: int) -> int:
    """Threads of one of `jobs` processes that share this machine's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // jobs)


def train_all(
    runs: Sequence[Path], corpus: Path, *, jobs: int, threads: int
) -> Generator[tuple[Path, float, str], None, None]:
    """Train runs, `jobs` at a time, each with `threads`. One that fails does not stop the others.

    The recipe of RUN is RUN.yaml, and what it prints goes to RUN.log. Yields every run that ended,
    its seconds, and why it failed ("" if it did not).

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the runs were told to stop and have saved their state.
        RunError: a run refused its input (exit code 2), so the others would as well.
    """
    waiting = list(runs)
    running: dict[Path, tuple[subprocess.Popen[bytes], float]] = {}
    with StopRequest() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    running[run] = (_start(run, corpus, threads), time.monotonic())
                time.sleep(0.2)
                for run, (process, begun) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[run]
                    failure = f"{run.name} failed: {last_line(run)}" if process.returncode else ""
                    if process.returncode == UserError.exit_code:
                        raise RunError(failure)
                    yield run, time.monotonic() - begun, failure
                if stop.signal is not None:
                    left = len(waiting) + len(running)
                    raise Interrupted(
                        f"Stopped before {left} of {counted(len(runs), 'run')} had finished; "
                        "everything is saved. Run the same command again to resume.",
                        stop.signal,
                    )
        finally:
            for process, _ in running.values():
                process.send_signal(signal.SIGTERM)
            for process, _ in running.values():
                process.wait()


def last_line(run: Path) -> str:
    """The last line that a run printed, which is its error if it failed."""
    log = Path(f"{run}.log")
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "not begun"
    return text.strip().rpartition("\n")[2].removeprefix("stackbert: ") or "it printed nothing"


def _start(run: Path, corpus: Path, threads: int) -> "subprocess.Popen[bytes]":
    words = ["pretrain", f"{run}.yaml", "--corpus", str(corpus), "--out", str(run)]
    with Path(f"{run}.log").open("ab") as log:
        # In a session of its own: Ctrl-C on the terminal reaches this process alone, which lets
        # the runs finish their step and save.
        return subprocess.Popen(
            [sys.executable, "-m", __name__, *words],
            stdin=lifeline(),
            stdout=log,
            stderr=log,
            env=environment(threads),
            start_new_session=True,
        )


@functools.cache
def lifeline() -> int:
    """Standard input of processes that must not outlive this one: a pipe that ends with it."""
    return os.pipe()[0]


def end_with_parent() -> None:
    """Wait, on a thread, for the process that holds the lifeline to end; then stop this one."""
    os.read(0, 1)  # nothing is ever written: it returns when the other end closes
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    run = Path(sys.argv[-1])
    run.mkdir(exist_ok=True)
    # A comparison that was killed and called again: its run may be about to save its last step.
    with FileLock(run / LOCK):
        pass
    runpy.run_module("stackbert", run_name="__main__", alter_sys=True)
