"""A recipe of some text."""

import pytest

from stackbert.recipe import Recipe
from stackbert.recipe_files import load_recipe


@pytest.fixture
def load(tmp_path):
    """load_recipe of some YAML text (or bytes) in a file."""

    def run(text: str | bytes, *overrides: str) -> Recipe:
        path = tmp_path / "my.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_recipe(path, overrides)

    return run
