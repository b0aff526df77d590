"""Corpora and runs that are made once; sums are rounded as the record's were."""

from collections.abc import Iterator
from pathlib import Path

import inputs
import pytest
import torch
from golden_record import recipe_of

import stackbert as sb
from stackbert.corpus.store import Corpus


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="package")
def corpora(place: Path) -> dict[str, Corpus]:
    wanted = inputs.corpora(place / "text")
    wanted["main"]["strip_accents"] = True  # as it did before it was asked
    return {name: sb.build_corpus(place / name, **wanted[name]) for name in wanted}


@pytest.fixture(scope="package")
def make_run(corpora: dict[str, Corpus], place: Path):
    """The folder of a run of `inputs.RUNS`; each is made once."""

    def make(name: str) -> Path:
        recipe = recipe_of(inputs.RUNS[name])
        return sb.pretrain(recipe, corpus=corpora["main"], out=place / name).folder

    return make
