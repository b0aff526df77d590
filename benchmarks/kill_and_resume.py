"""Kill a run again and again, resume it each time, and compare it with one left alone.

    python benchmarks/kill_and_resume.py --kills 20
    python benchmarks/kill_and_resume.py --kills 20 --ranks 2

Every run is `python -m stackbert pretrain` in its own process, every kill a SIGKILL at a random
moment of what it aims at: start-up, a step, a growth, a checkpoint or the export. At the end the
exported model, the last checkpoint's weights and the optimizer's state are compared byte for byte
with those of an undisturbed run, and the ledger line by line without what a clock said.

With several ranks a kill hits one process, or all of them; the others must end by themselves and
say why. The undisturbed run has one process, which adds up in another order, so the ledgers are
compared, with losses within 1e-5. Exit code 1 if anything differs.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from stackbert.corpus.build import build_corpus
from stackbert.demo import write_factbook
from stackbert.recipes import load_recipe

SMALL = [
    *("model.hidden_size=64", "model.intermediate_size=128", "model.hidden_dropout_prob=0.1"),
    "stages=[{depth: 1, steps: 12}, {depth: 2, steps: 12}, {depth: 4, steps: 16}]",
    "schedule={warmup_steps: 5, rewarmup_steps: 2}",
    "evaluation={sequences: 32, every_steps: 6}",
    "checkpoint={every_steps: 3, every_minutes: null}",
    *("log_every=1", "precision=fp32", "compile=false", "batch.sequences=8"),
]
"""The recipe `demo` in seconds instead of minutes, with dropout, which draws random numbers."""
FOR_RANKS = ["model.hidden_dropout_prob=0", "optimizer.eps=1e-4", "optimizer.lr=1e-3"]
"""Ranks drop other units than one process does, and AdamW's first updates are signs of gradients,
which magnify rounding."""
AIMS = ("start-up", "step", "checkpoint", "growth", "export")
TOLERANCE = 1e-5
"""Nats by which losses of several ranks may differ from those of one process."""
TIMED = {"seconds", "tokens_per_second", "mfu", "growth_seconds", "wall"}
"""Fields of a ledger's line that a clock fills."""


class Run:
    """A run directory, watched from outside, and the processes that write it."""

    def __init__(self, folder: Path, command: list[str], ranks: int = 1) -> None:
        self.folder, self.ranks, self._command = folder, ranks, [*command, f"--out={folder}"]
        self._log = folder.with_name(folder.name + ".log")
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the run, or resume it."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(self.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.processes = []
        with self._log.open("wb") as log:
            for rank in map(str, range(self.ranks)):
                own = shared | {"RANK": rank, "LOCAL_RANK": rank} if self.ranks > 1 else {}
                new = subprocess.Popen(self._command, stdout=log, stderr=log, env=os.environ | own)
                self.processes.append(new)

    @property
    def running(self) -> bool:
        """Whether no process has ended yet."""
        return all(process.poll() is None for process in self.processes)

    @property
    def log(self) -> str:
        """What the processes said."""
        return self._log.read_text("utf-8", "replace")

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of the ledger, after one of step 0."""
        ledger = self.folder / "metrics.jsonl"
        lines = ledger.read_bytes().split(b"\n")[:-1] if ledger.exists() else []
        return [{"kind": "", "step": 0}, *map(json.loads, lines)]

    def phase(self) -> str:
        """What the run is doing, or was when it was killed, as far as its folder tells."""
        if (self.folder / "model").exists():
            return "after the export"
        if (self.folder / "model.partial").exists():
            return "export"
        if "resuming at" not in self.log and "step 0:" not in self.log:
            return "start-up"
        if any((self.folder / "checkpoints").glob("*.partial")):
            return "checkpoint"
        return "growth" if self.lines()[-1]["kind"] == "time" else "step"

    def wait(self, seconds: float = 900) -> list[int]:
        """Exit codes. Processes that are left after that time are ended, as torchrun would do."""
        deadline = time.monotonic() + seconds
        while any(p.poll() is None for p in self.processes) and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                if self.phase() != "start-up":  # where they wait for each other
                    sys.exit(f"A process was left and did not end:\n{self.log}")
        return [process.wait() for process in self.processes]

    def results(self) -> dict[str, Any]:
        """What must be equal: files' bytes, and the ledger without its clock."""
        last = max((self.folder / "checkpoints").glob("step-????????"))
        files = [self.folder / "model/model.safetensors", last / "model.safetensors"]
        found: dict[str, Any] = {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in (*files, last / "optimizer.safetensors")
        }
        ledger = [{k: v for k, v in line.items() if k not in TIMED} for line in self.lines()]
        return found | {"metrics.jsonl": ledger}


