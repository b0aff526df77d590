"""Disturb a tiny run at a random moment, run the same command again, and look at its end.

    python benchmarks/adversary.py --rounds 1000

A round is a run in one process or two, a disturbance, and the command again: once while the
disturbance lasts, then without it. It must end with the bits of an undisturbed run, and a process
that does not get there must say why in a sentence. A traceback, a hang, a step lost before the
newest checkpoint or a half-written file are failures. Processes are forked from this one, in which
all is imported, on a small tmpfs (so this needs root). Exit code 1 if a round failed.
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
HANGS, ALONE = 60.0, 5.0  # seconds; the second in start-up, where a rank waits for the other
Undo = Callable[[], object] | None


class Trial:
    """A run, and the processes that write it."""

    def __init__(self, folder: Path, corpus: Path, seed: str, ranks: int) -> None:
        self.folder, self.draw, self.ranks = folder, random.Random(seed), ranks
        self.run, self.corpus, self.log = folder / "run", folder / "corpus", corpus / "../log.txt"
        shutil.copytree(corpus, self.corpus)
        self.limit: Callable[[random.Random], object] = bool
        self.processes: list[Any] = []
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
        words = ["pretrain", "demo", f"--corpus={self.corpus}", f"--out={self.run}"]

        def command() -> None:
            sys.stdout = sys.stderr = self.log.open("a", buffering=1)
            os.environ.update(environment)
            self.limit(self.draw)
            sys.argv = ["stackbert", *words, *(f"--set={each}" for each in TINY)]
            stackbert()

        self.processes.append(multiprocessing.get_context("fork").Process(target=command))
        self.processes[-1].start()

    def send(self, *numbers: int) -> None:
        """Signals, to one or more of the processes that are left."""
        left = [process for process in self.processes if process.is_alive()]
        for process in self.draw.sample(left, self.draw.randint(1, len(left))) if left else []:
            for number in numbers:
                os.kill(process.pid, number)
                time.sleep(0.2 if number == signal.SIGSTOP else 0.0)

    def wait(self) -> bool:
        """Until all processes have ended; whether the run is finished. What is wrong is raised."""
        begun = time.monotonic()
        while any(process.is_alive() for process in self.processes):
            time.sleep(0.004)
            starts = not re.search("resuming at|step 0:", self.log.read_text())
            is_lonely = starts and any(process.exitcode for process in self.processes)
            if time.monotonic() > begun + (ALONE if is_lonely else HANGS):
                self.send(signal.SIGKILL)  # in start-up torchrun would do it, too
                assert is_lonely, f"a process hangs: {self.log.read_text()}"
        said, codes = self.log.read_text(), {process.exitcode or 0 for process in self.processes}
        may_be_silent = self.ranks > 1 or not said  # one speaks for all; its output is closed
        is_right = codes <= {0, -signal.SIGKILL} or re.search(
            r"^stackbert: .*\.$", said, re.MULTILINE
        )
        assert "Traceback" not in said, said
        assert is_right or may_be_silent, f"{codes} without a sentence: {said}"
        began = re.findall(r"resuming at step (\d+)|step (0):", said)
        lost = began and int(began[0][0] or 0) < self.known
        assert not lost, f"steps before {self.known} are lost: {said}"
        self.refused += bool({1, 2} & codes)
        return codes == {0} and (self.run / "model").exists()

    def checkpoints(self) -> dict[int, Path]:
        """By their step."""
        return {int(p.name[5:]): p for p in self.run.glob("checkpoints/step-????????")}

    def results(self) -> dict[str, Any]:
        """What must be equal: files' bytes, and the ledger's steps and losses."""
        last, model = max(self.checkpoints().values()), self.run / "model"
        files = [last / "model.safetensors", last / "optimizer.safetensors"]
        files += [model / "model.safetensors", model / "tokenizer.json"]
        lines = map(json.loads, (self.run / "metrics.jsonl").read_bytes().splitlines())
        ledger = [(line["kind"], line["step"], line.get("loss")) for line in lines]
        return {"ledger": ledger} | {f"{p.parent.name}/{p.name}": p.read_bytes() for p in files}


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
    *("ranks:SIGKILL", "ranks:SIGTERM", "ranks:SIGSTOP,SIGCONT", "corpus/*/*.bin"),
    *("corpus/tokenizer/*", "run/checkpoints/step-????????/*", "run/metrics.jsonl", "run/r*.*"),
    *("full-disk", "clock-set-back", "second-process", "umask", "closed-pipe", "limits"),
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
            assert turn < 2, f"it does not go on: {trial.log.read_text()}"
            if turn == 1:  # what lasted is over
                trial.limit = bool
                (undo or list)()
            trial.start()
        assert not list(trial.run.rglob("*.partial")), "half-written files"
        modes = {path.stat().st_mode & 0o77 for path in trial.run.rglob("*")}
        assert name != "umask" or modes == {0}, "the umask does not hold"
        found = trial.results()
        assert found == expected, [each for each in found if found[each] != expected[each]]
    except (AssertionError, OSError, ValueError) as error:
        return f"FAILED: {error!r}"
    finally:
        for process in trial.processes:
            process.kill()
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
    rows, alone = [], {}
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adversary ü ")))
        text, corpus, disk = place / "text.txt", place / "corpus", place / "disk"
        write_factbook(text)
        text.write_text(text.read_text("utf-8")[:150_000], "utf-8")
        build = ["corpus", corpus, "--text", text, "--vocab-size", "512", "--validation", "0.3"]
        subprocess.run([sys.executable, "-m", "stackbert", *build], check=True)
        disk.mkdir()
        options = ["-t", "tmpfs", "-o", "size=32m,nr_inodes=500", "tmpfs"]
        subprocess.run(["mount", *options, disk], check=True)
        stack.callback(subprocess.run, ["umount", disk], check=True)
        for number in range(-2, given.rounds):  # the first two are left alone
            name, seed = NAMES[number % len(NAMES)], f"{given.seed} {number}"
            ranks = -number if number < 0 else 1 + name.startswith("ranks")
            trial, begun = Trial(disk / "it", corpus, seed, ranks), time.monotonic()
            if number < 0:
                trial.start()
                trial.wait()
                alone[ranks] = time.monotonic() - begun, trial.results()
            else:
                rows.append((name, play(trial, name, *alone[ranks])))
                print(f"{number:>5} {name}: {rows[-1][1]}", flush=True)
            shutil.rmtree(trial.folder)
    table = pd.DataFrame(rows, columns=["disturbance", "outcome"])
    table.outcome = table.outcome.str.partition(":")[0]
    print(pd.crosstab(table.disturbance, table.outcome, margins=True).to_string())
    sys.exit("FAILED" in set(table.outcome))


if __name__ == "__main__":
    main()
