"""Disturb a tiny run at a random moment, run the same command again, and look at its end.

    python benchmarks/adversary.py --rounds 1000

A round is a run in one process or two, or a comparison with two runs left, then a disturbance, and
the command again: once while the disturbance lasts, then without it. It must end with the bits of
an undisturbed run, and a process that does not get there must say why in a sentence. A traceback, a
hang, a step lost before the newest checkpoint, a process that stays, and a file that stays or is
missing are failures. Processes, those that `compare` starts too, are forked from this one, in which
all is imported, on a small tmpfs (so this needs root). Exit code 1 if a round failed.
"""

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stackbert.__main__ import main as stackbert
from stackbert.comparison import calibration, processes
from stackbert.comparison.results import Comparison
from stackbert.demo import write_factbook
from stackbert.pretraining import autotune
from stackbert.pretraining.run import pretrain
from stackbert.recipes import load_recipe

TINY = [
    "model={type: bert, hidden_size: 16, num_attention_heads: 2, intermediate_size: 32}",
    "stages=[{depth: 1, steps: 6}, {depth: 2, steps: 6}]",
    *("batch={sequences: 4, sequence_length: 32}", "schedule.warmup_steps=1", "log_every=1"),
    *("evaluation={sequences: 4, every_steps: 4}", "model.hidden_dropout_prob=0.1"),
    *("checkpoint={every_steps: 2, every_minutes: null, keep: 3}", "optimizer.name=adamw"),
    *("precision=fp32", "compile=false"),
]
# Seconds; the second in start-up, where a rank waits for the other, the third to end in.
HANGS, ALONE, GRACE = 180.0, 5.0, 20.0
GOOD = {"identical", "refused, then identical"}
KINDS = "compare", "ranks", "run"
LIFELINE, FORK = functools.cache(os.pipe), multiprocessing.get_context("fork")
Undo = Callable[[], object] | None


