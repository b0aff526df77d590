"""A tiny recipe, ways to stop a run, and processes of their own to stop and kill.

The processes are forked from a server that has imported torch and transformers once; a fresh
interpreter would spend five seconds on that.
"""

import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stackbert.pretraining.progress import Silent

import stackbert as sb
from recipe_fields import recipe_of

# Whatever is left to the machine or the clock by default is settled here.
TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "type": "megatron-bert",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "stages": [{"depth": 1, "steps": 6}, {"depth": 2, "steps": 6}, {"depth": 4, "steps": 6}],
    "batch": {"sequences": 4, "sequence_length": 16, "micro_batch": 4},
    "optimizer": {"name": "adamw", "lr": 5e-3},
    "schedule": {"warmup_steps": 2},
    "precision": "fp32",
    "compile": False,
    "evaluation": {"sequences": 8, "every_steps": 3},
    "checkpoint": {"every_steps": 3, "every_minutes": None, "keep": 2},
    "log_every": 1,
}
TOTAL = 18
GROWTHS = (6, 12)
DEPTHS = (1, 2, 4)


def tiny_recipe(**fields: object) -> sb.Recipe:
    """The tiny recipe; `optimizer__name="muon"` sets optimizer.name."""
    return recipe_of(TINY, **fields)


class Crash(Exception):
    """What a test raises in the middle of a run."""


def crash() -> None:
    raise Crash


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


class At(Silent):
    """A reporter that does something when a step is reported."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self._step = step
        self._action = action

    def step(self, done: int, total: int, text: str) -> None:
        if done == self._step:
            self._action()


class Listening(Silent):
    """A reporter that keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def checkpoints(run: Path) -> dict[int, Path]:
    """A run's checkpoints by their step."""
    found = sorted((run / "checkpoints").glob("step-????????"))
    return {int(path.name.removeprefix("step-")): path for path in found}


def weights(run: Path) -> dict[str, bytes]:
    """The bytes that a finished run's tensors are made of."""
    last = checkpoints(run)[max(checkpoints(run))]
    return {
        "exported": (run / "model" / "model.safetensors").read_bytes(),
        "model": (last / "model.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "config": (last / "config.json").read_bytes(),
    }


_TIMED = {"seconds", "tokens_per_second", "mfu", "growth_seconds", "wall"}


def untimed_ledger(run: Path) -> list[dict[str, Any]]:
    """The ledger without what a clock said."""
    rows = sb.read_ledger(run)
    return [{key: row[key] for key in row if key not in _TIMED} for row in rows]


_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "stackbert.pretraining.run",
        "stackbert.cli",
        "transformers.models.megatron_bert.modeling_megatron_bert",
        "rich.progress",
    ]
)
PATIENCE = 120.0
"""Seconds after which a child counts as stuck."""


def _stackbert(
    arguments: Sequence[str],
    output: str,
    largest_file: int | None,
    environment: Mapping[str, str],
) -> None:
    """The command line as a shell would start it, its output in a file."""
    import torch

    from stackbert.__main__ import main

    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["stackbert", *arguments]
    main()


def start_ranks(arguments: Sequence[object], folder: Path, count: int) -> "list[Child]":
    """`torchrun --nproc-per-node COUNT -m stackbert ARGUMENTS`, without torchrun's own process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return [
        Child(
            arguments,
            folder / f"rank-{rank}.txt",
            environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


class Child:
    """`stackbert ARGUMENTS` in a process of its own."""

    def __init__(
        self,
        arguments: Sequence[object],
        output: Path,
        *,
        largest_file: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._output = output
        self._output.write_text("")
        self._process = _SERVER.Process(
            target=_stackbert,
            args=([str(a) for a in arguments], str(output), largest_file, environment or {}),
            daemon=True,
        )
        self._process.start()

    def wait(self) -> int:
        """Its exit code; minus the signal's number if a signal ended it."""
        self._process.join(PATIENCE)
        code = self._process.exitcode
        assert code is not None, f"still running after {PATIENCE:.0f} s: {self.output}"
        return code

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Whether `condition` came true before the process ended."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if not self._process.is_alive():
                return condition()
            assert time.monotonic() < deadline, self.output
            time.sleep(0.001)
        return True

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()
