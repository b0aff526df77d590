"""A real comparison of tiny models, trained once in this process and looked at by many tests."""

from pathlib import Path

import pytest
from comparison_helpers import in_process, tiny_recipe

from stackbert.comparison.compare import Comparison, compare
from stackbert.corpus.store import Corpus

REFEREE = """
same:                     # scratch, its schedule written in another way: no reused runs
  stages: [{depth: 4, steps: 1}]
  schedule: {name: piecewise, points: [[6, 1.0], [120, 0.0]]}
  seeds: 1
half:
  stages: [{depth: 4, steps: 1}]
  schedule: {rewarmup_steps: 1}
  fractions: [0.5]
diverging:
  stages: [{depth: 4, steps: 1}]
  optimizer: {lr: 1.0e+12, eps: 1.0e-7}
  seeds: 1
"""


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are trained in this process, by a table that nobody measured; names of those trained."""
    return in_process(monkeypatch)


@pytest.fixture(scope="session")
def referee(
    factbook_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Comparison]:
    """The folder of scratch, a variant equal to it, one with half of its budget, and one
    that diverges."""
    place = tmp_path_factory.mktemp("referee")
    (place / "referee.yaml").write_text(REFEREE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        in_process(patch)
        comparison = compare(
            tiny_recipe(),
            corpus=factbook_corpus,
            out=place / "comparison",
            variants=[str(place / "referee.yaml")],
            seeds=3,
            budget="30steps",
        )
    return place / "comparison", comparison
