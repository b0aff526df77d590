"""JSON that StackBERT wrote itself, read back into the dataclass that it was made from.

Such a file may have been damaged, or made by somebody else's hand. So every value must have its
field's type before anything is done with it; what is wrong is found here and not in the middle of a
run or of a report.
"""

import functools
import json
import math
import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

LARGEST = 10**36
"""Of an integer: far above any count of bytes, tokens or FLOPs, and no trouble as a float."""

T = TypeVar("T")


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401 (JSON is any value)
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, no UTF-8, or nested deeper than anything that StackBERT writes.
    """
    try:
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def stored(kind: Callable[..., T], value: Any, *, partial: bool = False) -> T:  # noqa: ANN401
    """A dataclass from the JSON form of its `asdict`: every field there, of its type, none besides.

    Args:
        kind: the dataclass; its fields are numbers, strings, booleans, None, literals, tuples,
            dictionaries, `Any`, numpy arrays (stored as lists of lists) and other such dataclasses.
            Each of these can be asked for alone.
        value: from JSON; a field may also hold an instance of its class already.
        partial: fields that have a default may be missing, as in files of older versions.

    Raises:
        ValueError: naming the field that is missing, unknown or of another type; infinity and NaN
            are no numbers.
    """
    if partial and isinstance(value, dict) and isinstance(kind, type):
        value = {**_defaults(kind), **value}
    found: T = _checked(kind, value, "")
    return found


def _defaults(kind: Any) -> dict[str, Any]:  # noqa: ANN401 (a dataclass)
    return {each.name: each.default for each in fields(kind) if each.default is not MISSING}


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:  # noqa: ANN401 (a class, which must be hashable)
    return get_type_hints(kind)


def _checked(hint: Any, value: Any, place: str) -> Any:  # noqa: ANN401
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        _check_finite(value, place)
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (only,) = (each for each in arguments if each is not type(None))
        return _checked(only, value, place)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise ValueError(f"{place} is none of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _tuple(arguments, value, place)
    if origin is dict:
        _need(isinstance(value, dict), value, "an object", place)
        return {key: _checked(arguments[1], each, f"{place}.{key}") for key, each in value.items()}
    if origin is np.ndarray:
        return _array(arguments, value, place)
    if is_dataclass(hint) and isinstance(hint, type) and not isinstance(value, hint):
        return _object(hint, value, place)
    return _plain(hint, value, place)


def _tuple(arguments: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:  # noqa: ANN401
    _need(isinstance(value, list | tuple), value, "a list", place)
    if arguments[-1] is Ellipsis:
        hints = [arguments[0]] * len(value)
    else:
        hints = list(arguments)
        _need(len(value) == len(hints), value, f"a list of {len(hints)}", place)
    pairs = zip(hints, value, strict=True)
    return tuple(_checked(hint, each, f"{place}[{n}]") for n, (hint, each) in enumerate(pairs))


def _check_finite(value: Any, place: str) -> None:  # noqa: ANN401
    parts = [value]
    while parts:
        part = parts.pop()
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"{place} holds what is no number")


def _array(arguments: tuple[Any, ...], value: Any, place: str) -> Any:  # noqa: ANN401
    _need(isinstance(value, list), value, "a list", place)
    (scalar,) = get_args(arguments[1])
    try:
        return np.asarray(value, dtype=scalar)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{place} is no array of {scalar.__name__}: {error}") from None


def _object(kind: Any, value: Any, place: str) -> Any:  # noqa: ANN401
    _need(isinstance(value, dict), value, "an object", place)
    inside = f"{place}." if place else ""
    for field in fields(kind):
        if field.name not in value:
            raise ValueError(f"{inside}{field.name} is missing")
    hints = _hints(kind)
    for name in value:
        if name not in hints:
            raise ValueError(f"there is no field {inside}{name}")
    return kind(**{name: _checked(hints[name], value[name], inside + name) for name in value})


def _plain(hint: Any, value: Any, place: str) -> Any:  # noqa: ANN401
    if hint is float:
        _need(type(value) in (int, float), value, "a number", place)
        _need(-LARGEST <= value <= LARGEST, value, "a number of a possible size", place)
    elif hint is int:
        _need(type(value) is int, value, "a whole number", place)
        _need(-LARGEST <= value <= LARGEST, value, "a number of a possible size", place)
    else:
        _need(isinstance(value, hint), value, f"a {hint.__name__}", place)
    return value


def _need(holds: bool, value: Any, what: str, place: str) -> None:  # noqa: ANN401
    if not holds:
        raise ValueError(f"{place or 'the file'} is not {what} but {str(value)[:40]!r}")
