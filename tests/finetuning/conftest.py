"""Tiny models and made data, each written once."""

from pathlib import Path

import pytest
from finetuning_helpers import rte, save, sst2

from tiny_encoders import tiny_encoder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three tiny encoders of different seeds."""
    folder = tmp_path_factory.mktemp("models")
    names = enumerate(("one", "two", "three"))
    return [save(folder / name, tiny_encoder(seed=seed)) for seed, name in names]


@pytest.fixture(scope="session")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2, which they learn, and RTE, which nothing can."""
    return rte(sst2(tmp_path_factory.mktemp("glue")))
