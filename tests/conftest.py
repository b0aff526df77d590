"""A small real corpus for every test that wants one, and hypothesis without a clock."""

from pathlib import Path

import pytest
from hypothesis import settings

from stackbert import Corpus, build_corpus
from stackbert.factbook import write_factbook
from stackbert.vocabulary import Vocabulary, load_vocabulary

# Shared machines are slow now and then; a test must not fail for it.
settings.register_profile("stackbert", deadline=None)
settings.load_profile("stackbert")


@pytest.fixture(scope="session")
def factbook_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The beginnings of 64 articles of the CIA World Factbook: some 110,000 training tokens."""
    folder: Path = tmp_path_factory.mktemp("factbook")
    write_factbook(folder / "all.txt")
    articles = (folder / "all.txt").read_text("utf-8").split("\n\n")
    cut = "\n\n".join(article[:6000] for article in articles[::4])
    (folder / "cut.txt").write_text(cut, encoding="utf-8")
    return build_corpus(
        folder / "corpus", text=[folder / "cut.txt"], vocab_size=1024, validation=0.1
    )


@pytest.fixture(scope="session")
def factbook_vocabulary(factbook_corpus: Corpus) -> Vocabulary:
    return load_vocabulary(factbook_corpus)