class Forked:
    """What `compare` needs of a `Popen`: a run, its standard input a pipe that ends with it."""

    def __init__(self, run: Path, corpus: Path, _: int) -> None:
        (reader, writer), log = LIFELINE(), Path(f"{run}.log")

        def command() -> None:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(reader, 0)
            os.close(writer)
            sys.stdout = sys.stderr = log.open("a", buffering=1)
            sys.argv = ["x", "pretrain", f"{run}.yaml", f"--corpus={corpus}", "--out", str(run)]
            runpy.run_module("stackbert.comparison.processes", run_name="__main__")

        self._process = FORK.Process(target=command)
        self._process.start()

    def poll(self) -> int | None:
        """Its exit code, once there is one."""
        self.returncode = self._process.exitcode
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To the run."""
        if self._process.is_alive():
            os.kill(self._process.pid or 0, number)

    def wait(self) -> None:
        """For its end."""
        self._process.join()


class Trial:
    """A run or a comparison, and the processes that write it."""

    def __init__(self, folder: Path, place: Path, seed: str, kind: str) -> None:
        self.folder, self.draw, self.kind = folder, random.Random(seed), kind
        self.ranks = 1 + (kind == "ranks")
        self.run, self.corpus, self.log = folder / "run", folder / "corpus", place / "log.txt"
        shutil.copytree(place / "corpus", self.corpus)
        if kind == "compare" and (place / "begun").exists():
            shutil.copytree(place / "begun", self.run)
        self.limit: Callable[[random.Random], object] = bool
        self.processes: list[Any] = []
        self.refused = self.damaged = 0  # the latter: a checkpoint's step
        self.known: dict[Path, int] = {}

    def start(self) -> None:
        """The command, in a process for each rank."""
        self.log.write_bytes(b"")
        for run in self.runs():
            steps = (step for step in checkpoints(run) if step != self.damaged)
            self.known[run] = max([0, *steps])
            if self.kind == "compare":
                Path(f"{run}.log").write_bytes(b"")
        self.processes, self.damaged = [], 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        for rank in map(str, range(self.ranks)):
            self.fork(shared | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(self.ranks)})

    def fork(self, environment: dict[str, str]) -> None:
        """The command in one process."""
        words = ["pretrain", "demo", f"--corpus={self.corpus}", f"--out={self.run}"]
        if self.kind == "compare":
            words = ["compare", *words[1:], "--seeds=1", "--jobs=2", "--budget=12steps"]

        def command() -> None:
            sys.stdout = sys.stderr = self.log.open("a", buffering=1)
            os.environ.update(environment)
            self.limit(self.draw)
            sys.argv = ["stackbert", *words, *(f"--set={each}" for each in TINY)]
            stackbert()

        self.processes.append(FORK.Process(target=command))
        self.processes[-1].start()

    def runs(self) -> list[Path]:
        """Folders of runs."""
        found = sorted(path for path in self.run.glob("runs/*") if path.is_dir())
        return found if self.kind == "compare" else [self.run]

    def others(self) -> list[int]:
        """Processes that this one did not fork: `compare`'s runs, or what has lost its parent."""
        own, found = {os.getpid(), *(each.pid for each in self.processes)}, []
        forked = Path("/proc/self/cmdline").read_bytes()
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = file.read_bytes()
                is_ours = words == forked or os.fsencode(self.folder) in words
                found += [int(file.parent.name)] if is_ours else []
        return [pid for pid in found if pid not in own]

    def send(self, *numbers: int) -> None:
        """Signals, to one or more of the processes that are left."""
        left = [process.pid for process in self.processes if process.is_alive()]
        left += self.others() if self.kind == "compare" else []
        for pid in self.draw.sample(left, self.draw.randint(1, len(left))) if left else []:
            with contextlib.suppress(ProcessLookupError):
                for number in numbers:
                    os.kill(pid, number)
                    time.sleep(0.2 if number == signal.SIGSTOP else 0.0)

    def wait(self) -> bool:
        """Until all processes have ended; whether the run is finished. What is wrong is raised."""
        begun = time.monotonic()
        while any(process.is_alive() for process in self.processes):
            time.sleep(0.01)
            starts = not re.search("resuming at|step 0:", self.log.read_text())
            is_lonely = starts and any(process.exitcode for process in self.processes)
            if time.monotonic() > begun + (ALONE if is_lonely else HANGS):
                self.send(signal.SIGKILL)  # in start-up torchrun would do it, too
                assert is_lonely, f"hangs: {self.log.read_text()}"
        codes = {process.exitcode or 0 for process in self.processes}
        for run in self.runs():
            log = Path(f"{run}.log") if self.kind == "compare" else self.log
            said = log.read_text() if log.exists() else ""
            assert "Traceback" not in said, f"traceback: {said}"
            began = re.findall(r"resuming at step (\d+)|step (0):", said)
            lost = began and int(began[0][0] or 0) < self.known.get(run, 0)
            assert not lost, f"lost: steps before {self.known[run]}: {said}"
        said = self.log.read_text()
        assert "Traceback" not in said, f"traceback: {said}"
        may_be_silent = self.ranks > 1 or not said  # one speaks for all; its output is closed
        is_right = codes <= {0, -signal.SIGKILL} or re.search(
            r"^stackbert: .*\.$", said, re.MULTILINE
        )
        assert is_right or may_be_silent, f"no sentence: {codes}: {said}"
        self.refused += bool({1, 2} & codes)
        return codes == {0} and all((run / "model").exists() for run in self.runs())

    def results(self) -> dict[str, Any]:
        """What must be equal: files' bytes, the ledgers' steps and losses, names of files."""
        names = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}
        kept = re.compile(r"corpus/|.*\.damaged")  # may lack a file; stays
        names = {re.sub(r"step-\d+", "step-N", name) for name in names if not kept.match(name)}
        found: dict[str, Any] = {"names": names}
        for run in self.runs():
            lines = map(json.loads, (run / "metrics.jsonl").read_bytes().splitlines())
            found[run.name] = [(line["kind"], line["step"], line.get("loss")) for line in lines]
            saved = [path for _, path in sorted(checkpoints(run).items())][-1:]
            for path in (*saved, run / "model"):
                files = {*path.glob("*.safetensors"), *path.glob("tokenizer.json")}
                found |= {str(file.relative_to(self.folder)): file.read_bytes() for file in files}
        return found


