"""Two small runs on the World Factbook, and a run that was stopped on its way."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import stackbert as sb
from browser_helpers import browser, visit  # noqa: F401 (fixtures)

SMALL = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "stages.0.steps=24",
    "stages.1.steps=12",
    "stages.2.steps=12",
    "batch.sequences=8",
    "batch.sequence_length=32",
    "batch.micro_batch=8",
    "schedule.warmup_steps=4",
    "evaluation.every_steps=4",
    "evaluation.sequences=16",
    "log_every=2",
    "precision=fp32",
    "compile=false",
]


@pytest.fixture(scope="session")
def train(
    factbook_corpus: sb.Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Trains the demo's recipe in small; gives the run directory."""

    def run(name: str, *overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / name
        recipe = sb.load_recipe("demo", [*SMALL, *overrides])
        sb.pretrain(recipe, corpus=factbook_corpus, out=folder)
        return folder

    return run


@pytest.fixture(scope="session")
def run(train: Callable[..., Path]) -> Path:
    """2 → 4 → 8 layers. Fresh layers on top make the loss jump at each growth."""
    return train("stacked", "growth.operator=random")


@pytest.fixture(scope="session")
def other_run(train: Callable[..., Path]) -> Path:
    """Another recipe: 2 layers throughout."""
    return train("shallow", "stages=[{depth: 2, steps: 48}]", "seed=1")


@pytest.fixture(scope="session")
def stopped_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A copy of the run as a kill after so many lines of its ledger leaves it."""

    def stopped(lines: int) -> Path:
        folder = tmp_path_factory.mktemp("stopped") / "run"
        folder.mkdir()
        for name in ("run.json", "recipe.yaml"):
            shutil.copy(run / name, folder)
        kept = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:lines]
        (folder / "metrics.jsonl").write_bytes(b"".join(kept) + b'{"kind": "st')
        return folder

    return stopped
