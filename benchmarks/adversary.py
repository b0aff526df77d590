"""Disturb a tiny run at a random moment, run the same command again, and look at its end.

    python benchmarks/adversary.py --rounds 1000
    python benchmarks/adversary.py --only SIGKILL --only damaged-text --rounds 50

A round is a run in one process or two, a disturbance, and the command again: once while the
disturbance lasts, then without it. It must end with the bits of an undisturbed run, and a process
that does not get there must say why in a sentence. A traceback, a hang, a step lost before the
newest checkpoint or a half-written file are failures. Processes are forked from this one, in which
all is imported. Seed and number decide a round, but for the moment. Exit code 1 if one failed.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stackbert.__main__ import main as stackbert
from stackbert.demo import write_factbook
from stackbert.pretraining.run import pretrain  # noqa: F401 (so that the command finds it loaded)

TINY = [
    "model={type: bert, hidden_size: 16, num_attention_heads: 2, intermediate_size: 32}",
    "stages=[{depth: 1, steps: 8}, {depth: 2, steps: 8}]",
    *("batch={sequences: 4, sequence_length: 32}", "schedule.warmup_steps=1", "log_every=1"),
    *("evaluation={sequences: 4, every_steps: 4}", "model.hidden_dropout_prob=0.1"),
    *("checkpoint={every_steps: 2, every_minutes: null, keep: 3}", "optimizer.name=adamw"),
    *("precision=fp32", "compile=false"),
]
TIMED = {"seconds", "tokens_per_second", "mfu", "growth_seconds", "wall"}  # by a clock
HANGS, ALONE = 60.0, 5.0
"""Seconds a process may take; and in start-up, without the other rank, until it is ended."""


class Trial:
    """A run, and the processes that write it."""

    def __init__(self, folder: Path, corpus: Path, seed: str, ranks: int) -> None:
        self.folder, self.draw, self.ranks = folder, random.Random(seed), ranks
        self.run, self.corpus, self.log = (
            folder / "run",
            folder / "corpus",
            corpus.with_name("log.txt"),
        )
        shutil.copytree(corpus, self.corpus)
        self.limit: Callable[[random.Random], object] | None = None
        self.processes: list[ForkProcess] = []
        self.refused = self.damaged = self.known = 0  # the last two: steps of checkpoints

    def start(self) -> None:
        """The command, in a process for each rank."""
        self.known = max([0, *(step for step in self.checkpoints() if step != self.damaged)])
        self.processes, self.damaged = [], 0
        self.log.write_bytes(b"")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        for rank in map(str, range(self.ranks)):
            self.fork(shared | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(self.ranks)})

    def fork(self, environment: dict[str, str]) -> None:
        """The command in one process."""
        words = ["pretrain", "demo", "--corpus", str(self.corpus), "--out", str(self.run)]

        def command() -> None:
            log = os.open(self.log, os.O_APPEND | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
            os.environ.update(environment)
            (self.limit or bool)(self.draw)
            sys.argv = ["stackbert", *words, *(f"--set={each}" for each in TINY)]
            stackbert()

        self.processes.append(multiprocessing.get_context("fork").Process(target=command))
        self.processes[-1].start()

    def send(self, *numbers: int) -> None:
        """Signals, to one or more of the processes that are left."""
        left = [process for process in self.processes if process.is_alive()]
        for process in self.draw.sample(left, self.draw.randint(1, len(left))) if left else []:
            for number in numbers:
                os.kill(process.pid or 0, number)
                time.sleep(0.2 if number == signal.SIGSTOP else 0.0)

    def wait(self) -> list[int]:
        """Exit codes of all processes, if they have ended in a way that is right."""
        begun = time.monotonic()
        while any(process.is_alive() for process in self.processes):
            time.sleep(0.004)
            starts = not re.search("resuming at|step 0:", self.log.read_text())
            is_lonely = starts and any(process.exitcode for process in self.processes)
            if time.monotonic() > begun + (ALONE if is_lonely else HANGS):
                self.send(KILL)  # in start-up torchrun would do it, too
                assert is_lonely, f"a process hangs: {self.log.read_text()}"
        said, codes = self.log.read_text(), [process.exitcode or 0 for process in self.processes]
        sentences = re.findall(r"^stackbert: .*\.$", said, re.MULTILINE)
        may_be_silent = self.ranks > 1 or not said  # one speaks for all; its output is closed
        assert "Traceback" not in said, said
        assert sentences or may_be_silent or set(codes) <= {0, -9}, f"{codes}, no sentence: {said}"
        resumed = int((re.findall(r"resuming at step (\d+)", said) or ["99"])[0])
        lost = resumed < self.known or (self.known and "step 0:" in said)
        assert not lost, f"steps before {self.known} are lost: {said}"
        self.refused += bool({1, 2} & set(codes))
        return codes

    def checkpoints(self) -> dict[int, Path]:
        """By their step."""
        return {int(p.name[5:]): p for p in self.run.glob("checkpoints/step-????????")}

    def results(self) -> dict[str, Any]:
        """What must be equal: files' bytes, and the ledger without its clock."""
        last, model = max(self.checkpoints().values()), self.run / "model"
        files = [last / "model.safetensors", last / "optimizer.safetensors"]
        files += [model / "model.safetensors", model / "tokenizer.json"]
        lines = map(json.loads, (self.run / "metrics.jsonl").read_bytes().splitlines())
        ledger = [{k: v for k, v in line.items() if k not in TIMED} for line in lines]
        return {"ledger": ledger} | {f"{p.parent.name}/{p.name}": p.read_bytes() for p in files}


