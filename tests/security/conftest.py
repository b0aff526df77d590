from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from security_helpers import BENCHMARKS, RECIPE, TEXT
from stackbert.recipe_files import parse_recipe

import stackbert as sb


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> sb.Corpus:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return sb.build_corpus(
        folder / "corpus", text=[folder / "text.txt"], vocab_size=128, validation=0.2
    )


@pytest.fixture(scope="module")
def finished(corpus: sb.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never changed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    sb.pretrain(parse_recipe(RECIPE, "tiny.yaml"), corpus=corpus, out=run)
    return run


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Folders of each kind as the fuzzer's readers prepare them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    results: ModuleType = __import__("fuzz_results")
    kinds = {
        "comparison": results.Comparison,
        "attention": results.Attention,
        "study": results.Study,
    }

    def prepare(kind: str) -> Path:
        kinds[kind]().prepare(tmp_path)
        return tmp_path / kind

    return prepare
