"""A tiny corpus, and runs of the tiny recipe that nothing stops."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from pretraining_helpers import Child
from stackbert.factbook import write_factbook

import stackbert as sb


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, Any, Any]:
    """On one thread of the CPU, session-wide fixtures included.

    The children have one thread too; a product that several share may round otherwise.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr("torch.cuda.is_available", lambda: False)
        result = yield
    torch.set_num_threads(threads)
    return result


@pytest.fixture(scope="session")
def factbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("factbook") / "all.txt"
    write_factbook(path)
    return path


def build(folder: Path, documents: list[str]) -> sb.Corpus:
    text = folder / "text.txt"
    text.write_text("\n\n".join(documents), encoding="utf-8")
    return sb.build_corpus(folder / "corpus", text=[text], vocab_size=512, validation=0.15)


@pytest.fixture(scope="session")
def documents(factbook: Path) -> list[str]:
    """The beginnings of some articles of the World Factbook."""
    return [text[:3000] for text in factbook.read_text(encoding="utf-8").split("\n\n")[:32]]


@pytest.fixture(scope="session")
def corpus(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> sb.Corpus:
    return build(tmp_path_factory.mktemp("tiny"), documents[:20])


@pytest.fixture(scope="session")
def other_corpus(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> sb.Corpus:
    return build(tmp_path_factory.mktemp("other"), documents[12:])


class Undisturbed:
    """Finished runs, one a recipe, made when they are first asked for; only to be read."""

    def __init__(self, corpus: sb.Corpus, folder: Path) -> None:
        self._corpus = corpus
        self._folder = folder
        self._runs: dict[str, Path] = {}

    def __call__(self, recipe: sb.Recipe) -> Path:
        key = recipe.to_yaml()
        if key not in self._runs:
            run = self._folder / f"run-{len(self._runs)}"
            sb.pretrain(recipe, corpus=self._corpus, out=run)
            self._runs[key] = run
        return self._runs[key]


@pytest.fixture(scope="session")
def undisturbed(corpus: sb.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(corpus, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def train_in_child(tmp_path: Path, corpus: sb.Corpus) -> Callable[..., Child]:
    """`stackbert pretrain` of a recipe on the tiny corpus, in a process of its own."""
    count = 0

    def start(recipe: sb.Recipe, run: Path, *options: object, **limits: Any) -> Child:
        nonlocal count
        count += 1
        path = tmp_path / "recipe-of-child.yaml"
        path.write_text(recipe.to_yaml())
        arguments = ["pretrain", path, "--corpus", corpus.folder, "--out", run, *options]
        return Child(arguments, tmp_path / f"output-{count}.txt", **limits)

    return start
