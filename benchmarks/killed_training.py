"""A training in processes that can be killed, and its directory as another process sees it."""

import json
import os
import random
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

TOLERANCE = 1e-5
"""Nats by which losses of several ranks may differ from those of one process."""
PATIENCE = 120.0
"""Seconds after which a process that should end counts as stuck."""
GRACE = 60.0
"""Seconds that the processes which are left have to notice it, on a busy machine."""
TIMED = {"seconds", "tokens_per_second", "mfu", "growth_seconds", "wall"}
"""What a clock says of a ledger's line, and no two runs have in common."""


class Training:
    """The processes of a training: one, or one a rank."""

    def __init__(self, command: list[str], log: Path, ranks: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self._processes = []
        with log.open("wb") as file:
            for rank in range(ranks):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
                more = common | own if ranks > 1 else {}
                environment = os.environ | more
                self._processes.append(
                    subprocess.Popen(command, stdout=file, stderr=file, env=environment)
                )

    @property
    def running(self) -> bool:
        """Whether no process has ended yet."""
        return all(process.poll() is None for process in self._processes)

    def kill(self, draw: random.Random) -> str:
        """Kill one process or all; says which."""
        if len(self._processes) == 1:
            victims = [0]
        else:
            victims = draw.choice([[rank] for rank in range(len(self._processes))] + [self._all])
        for rank in victims:
            self._processes[rank].kill()
        return "" if len(self._processes) == 1 else f" (rank {', '.join(map(str, victims))})"

    @property
    def _all(self) -> list[int]:
        return list(range(len(self._processes)))

    def wait(self) -> list[int]:
        """Exit codes, once all have ended.

        Raises:
            subprocess.TimeoutExpired: one does not end.
        """
        return [process.wait(PATIENCE) for process in self._processes]

    def end(self) -> bool:
        """Whether those that are left end by themselves; if not, they are told to."""
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            if all(process.poll() is not None for process in self._processes):
                return True
            time.sleep(0.05)
        for process in self._processes:
            process.terminate()
        return False


class Run:
    """A run directory, read from outside while another process writes it."""

    def __init__(self, folder: Path, command: list[str], ranks: int = 1) -> None:
        self.folder = folder
        self.ranks = ranks
        self._command = [*command, "--out", str(folder)]
        self._log = folder.with_name(folder.name + ".log")

    def start(self) -> Training:
        """Start the training, or go on with it."""
        return Training(self._command, self._log, self.ranks)

    @property
    def log(self) -> str:
        """What the last process said."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def rows(self) -> list[dict[str, Any]]:
        """The ledger's whole lines."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def steps(self) -> int:
        """The step of the ledger's last line."""
        rows = self.rows()
        return rows[-1]["step"] if rows else 0

    def checkpoints(self) -> list[int]:
        """Steps of the whole checkpoints."""
        folders = (self.folder / "checkpoints").glob("step-????????")
        return sorted(int(folder.name.removeprefix("step-")) for folder in folders)

    def writing_checkpoint(self) -> bool:
        """Whether a checkpoint is half-written."""
        return any((self.folder / "checkpoints").glob("*.partial"))

    def exporting(self) -> bool:
        """Whether the model is half-written."""
        return (self.folder / "model.partial").exists()

    def finished(self) -> bool:
        """Whether the model is there."""
        return (self.folder / "model").exists()

    def at_work(self) -> bool:
        """Whether the last process got beyond loading."""
        return "resuming at" in self.log or "step 0:" in self.log

    def phase(self, boundaries: tuple[int, ...]) -> str:
        """Where a killed process stood, as far as its directory tells."""
        if self.finished():
            return "after the export"
        if self.exporting():
            return "export"
        if not (self.folder / "run.json").exists():
            return "start-up, no run yet"
        if not self.at_work():
            return "start-up, loading"
        if self.writing_checkpoint():
            return "checkpoint"
        last = self.rows()[-1:]
        if last and last[0]["kind"] == "growth":
            return "step after growth"
        if last and last[0]["step"] in boundaries and last[0]["step"] in self.checkpoints():
            return "growth"
        return "step or evaluation"

    def result(self) -> dict[str, bytes]:
        """The bytes of everything that must be equal after kills of a single process."""
        last = self.folder / "checkpoints" / f"step-{self.checkpoints()[-1]:08d}"
        ledger = [{k: v for k, v in row.items() if k not in TIMED} for row in self.rows()]
        return {
            "exported model": (self.folder / "model" / "model.safetensors").read_bytes(),
            "last checkpoint's model": (last / "model.safetensors").read_bytes(),
            "last checkpoint's optimiser": (last / "optimizer.safetensors").read_bytes(),
            "ledger without its clock": json.dumps(ledger).encode(),
        }

    def differences(self, alone: "Run") -> list[str]:
        """What is not as in the undisturbed run."""
        if self.ranks == 1:
            got, expected = self.result(), alone.result()
            return [what for what in expected if got[what] != expected[what]]
        rows, others = self.rows(), alone.rows()
        found = []
        if [(r["kind"], r["step"]) for r in rows] != [(r["kind"], r["step"]) for r in others]:
            found.append("the ledger's lines")
        far = [
            abs(row["loss"] - other["loss"])
            for row, other in zip(rows, others, strict=False)
            if "loss" in row and "loss" in other
        ]
        if max(far) > TOLERANCE:
            found.append(f"the losses (by {max(far):.1e})")
        return found
