import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stackbert.corpus.build import build_corpus
from stackbert.corpus.store import Corpus

SYLLABLES = ["ka", "lo", "mi", "ter", "san", "du", "pre", "ving", "or", "est"]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """500 small documents, all different, of a few paragraphs and sentences each."""
    draw = random.Random(0)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(400)]

    def sentence() -> str:
        return " ".join(draw.choices(words, k=draw.randint(3, 12))).capitalize() + "."

    def paragraph() -> str:
        return " ".join(sentence() for _ in range(draw.randint(1, 4)))

    return ["\n".join(paragraph() for _ in range(draw.randint(1, 3))) for _ in range(500)]


@pytest.fixture(scope="session")
def text_file(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "all.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("corpora") / "corpus"
    return build_corpus(out, text=[text_file], vocab_size=256, validation=0.1)


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Corpus]:
    """build_corpus of some documents, written to a file, with a tenth of them held out."""

    def run(documents: list[str], name: str = "built", **options: object) -> Corpus:
        path = tmp_path / f"{name}.txt"
        path.write_text("\n\n".join(documents), encoding="utf-8")
        settings: dict[str, object] = {"validation": 0.1} | options
        return build_corpus(tmp_path / name, text=[path], **settings)  # type: ignore[arg-type]

    return run


@pytest.fixture
def document_ids() -> Callable[[Corpus, str], list[list[int]]]:
    """The documents of a side as lists of ids, separators included."""

    def read(corpus: Corpus, side: str) -> list[list[int]]:
        stream = getattr(corpus, side)
        ids = stream.read(0, len(stream))
        ends = np.flatnonzero(ids == corpus.vocabulary.sep) + 1
        return [part.tolist() for part in np.split(ids, ends[:-1])]

    return read
