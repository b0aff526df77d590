"""Corpora, finished runs and a command line that tests share; hypothesis without a clock."""

import functools
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings

from stackbert.corpus.build import build_corpus
from stackbert.corpus.store import Corpus
from stackbert.pretraining import autotune
from stackbert.pretraining.run import pretrain
from stackbert.recipe import Recipe

# Shared machines are slow now and then; a test must not fail for it.
settings.register_profile("stackbert", deadline=None, max_examples=50)
settings.load_profile("stackbert")

autotune.matrix_rate = functools.cache(autotune.matrix_rate)  # measured once a session
torch.set_num_threads(1)  # so that all runs round in the same way
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.fsync = lambda _: None  # no test can cut the power, and a tiny run would wait for 16 of them


def pytest_collection_finish() -> None:
    gc.freeze()  # each run collects garbage; what is loaded by now it does not look through


@pytest.fixture(scope="session")
def factbook_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The beginnings of 64 articles of the CIA World Factbook: some 110,000 training tokens."""
    from stackbert.demo import write_factbook

    folder: Path = tmp_path_factory.mktemp("factbook")
    write_factbook(folder / "all.txt")
    articles = (folder / "all.txt").read_text("utf-8").split("\n\n")
    cut = "\n\n".join(article[:6000] for article in articles[::4])
    (folder / "cut.txt").write_text(cut, encoding="utf-8")
    return build_corpus(
        folder / "corpus", text=[folder / "cut.txt"], vocab_size=1024, validation=0.1
    )


TOPICS = ("river", "harbour", "mountain", "library", "railway", "market", "garden", "bridge")


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """80 documents of made-up facts: 128 word pieces, some 2,000 tokens."""
    documents = [
        f"The {topic} of town {n} was opened in {1800 + n}. People came from {n} villages to see "
        f"it. A second {topic} followed {n} years later, larger and more expensive."
        for n, topic in enumerate(TOPICS * 10)
    ]
    folder: Path = tmp_path_factory.mktemp("tiny")
    (folder / "all.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return build_corpus(
        folder / "corpus", text=[folder / "all.txt"], vocab_size=128, validation=0.2
    )


@pytest.fixture(scope="session")
def finished(
    tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Recipe], Path]:
    """An undisturbed run of a recipe, made when it is first asked for; only to be read."""
    runs: dict[str, Path] = {}

    def run(recipe: Recipe) -> Path:
        key = recipe.to_yaml()
        if key not in runs:
            folder = tmp_path_factory.mktemp("finished") / "run"
            pretrain(recipe, corpus=tiny_corpus, out=folder)
            runs[key] = folder
        return runs[key]

    return run


@pytest.fixture
def stackbert(monkeypatch, capsys):
    """Runs the command line as a shell would; gives exit code, output and errors."""
    from stackbert.__main__ import main

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["stackbert", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    yield run
    for number, handler in before.items():  # of a process of its own
        signal.signal(number, handler)
