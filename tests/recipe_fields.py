"""Recipes of tests: some fields, and what a test wants otherwise."""

import copy
from collections.abc import Mapping
from typing import Any

from stackbert.recipe import Recipe
from stackbert.recipes import parse_recipe


def recipe_of(raw: Mapping[str, Any], **fields: object) -> Recipe:
    """`recipe_of(TINY, optimizer__lr=1e-3)` sets optimizer.lr."""
    made: Any = copy.deepcopy(dict(raw))
    for name, value in fields.items():
        *parents, last = name.split("__")
        node = made
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return parse_recipe(made, "tiny.yaml")