def checkpoints(run: Path) -> dict[int, Path]:
    """A run's, by their step."""
    return {int(p.name[5:]): p for p in run.glob("checkpoints/step-????????")}


def damage(trial: Trial, pattern: str) -> Undo:
    """Another bit in a file of the corpus, or of a run that was killed; or less of it, or none."""
    if in_run := pattern.startswith("run"):
        trial.send(signal.SIGKILL)
        if trial.wait():  # it is finished
            return None
    found = [(path, path.read_bytes()) for path in trial.folder.glob(pattern) if path.is_file()]
    if not (filled := sorted(pair for pair in found if pair[1])):
        return None
    path, content = trial.draw.choice(filled)
    at, way = trial.draw.randrange(len(content)), trial.draw.randrange(3)
    if way == 0:
        path.unlink()
    elif path.suffix == ".jsonl" or (way == 1 and in_run):  # nothing secures the ledger's digits
        os.truncate(path, at)
    else:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([content[at] ^ 1 << trial.draw.randrange(8)]))
    trial.damaged = int(path.parent.name[5:]) if "step" in pattern else 0
    return None if trial.damaged else lambda: path.write_bytes(content)


def fill(trial: Trial) -> Undo:
    """The disk has no byte left, or no inode."""
    disk, numbers = trial.folder.parent, itertools.count()
    for size in trial.draw.choice(((0,), (1 << 18, 1 << 12))):
        with contextlib.suppress(OSError):
            while True:
                (disk / f"{next(numbers)}.fill").write_bytes(bytes(size))
    return lambda: [path.unlink(missing_ok=True) for path in disk.glob("*.fill")]


