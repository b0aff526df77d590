"""Frozen dataclasses with numpy arrays to plain JSON values; `stored.stored` takes them back."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stackbert.errors import UserError
from stackbert.files import explaining_os_errors
from stackbert.stored import parse_json

DIGITS = 6
"""Decimals kept: far below what a measurement over some hundred sentences can tell apart."""


def to_plain(value: Any) -> Any:  # noqa: ANN401 (any field of a result)
    """Dataclasses to objects, arrays and tuples to lists, floats rounded to `DIGITS` decimals."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: to_plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, np.ndarray):
        rounded = np.round(value.astype(np.float64), DIGITS) if value.dtype.kind == "f" else value
        return rounded.tolist()
    if isinstance(value, tuple | list):
        return [to_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: to_plain(each) for key, each in value.items()}
    if isinstance(value, float | np.floating):
        return round(float(value), DIGITS)
    if isinstance(value, np.integer):
        return int(value)
    return value


def read_json(path: Path) -> Any:  # noqa: ANN401
    """The value that a JSON file holds.

    Raises:
        UserError: the file is missing, cannot be read or is not JSON.
    """
    with explaining_os_errors(f"reading {path}"):
        content = path.read_bytes()
    try:
        return parse_json(content)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