def differences(run: Run, alone: Run) -> list[str]:
    """What is not as in the undisturbed run."""
    if run.ranks == 1:
        expected = alone.results()
        return [what for what, found in run.results().items() if found != expected[what]]
    a, b = (pd.DataFrame(each.lines()) for each in (run, alone))
    if not a[["kind", "step"]].equals(b[["kind", "step"]]):
        return ["the ledger's lines"]
    far = float((a.loss - b.loss).abs().max())
    print(f"Losses differ by {far:.1e} nats at most.")
    return [f"losses, by {far:.1e}"] if far > TOLERANCE else []


def undisturbed(run: Run) -> dict[str, float]:
    """Train without a kill; seconds within which a kill of each aim has to fall."""
    begun = time.monotonic()
    run.start()
    while run.running and len(run.lines()) == 1:
        time.sleep(0.01)
    start_up = time.monotonic() - begun
    if any(run.wait()):
        sys.exit(f"The undisturbed run failed:\n{run.log}")
    wall, steps = run.lines()[-1]["wall"], run.lines()[-1]["step"]
    print(f"Undisturbed: {steps} steps in {time.monotonic() - begun:.0f} s.")
    step = wall["training"] / steps
    around = {"step": 4 * step, "growth": wall["growth"] / 2 + step, "export": 0.05}
    return {"start-up": start_up, "checkpoint": 0.03, **around}


def strike(run: Run, aim: str, step: int, spread: float, draw: random.Random) -> bool:
    """Start or resume the run and kill it; False if it ended before."""
    run.start()
    while run.running and aim != "start-up":
        if run.lines()[-1]["step"] >= step and run.phase() in (aim, *("step",) * (aim == "growth")):
            break
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, spread))
    killed = run.running
    victims = draw.choice([*[[process] for process in run.processes], run.processes])
    for process in victims:
        process.kill()
    codes = run.wait(60)
    others = [code for code in codes if code != -9]
    if "Traceback" in run.log or (killed and run.ranks == 1 and others):
        sys.exit(f"The run failed (exit codes {codes}):\n{run.log}")
    if killed and 1 in others and "was lost" not in run.log:
        sys.exit(f"A process that was left did not say why it ended:\n{run.log}")
    return killed


def main() -> None:
    """Run it all; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1, help="processes of the killed runs")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    given = parser.parse_args()
    draw, begun, runs, rows, wrong = random.Random(given.seed), time.monotonic(), 0, [], []
    with tempfile.TemporaryDirectory(prefix="kill-and-resume-") as name:
        folder = Path(name)
        write_factbook(folder / "text.txt")
        build_corpus(folder / "corpus", text=folder / "text.txt", vocab_size=1024, validation=0.05)
        settings = [*SMALL, *(FOR_RANKS if given.ranks > 1 else ())]
        recipe = load_recipe("demo", settings)
        moments = {"growth": recipe.growth_steps, "export": [recipe.total_steps]}
        command = [sys.executable, "-m", "stackbert", "pretrain", "demo"]
        command += ["--corpus", str(folder / "corpus"), *(f"--set={each}" for each in settings)]
        alone = Run(folder / "alone", command)
        spread = undisturbed(alone)
        while len(rows) < given.kills:
            runs += 1
            run = Run(folder / f"killed-{runs}", command, given.ranks)
            aims = draw.sample(AIMS * 3, k=min(15, given.kills - len(rows)))
            kills = [(draw.choice(moments.get(a, range(recipe.total_steps))), a) for a in aims]
            for step, aim in sorted(kills):
                if strike(run, aim, step, spread[aim], draw):
                    rows.append((aim, run.phase()))
                    print(f"{len(rows):>4}  {aim} {step} → {run.phase()}", flush=True)
                if (run.folder / "model").exists():
                    break
            run.start()
            if any(run.wait()):
                sys.exit(f"The run could not be resumed:\n{run.log}")
            wrong += differences(run, alone)
    table = pd.DataFrame(rows, columns=["aimed at", "fell into"])
    print(f"\n{pd.crosstab(table['aimed at'], table['fell into']).to_string()}\n")
    found = f"DIFFERENT in {', '.join(wrong)}" if wrong else "equal"
    print(f"{given.kills} kills in {runs} runs, {time.monotonic() - begun:.0f} s: {found}.")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
