"""Frozen dataclasses with numpy arrays to plain JSON values and back."""

import json
import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from stackbert.errors import UserError
from stackbert.files import explaining_os_errors

DIGITS = 6
"""Decimals kept: far below what a measurement over some hundred sentences can tell apart."""

T = TypeVar("T")


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


def from_plain(kind: type[T], value: Any) -> T:  # noqa: ANN401
    """What `to_plain` gave, as the dataclass `kind` again.

    Raises:
        KeyError, TypeError, ValueError: it is not what `to_plain` gives for `kind`.
    """
    hints = get_type_hints(kind)
    return kind(**{each.name: _field(hints[each.name], value[each.name]) for each in fields(kind)})  # type: ignore[arg-type]


def _field(hint: Any, value: Any) -> Any:  # noqa: ANN401
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _field(next(each for each in arguments if each is not type(None)), value)
    if origin is np.ndarray:
        (scalar,) = get_args(arguments[1])
        return np.asarray(value, dtype=scalar)
    if origin is tuple:
        return tuple(_field(arguments[0], each) for each in value)
    if origin is dict:
        return dict(value)
    if isinstance(hint, type) and is_dataclass(hint):
        return from_plain(hint, value)
    kinds = (int, float) if hint is float else (hint,)
    if not isinstance(value, kinds):
        raise TypeError(f"{type(value).__name__} in place of {hint.__name__}")
    return value


def read_json(path: Path) -> Any:  # noqa: ANN401
    """The value that a JSON file holds.

    Raises:
        UserError: the file is missing, cannot be read or is not JSON.
    """
    with explaining_os_errors(f"reading {path}"):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except ValueError as error:  # also of bytes that are no text
        raise UserError(f"{path} is not JSON: {error}.") from error