Undo = Callable[[], object] | None
KILL, TERM = signal.SIGKILL, signal.SIGTERM


def damage(trial: Trial, pattern: str) -> Undo:
    """Another bit in a file of the corpus, or of a run that was killed; or less of it, or none."""
    if in_run := pattern.startswith("run"):
        trial.send(KILL)
        trial.wait()
    if not (paths := sorted(path for path in trial.folder.glob(pattern) if path.is_file())):
        return None
    path = trial.draw.choice(paths)
    content = path.read_bytes()
    at, way = trial.draw.randrange(len(content)), trial.draw.randrange(3)
    if way == 0:
        path.unlink()
    elif path.suffix == ".jsonl" or (way == 1 and in_run):  # nothing secures the ledger's digits
        os.truncate(path, at)
    else:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([content[at] ^ 1 << trial.draw.randrange(8)]))
    if "step" not in pattern:
        return lambda: path.write_bytes(content)
    trial.damaged = int(path.parent.name[5:])
    return None


def move(trial: Trial) -> Undo:
    """The run's folder gets another name, and back the old one."""
    away = trial.run.with_name("away")
    with contextlib.suppress(FileNotFoundError):
        trial.run.rename(away)
    return lambda: away.exists() and (shutil.rmtree(trial.run), away.rename(trial.run))


def fill(trial: Trial) -> Undo:
    """The disk has no byte left, or no inode."""
    size, disk = trial.draw.choice((0, 1 << 18)), trial.folder.parent
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (disk / f"{number}.fill").write_bytes(bytes(size))
    return lambda: [path.unlink(missing_ok=True) for path in disk.glob("*.fill")]


def set_clock_back(trial: Trial) -> None:
    """As files of the last minutes look after it: they come from the future."""
    for path in (*trial.corpus.rglob("*"), *trial.run.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (time.time() + 86400,) * 2)


