"""A small finished run, with growths whose jump can be seen."""

import shutil
from pathlib import Path

import pytest

from browser_helpers import browser, visit  # noqa: F401 (fixtures)
from tiny_runs import tiny_recipe


@pytest.fixture(scope="session")
def run(finished) -> Path:
    stages = [{"depth": 2, "steps": 12}, {"depth": 4, "steps": 8}, {"depth": 8, "steps": 8}]
    fields = {"growth__operator": "random", "evaluation__every_steps": 4, "log_every": 2}
    return finished(tiny_recipe(stages=stages, **fields))


@pytest.fixture
def stopped(run, tmp_path) -> Path:
    """The run as a kill in its second stage leaves it."""
    folder = shutil.copytree(run, tmp_path / "stopped")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = next(place for place, line in enumerate(lines) if '"step": 16' in line)
    (folder / "metrics.jsonl").write_text("".join(lines[:kept]))
    return folder
