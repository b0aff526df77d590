"""What was recorded of the code before it was rebuilt, and how results are compared with it."""

import json
import math
from pathlib import Path
from typing import Any

import inputs
import pytest

from stackbert.recipe import Recipe
from stackbert.recipes import parse_recipe

EXPECTED: dict[str, Any] = json.loads(Path(__file__).with_name("expected.json").read_text("utf-8"))
ANYWHERE, HERE = EXPECTED["anywhere"], EXPECTED["here"]
SAME_MACHINE = inputs.fingerprint() == EXPECTED["fingerprint"]


def recipe_of(raw: dict[str, Any]) -> Recipe:
    return parse_recipe(raw, "golden")


def agree(found, expected, tolerance: float, where: str = "") -> None:
    """Compare plain values: floats to a relative tolerance, everything else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            agree(found[key], expected[key], tolerance, f"{where}, {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, pair in enumerate(zip(found, expected, strict=True)):
            agree(*pair, tolerance, f"{where}, {place}")
    elif isinstance(found, float) and math.isnan(found):
        assert expected is None, where
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), where
    else:
        assert found == expected, where


def agree_here(found, expected, tolerance: float, where: str = "") -> None:
    """The same, to the last bit on the record's machine; elsewhere digests say nothing."""
    if SAME_MACHINE:
        agree(found, expected, 0.0, where)
    else:
        agree(_without_digests(found), _without_digests(expected), tolerance, where)


def _without_digests(value):
    if isinstance(value, dict):
        return {key: _without_digests(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_digests(each) for each in value]
    return None if isinstance(value, str) and len(value) == 16 else value
