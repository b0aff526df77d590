"""Contenders taking turns: processes one at a time, round after round, until a deadline."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from contenders import Contender, Job, Shape
from reporting import milliseconds

NO_TIME = "no time left"
CHILD = Path(__file__).with_name("one_contender.py")


_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/]+/)+")
"""Of somebody's disk, which a report must not name."""


@dataclass
class Figures:
    """All measurements of one contender at one shape."""

    contender: Contender
    shape: Shape
    rounds: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    @property
    def seconds(self) -> list[float]:
        """Of a step, over all rounds."""
        return [second for each in self.rounds for second in each["seconds"]]

    @property
    def medians(self) -> list[float]:
        """Of a step, one a round."""
        return [statistics.median(each["seconds"]) for each in self.rounds]

    @property
    def median(self) -> float:
        """Of a step, over all rounds."""
        return statistics.median(self.seconds)

    @property
    def mfu(self) -> float | None:
        """Share of the matrix rate measured in the same process; None but for StackBERT."""
        shares = [
            each["flops"] / statistics.median(each["seconds"]) / each["matrix_rate"]
            for each in self.rounds
            if "flops" in each
        ]
        return statistics.median(shares) if shares else None

    def plain(self) -> dict[str, Any]:
        """For the JSON report."""
        summary: dict[str, Any] = {}
        if self.rounds:
            summary = {
                "median_seconds": self.median,
                "range_seconds": [min(self.seconds), max(self.seconds)],
                "tokens_per_second": self.shape.rows * self.shape.sequence / self.median,
                "mfu": self.mfu,
            }
        head = {"contender": self.contender.letter, **asdict(self.shape), "error": self.error}
        return head | summary | {"rounds": self.rounds}


class Processes:
    """Starts contenders one at a time, and none past the deadline."""

    def __init__(self, folder: Path, device: str, threads: int | None, within: float) -> None:
        self._folder = folder
        self._deadline = time.monotonic() + within
        self._environment = dict(os.environ)
        if device == "cpu":
            self._environment["CUDA_VISIBLE_DEVICES"] = ""
        else:  # transformers' Trainer would share the batch among all that it sees
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
            self._environment["CUDA_VISIBLE_DEVICES"] = seen.split(",")[0]
        if threads is not None:
            self._environment["OMP_NUM_THREADS"] = str(threads)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - time.monotonic()

    def probe(self) -> dict[str, Any]:
        """The machine, from a process of its own: this one stays clear of torch.

        Raises:
            SystemExit: it cannot be had.
        """
        results, error = self._run("--probe")
        if error is not None:
            sys.exit(f"The machine could not be looked at: {error}")
        return results[0]

    def run(self, job: Job) -> tuple[list[dict[str, Any]], str | None]:
        """A job's results, as many as there are, and why the others are missing."""
        path = self._folder / "job.json"
        path.write_text(json.dumps(asdict(job)), encoding="utf-8")
        return self._run(str(path))

    def _run(self, job: str) -> tuple[list[dict[str, Any]], str | None]:
        results, log = self._folder / "results.jsonl", self._folder / "log.txt"
        results.write_bytes(b"")
        if self.left <= 0:
            return [], NO_TIME
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, str(CHILD), job, str(results)],
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # with what torch.compile starts, it is ended as one
            )
            try:
                error = None
                if process.wait(timeout=self.left):
                    error = _reason(process.returncode, log)
            except subprocess.TimeoutExpired:
                error = NO_TIME
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        whole = results.read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()], error


def _reason(code: int, log: Path) -> str:
    if code == -signal.SIGKILL:
        return "killed, as a machine does that runs out of memory"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return _FOLDERS.sub("", lines[-1])[:300] if lines else f"exit code {code}"


def measure(
    processes: Processes, jobs: Sequence[Job], rounds: int, per_process: int
) -> list[Figures]:
    """Run the jobs in turn, round after round, each for `per_process` shapes at a time."""
    figures = {
        (job.contender.letter, shape): Figures(job.contender, shape)
        for job in jobs
        for shape in job.shapes
    }
    shapes = list(dict.fromkeys(shape for job in jobs for shape in job.shapes))
    for turn in range(rounds):
        for group in _batched(shapes, per_process):
            # Each round begins with another one, so that none is always the first to run.
            for job in [*jobs[turn % len(jobs) :], *jobs[: turn % len(jobs)]]:
                waiting = [
                    shape for shape in group if figures[job.contender.letter, shape].error is None
                ]
                while waiting:
                    done, error = processes.run(replace(job, shapes=tuple(waiting)))
                    for shape, result in zip(waiting, done, strict=False):
                        _note(figures[job.contender.letter, shape], turn, result)
                    waiting = waiting[len(done) :]
                    if waiting:  # the first of them ended the process; the others try another
                        failure = {"error": error or "no result"}
                        _note(figures[job.contender.letter, waiting.pop(0)], turn, failure)
    return list(figures.values())


def _batched(shapes: list[Shape], size: int) -> list[list[Shape]]:
    return [shapes[i : i + size] for i in range(0, len(shapes), size)]


def _note(each: Figures, turn: int, result: dict[str, Any]) -> None:
    """Keep a result and say it. What was measured in earlier rounds outlives a lack of time."""
    failure = result.get("error")
    if failure is None:
        each.rounds.append({"round": turn, **result})
    elif not (each.rounds and failure == NO_TIME):
        each.error = failure
    said = failure or f"{milliseconds(each.medians[-1])} ms a step"
    shape = each.shape
    print(
        f"round {turn + 1}  {shape.depth}x{shape.hidden}, sequence {shape.sequence:4}  "
        f"({each.contender.letter})  {said}",
        flush=True,
    )