def close_output(draw: random.Random) -> None:
    """As `| head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


def restrict(draw: random.Random) -> None:
    """A limit of the system's: on open files, on the size of one, or on memory beyond that used."""
    used = int(re.findall(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[0]) << 10
    kinds = (resource.RLIMIT_NOFILE, 8, 40), (resource.RLIMIT_FSIZE, 1 << 13, 1 << 16)
    kind, least, most = draw.choice((*kinds, (resource.RLIMIT_DATA, used, used + (1 << 27))))
    resource.setrlimit(kind, (draw.randint(least, most),) * 2)


STRIKES: dict[str, Callable[[Trial], Undo]] = {
    "SIGKILL": lambda trial: trial.send(KILL),
    "SIGTERM": lambda trial: trial.send(TERM),
    "SIGINT": lambda trial: trial.send(signal.SIGINT),
    "SIGHUP": lambda trial: trial.send(signal.SIGHUP),
    "three-signals": lambda trial: trial.send(TERM, TERM, signal.SIGINT),
    "stop": lambda trial: trial.send(signal.SIGSTOP, signal.SIGCONT),
    "ranks-SIGKILL": lambda trial: trial.send(KILL),
    "ranks-SIGTERM": lambda trial: trial.send(TERM),
    "ranks-stop": lambda trial: trial.send(signal.SIGSTOP, signal.SIGCONT),
    "damaged-text": lambda trial: damage(trial, "corpus/*/*.bin"),
    "damaged-tokenizer": lambda trial: damage(trial, "corpus/tokenizer/*"),
    "damaged-checkpoint": lambda trial: damage(trial, "run/checkpoints/step-????????/*"),
    "damaged-ledger": lambda trial: damage(trial, "run/metrics.jsonl"),
    "damaged-record": lambda trial: damage(trial, "run/r*.*"),
    "moved": move,
    "full-disk": fill,
    "clock-set-back": set_clock_back,
    "second-process": lambda trial: trial.fork({}),
}
LIMITS: dict[str, Callable[[random.Random], object]] = {
    "umask": lambda draw: os.umask(0o077),
    "closed-pipe": close_output,
    "limits": restrict,
}


def play(trial: Trial, name: str, seconds: float) -> str:
    """A round; how it went, or AssertionError."""
    trial.limit = LIMITS.get(name)
    trial.start()
    time.sleep(trial.draw.uniform(0, seconds))
    undo = STRIKES.get(name, lambda trial: None)(trial)
    codes = trial.wait()
    for lasts in (True, False):
        if any(codes) or not (trial.run / "model").exists():
            if not lasts:
                trial.limit = None
                (undo or list)()
            trial.start()
            codes = trial.wait()
    assert not any(codes), f"it does not go on: {trial.log.read_text()}"
    paths = list(trial.run.rglob("*"))
    assert not [path for path in paths if path.name.endswith(".partial")], "half-written files"
    assert name != "umask" or not [p for p in paths if p.stat().st_mode & 0o77], "umask"
    return "refused, then identical" if trial.refused else "identical"


def main() -> None:
    """Run it all; see the module's text."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=[*STRIKES, *LIMITS])
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    names = given.only or [*STRIKES, *LIMITS]
    rows, alone, begun = [], {}, time.monotonic()
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adversary ü ")))
        write_factbook(place / "all.txt")
        articles = (place / "all.txt").read_text("utf-8").split("\n\n")
        (place / "text.txt").write_text("\n\n".join(each[:1500] for each in articles[:64]), "utf-8")
        build = ["corpus", place / "corpus", "--text", place / "text.txt", "--vocab-size", "512"]
        build += ["--validation", "0.2"]
        subprocess.run([sys.executable, "-m", "stackbert", *build], check=True)
        (disk := place / "disk").mkdir()
        options = ["-t", "tmpfs", "-o", "size=32m,nr_inodes=500", "tmpfs"]
        subprocess.run(["mount", *options, disk], check=True)
        stack.callback(subprocess.run, ["umount", disk], check=True)
        for ranks in (1, 2):
            trial, start = Trial(disk / str(ranks), place / "corpus", "", ranks), time.monotonic()
            trial.start()
            trial.wait()
            alone[ranks] = trial.results(), time.monotonic() - start
            shutil.rmtree(trial.folder)
        for number in range(given.rounds):
            what, seed = names[number % len(names)], f"{given.seed} {number}"
            ranks = 1 + what.startswith("ranks")
            trial = Trial(disk / str(number), place / "corpus", seed, ranks)
            expected, seconds = alone[ranks]
            try:
                outcome, found = play(trial, what, seconds), trial.results()
                differing = [each for each in expected if found[each] != expected[each]]
                assert not differing, f"another end: {differing}"
            except (AssertionError, OSError, ValueError) as error:
                outcome = "FAILED"
                print(f"--- round {number}, {what}: {error!r}\n", flush=True)
            shutil.rmtree(trial.folder)
            for path in disk.glob("*.fill"):
                path.unlink()
            rows.append((what, outcome))
    table = pd.DataFrame(rows, columns=["disturbance", "outcome"])
    print(pd.crosstab(table.disturbance, table.outcome, margins=True).to_string())
    print(f"{given.rounds} rounds in {time.monotonic() - begun:.0f} s; alone {alone[1][1]:.1f} s.")
    sys.exit("FAILED" in set(table.outcome))


if __name__ == "__main__":
    main()