def close_output(draw: random.Random) -> None:
    """As `| head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    sys.stdout = sys.stderr = os.fdopen(writer, "w", buffering=1)


def restrict(draw: random.Random) -> None:
    """A limit of the system's: on open files, on the size of one, or on memory beyond that used."""
    used = int(re.findall(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[0]) << 10
    kinds = (resource.RLIMIT_NOFILE, 8, 40), (resource.RLIMIT_FSIZE, 1 << 13, 1 << 16)
    kind, least, most = draw.choice((*kinds, (resource.RLIMIT_DATA, used, used + (1 << 27))))
    resource.setrlimit(kind, (draw.randint(least, most),) * 2)


NAMES = [
    *("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGTERM,SIGTERM,SIGINT", "SIGSTOP,SIGCONT"),
    *("compare:SIGKILL", "compare:SIGTERM"),
    *("ranks:SIGKILL", "ranks:SIGTERM", "ranks:SIGSTOP,SIGCONT"),
    *("corpus/*/*.bin", "corpus/tokenizer/*", "run/checkpoints/step-????????/*"),
    *("run/metrics.jsonl", "run/r*.*", "full-disk", "clock-set-back", "second-process"),
    *("umask", "closed-pipe", "limits"),
]
LIMITS = {"umask": lambda draw: os.umask(0o077), "closed-pipe": close_output, "limits": restrict}


def strike(trial: Trial, name: str) -> Undo:
    """Signals to the processes, damage to files, or something else."""
    if "SIG" in name:
        trial.send(*(signal.Signals[each] for each in name.rpartition(":")[2].split(",")))
    elif name == "second-process":
        trial.fork({})
    elif name == "clock-set-back":  # files of the last minutes come from the future
        for path in (*trial.corpus.rglob("*"), *trial.run.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, (time.time() + 86400,) * 2)
    elif name == "full-disk":
        return fill(trial)
    return damage(trial, name) if "/" in name else None


def forget(comparison: Path, copy: Path) -> None:
    """A copy of a finished comparison in which one run is finished and the others not begun."""
    shutil.copytree(comparison, copy)
    record = Comparison.read(copy / "comparison.json")
    kept = record.evaluations["folder"].iloc[0]
    rows = record.evaluations[record.evaluations["folder"] == kept]
    record.model_copy(update={"evaluations": rows}).write(copy / "comparison.json")
    for path in (copy / "runs").iterdir():
        if not path.name.startswith(kept):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def play(trial: Trial, name: str, seconds: float, expected: dict[str, Any]) -> str:
    """A round; how it went."""
    undo, trial.limit = None, LIMITS.get(name, bool)
    try:
        trial.start()
        time.sleep(trial.draw.uniform(0, seconds))
        undo = strike(trial, name)
        for turn in range(3):
            if trial.wait():
                break
            assert turn < 2, f"stuck: {trial.log.read_text()}"
            if turn == 1:  # what lasted is over
                trial.limit = bool
                (undo or list)()
            trial.start()
        until = time.monotonic() + GRACE
        while trial.others():
            assert time.monotonic() < until, f"orphan: {trial.others()}"
            time.sleep(0.05)
        modes = {path.stat().st_mode & 0o77 for path in trial.run.rglob("*")}
        assert name != "umask" or modes == {0}, "umask: it does not hold"
        found = trial.results()
        stay = found["names"] ^ expected["names"]
        assert not stay, f"leftover or missing: {stay}"
        differing = [name for name in expected if found.get(name) != expected[name]]
        assert not differing, f"differs: {differing}"
    except AssertionError as error:
        return str(error)
    except (OSError, ValueError) as error:
        return f"error: {error!r}"
    finally:
        for pid in (*(process.pid for process in trial.processes), *trial.others()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if name == "full-disk" and undo:
            undo()
    return "refused, then identical" if trial.refused else "identical"


def main() -> None:
    """Run it all; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="decides a round, but for the moment")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    sys.modules["altair"] = None  # type: ignore[assignment] (a report takes longer than all else)
    processes._start = Forked  # type: ignore[assignment]
    # A budget in steps asks nothing of the measured seconds.
    calibration.ROUNDS, calibration.PATIENCE = 1, 0.0
    calibration._ask = lambda what, request, *_: [calibration._answer(what, request)]
    rows, alone = [], {}
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adversary ü ")))
        text, corpus, disk = place / "text.txt", place / "corpus", place / "disk"
        write_factbook(text)
        text.write_text(text.read_text("utf-8")[:150_000], "utf-8")
        build = ["corpus", corpus, "--text", text, "--vocab-size", "512", "--validation", "0.3"]
        subprocess.run([sys.executable, "-m", "stackbert", *build], check=True)
        # Loads what a run loads, and measures what it measures, before anything is forked.
        autotune.matrix_rate = functools.cache(autotune.matrix_rate)
        pretrain(load_recipe("demo", TINY), corpus=corpus, out=place / "first")
        disk.mkdir()
        options = ["-t", "tmpfs", "-o", "size=32m,nr_inodes=500", "tmpfs"]
        subprocess.run(["mount", *options, disk], check=True)
        stack.callback(subprocess.run, ["umount", disk], check=True)
        for number in range(-len(KINDS), given.rounds):  # the first are left alone
            name, seed = NAMES[number % len(NAMES)], f"{given.seed} {number}"
            kind = name.partition(":")[0] if ":" in name else "run"
            kind = KINDS[number] if number < 0 else kind
            trial, begun = Trial(disk / "it", place, seed, kind), time.monotonic()
            if number < 0:
                trial.start()
                assert trial.wait(), trial.log.read_text()
                alone[kind] = time.monotonic() - begun, trial.results()
                if kind == "compare":
                    forget(trial.run, place / "begun")
            else:
                rows.append((name, play(trial, name, *alone[kind])))
                print(f"{number:>5} {name}: {rows[-1][1]}", flush=True)
            shutil.rmtree(trial.folder)
    table = pd.DataFrame(rows, columns=["disturbance", "outcome"])
    table.outcome = table.outcome.str.partition(":")[0]
    print(pd.crosstab(table.disturbance, table.outcome, margins=True).to_string())
    sys.exit(not set(table.outcome) <= GOOD)


if __name__ == "__main__":
    main()
