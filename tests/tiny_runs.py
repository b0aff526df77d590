"""Tiny runs: a recipe, ways to stop a run, and forked processes to kill."""

import copy
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stackbert.__main__ import main
from stackbert.batches.batches import Batch, training_plan
from stackbert.corpus.store import Corpus
from stackbert.files import sha256
from stackbert.pretraining.run import pretrain
from stackbert.pretraining.trainer import Trainer
from stackbert.progress import Progress
from stackbert.recipe import Recipe
from stackbert.recipes import parse_recipe

WIDTHS = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"type": "megatron-bert", **WIDTHS},
    "stages": [{"depth": 1, "steps": 4}, {"depth": 2, "steps": 4}],
    "batch": {"sequences": 4, "sequence_length": 16, "micro_batch": 4},
    "optimizer": {"name": "muon", "lr": 5e-3},
    "schedule": {"warmup_steps": 2},
    "precision": "fp32",
    "compile": False,
    "evaluation": {"sequences": 8, "every_steps": 2},
    "checkpoint": {"every_steps": 3, "every_minutes": None, "keep": 2},
    "log_every": 1,
}
TOTAL, GROWTH = 8, 4
PAIRS = {"objective__next_sentence": True, "batch__sequence_length": 24}


def recipe_of(raw: Mapping[str, Any], **fields: object) -> Recipe:
    """`recipe_of(TINY, optimizer__lr=1e-3)` sets optimizer.lr."""
    made: Any = copy.deepcopy(dict(raw))
    for name, value in fields.items():
        *parents, last = name.split("__")
        node = made
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return parse_recipe(made, "tiny.yaml")


def tiny_recipe(**fields: object) -> Recipe:
    return recipe_of(TINY, **fields)


def batches(corpus: Corpus, recipe: Recipe) -> list[Batch]:
    plan = training_plan(recipe, corpus)
    return [plan.batch(step) for step in range(recipe.total_steps)]


class Crash(Exception):
    """What a test raises in the middle of a run."""


def crash() -> None:
    raise Crash


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


class At(Progress):
    """Does something when a step is reported, and keeps what is said."""

    def __init__(self, step: int | None = None, action: Callable[[], object] = crash) -> None:
        self._step, self._action = step, action
        self.said: list[str] = []

    def step(self, done: int, total: int, text: str, left: float | None = None) -> None:
        if done == self._step:
            self._action()

    def say(self, text: str) -> None:
        self.said.append(text)


def break_off(recipe: Recipe, *, at: int, **options: Any) -> None:
    """A run that a crash ends when this step is reported."""
    with pytest.raises(Crash):
        pretrain(recipe, **options, progress=At(at))


def checkpoints(run: Path) -> dict[int, Path]:
    """A run's checkpoints by their step, ascending."""
    found = sorted((run / "checkpoints").glob("step-????????"))
    return {int(path.name.removeprefix("step-")): path for path in found}


_TIMED = {"seconds", "tokens_per_second", "mfu", "growth_seconds", "wall"}


def outcome(run: Path) -> dict[str, Any]:
    """What two runs of one recipe must share: tensors to the bit, and all that no clock said."""
    *_, last = checkpoints(run).values()
    files = (last / "model.safetensors", last / "optimizer.safetensors", last / "config.json")
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {
        **{path.name: sha256(path) for path in files},
        "exported": sha256(run / "model" / "model.safetensors"),
        "ledger": [{k: v for k, v in line.items() if k not in _TIMED} for line in lines],
    }


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def after_step(number: int, action: Callable[[], object]) -> Callable[[], None]:
    """For a child: do something when it has taken the step of this number."""

    def prepare() -> None:
        true = Trainer.step

        def step(trainer: Trainer, at: int, *rest: Any) -> object:
            result = true(trainer, at, *rest)
            if at == number:
                action()
            return result

        Trainer.step = step  # type: ignore[assignment,method-assign]

    return prepare


def send_self(number: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


def command_line(*arguments: object) -> Callable[[], None]:
    """For a child: `stackbert ARGUMENTS`."""

    def run() -> None:
        sys.argv = ["stackbert", *map(str, arguments)]
        main()

    return run


class Child:
    """Calls in a process of its own, with one thread; what they print goes to the file `output`."""

    def __init__(self, output: Path, *calls: Callable[[], object], **environment: object) -> None:
        self._output = output

        def run() -> None:
            os.environ.update({name: str(value) for name, value in environment.items()})
            sys.stdout = sys.stderr = output.open("w", buffering=1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for call in calls:
                call()

        self._process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
        self._process.start()

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code; minus the signal's number if a signal ended it."""
        self._process.join(seconds)
        code = self._process.exitcode
        assert code is not None, f"still running after {seconds} s: {self.output}"
        return code

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()


def pretrain_command(recipe: Recipe, corpus: Corpus, folder: Path) -> tuple[object, ...]:
    """`pretrain` of a recipe, written to `folder`, into `folder`/run."""
    (folder / "tiny.yaml").write_text(recipe.to_yaml())
    options = ("--corpus", corpus.folder, "--out", folder / "run")
    return ("pretrain", folder / "tiny.yaml", *options)


def start_ranks(
    folder: Path, command: Callable[[], None], last: Callable[[], object]
) -> list[Child]:
    """`torchrun --nproc-per-node 2 …`; `last` is called first in the second process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        Child(folder / f"rank-{rank}.txt", *calls, RANK=rank, LOCAL_RANK=rank, **common)
        for rank, calls in enumerate(([command], [last, command]))
    ]
