"""Runs as processes, several side by side; a stop asked of this process is passed on to them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stackbert.errors import Interrupted, RunError
from stackbert.pretraining.signals import StopRequest

_POLL = 0.2
"""Seconds between two looks at the processes."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


def environment(threads: int) -> dict[str, str]:
    """This process' environment with so many threads for torch and the tokenizer."""
    return {
        **os.environ,
        **dict.fromkeys(_THREADS, str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
    }


def threads_each(jobs: int) -> int:
    """Threads of one of `jobs` processes that share this machine's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // jobs)


def counted(number: int, what: str) -> str:
    """ "1 run", "3 runs"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@dataclass(frozen=True)
class Task:
    """A run to be made: `stackbert pretrain` of a recipe file."""

    label: str
    recipe: Path
    corpus: Path
    out: Path

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.out.with_name(self.out.name + ".log")

    @property
    def command(self) -> list[str]:
        """The command line, which the user could type as well."""
        words = ["pretrain", self.recipe, "--corpus", self.corpus, "--out", self.out]
        return [sys.executable, "-m", "stackbert", *(str(word) for word in words)]


def run_all(
    tasks: Sequence[Task],
    *,
    jobs: int,
    threads: int,
    say: Callable[[str], None],
    done: Callable[[Task], None],
) -> tuple[str, ...]:
    """Make runs, `jobs` at a time. A run that fails does not stop the others.

    Args:
        tasks: in the order in which they are begun.
        jobs: processes at a time.
        threads: of each.
        say: hears of every run that ends.
        done: called with every run that ended well.

    Returns:
        A sentence for every run that failed.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the runs at hand were told, and have saved what they had.
        RunError: a run was refused (exit code 2), so the others would be as well.
    """
    waiting, failed = list(tasks), []
    running: list[tuple[Task, subprocess.Popen[bytes], float]] = []
    with StopRequest() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < jobs and stop.signal is None:
                    task = waiting.pop(0)
                    running.append((task, _start(task, threads), time.monotonic()))
                if stop.signal is not None:
                    _stop(running)
                    raise Interrupted(
                        f"Stopped with {len(waiting) + len(running)} of "
                        f"{counted(len(tasks), 'run')} to be finished; everything is "
                        "saved. The same command goes on.",
                        stop.signal,
                    )
                time.sleep(_POLL)
                for entry in [e for e in running if e[1].poll() is not None]:
                    running.remove(entry)
                    task, process, begun = entry
                    left = counted(len(waiting) + len(running), "run")
                    minutes = (time.monotonic() - begun) / 60.0
                    if process.returncode == 0:
                        done(task)
                        say(f"{task.label}: done in {minutes:.1f} min; {left} left")
                        continue
                    sentence = f"{task.label} failed: {last_line(task.log)}"
                    if process.returncode == 2:
                        raise RunError(sentence)
                    failed.append(sentence)
                    say(f"{sentence}; {left} left")
        finally:
            _stop(running)
    return tuple(failed)


def last_line(log: Path) -> str:
    """The last line that a run printed, which is its error if it failed."""
    text = log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""
    return text.rpartition("\n")[2] or "it printed nothing"


def first_sentence(text: str) -> str:
    """An error without its advice and without its full stop."""
    return text.removeprefix("stackbert: ").partition(". ")[0].removesuffix(".")


def _start(task: Task, threads: int) -> subprocess.Popen[bytes]:
    task.out.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        # A session of its own: Ctrl-C on the terminal reaches this process alone, which then lets
        # the runs finish their step and save.
        return subprocess.Popen(
            task.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(threads),
            start_new_session=True,
        )


def _stop(running: Sequence[tuple[Task, subprocess.Popen[bytes], float]]) -> None:
    for _, process, _ in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for _, process, _ in running:
        process.wait()
