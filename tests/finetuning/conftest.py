"""Made data sets in the official layouts, each written once."""

from pathlib import Path

import pytest
from finetuning_files import squad_value, write_glue, write_squad
from finetuning_helpers import build, rte, save, sst2


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLUE's ten tasks, 12 rows in each split. For reading only: the session shares it."""
    return write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="session")
def squad_v1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of v1.1 with 4 questions."""
    return write_squad(tmp_path_factory.mktemp("squad") / "dev-v1.1.json", squad_value("1.1"))


@pytest.fixture(scope="session")
def squad_v2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of v2.0 with 6 questions, 2 of them without an answer."""
    return write_squad(tmp_path_factory.mktemp("squad") / "dev-v2.0.json", squad_value("v2.0"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three tiny encoders of different seeds."""
    folder = tmp_path_factory.mktemp("models")
    return [save(folder / name, build(seed=n)) for n, name in enumerate(("one", "two", "three"))]


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2, which they learn, and RTE, which nothing can."""
    return rte(sst2(tmp_path_factory.mktemp("glue")))
