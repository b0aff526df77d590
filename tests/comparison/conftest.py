"""Real comparisons of tiny models, each made once and looked at by many tests."""

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from comparison_helpers import BUDGET, REFEREE, STOPPED_AT, Stopped, stop_at, tiny_recipe

import stackbert as sb


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This process and its children on one core, so that every run has one thread whatever jobs.

    Rounding depends on the number of threads, and a tiny model is fastest on one.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    # Tests that run side by side ("gw0", "gw1", …) spread over the cores.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    os.sched_setaffinity(0, {sorted(allowed)[worker % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, Any, Any]:
    """One core, no GPU, one round of measuring; session-wide fixtures included."""
    with one_core(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr("stackbert.comparison.calibration.ROUNDS", 1)
        return (yield)


@pytest.fixture(scope="session")
def referee_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Variants of which the outcome is known."""
    path = tmp_path_factory.mktemp("variants") / "referee.yaml"
    path.write_text(REFEREE, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def referee(
    factbook_corpus: sb.Corpus, referee_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> sb.Results:
    """Scratch, a variant equal to it, one with half of its budget, and one that diverges."""
    return sb.compare(
        tiny_recipe(),
        corpus=factbook_corpus,
        out=tmp_path_factory.mktemp("referee") / "comparison",
        variants=[str(referee_file)],
        seeds=3,
        budget=BUDGET,
    )


@pytest.fixture(scope="session")
def stopped(factbook_corpus: sb.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """`stackbert compare` of scratch and stack, two at a time, stopped by SIGTERM and called again.

    Its budget and its first seed are those of `referee`.
    """
    place = tmp_path_factory.mktemp("stopped")
    recipe = place / "recipe.yaml"
    recipe.write_text(tiny_recipe().to_yaml(), encoding="utf-8")
    folder = place / "comparison"
    arguments = [
        *("compare", recipe, "--corpus", factbook_corpus.folder, "--out", folder),
        *("--variants", "stack", "--seeds", 1, "--budget", BUDGET, "--jobs", 2),
    ]
    return stop_at(STOPPED_AT, folder, arguments)
