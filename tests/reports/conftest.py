"""A small finished run on the World Factbook, with growths whose jump can be seen."""

import shutil
from pathlib import Path

import pytest

from browser_helpers import browser, visit  # noqa: F401 (fixtures)
from stackbert.pretraining.run import pretrain
from stackbert.recipes import load_recipe

SMALL = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "stages.0.steps=12",
    "stages.1.steps=8",
    "stages.2.steps=8",
    "batch={sequences: 8, sequence_length: 32, micro_batch: 8}",
    "schedule.warmup_steps=4",
    "evaluation={every_steps: 4, sequences: 16}",
    "log_every=2",
    "precision=fp32",
    "compile=false",
    "growth.operator=random",
]


@pytest.fixture(scope="session")
def run(factbook_corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "stacked"
    pretrain(load_recipe("demo", SMALL), corpus=factbook_corpus, out=folder)
    return folder


@pytest.fixture
def stopped(run, tmp_path) -> Path:
    """The run as a kill in its second stage leaves it."""
    folder = shutil.copytree(run, tmp_path / "stopped")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = next(place for place, line in enumerate(lines) if '"step": 16' in line)
    (folder / "metrics.jsonl").write_text("".join(lines[:kept]))
    return folder
