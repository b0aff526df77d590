"""Recipes as files: shipped or the user's, overridden field by field, wrong ones explained."""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stackbert.errors import UserError
from stackbert.recipe import Recipe

_MOST_VALUES = 10_000
"""In a recipe file; more come only of aliases of aliases of aliases."""
_MOST_CHARACTERS = 1 << 18
"""Of a recipe file: a hundred times the longest that comes along. It takes seconds to parse."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def shipped_recipes() -> dict[str, Recipe]:
    """The recipes that come with StackBERT, by name."""
    folder = resources.files("stackbert") / "recipes"
    files = sorted(f.name for f in folder.iterdir() if f.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): load_recipe(name.removesuffix(".yaml")) for name in files}


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load a shipped recipe by its name or any recipe by its path.

    Args:
        name: "small-cpu", or the path of a YAML file.
        overrides: "field.subfield=value" items; the value is read as YAML, a stage is addressed
            by its place (`stages.0.steps=100`).

    Raises:
        UserError: there is no such recipe, it is not YAML, or a field is unknown or impossible;
            the message names the field.

    Example:
        >>> import stackbert as sb
        >>> sb.load_recipe("small-cpu", ["seed=3"]).seed
        3
    """
    text, where = _recipe_text(name)
    raw = parse_yaml(text, where)
    if not isinstance(raw, dict):
        raise UserError(f"{where} is not a recipe: it must be a mapping of fields to values.")
    for override in overrides:
        _apply_override(raw, override)
    return parse_recipe(raw, where)


def parse_recipe(raw: dict[Any, Any], where: str) -> Recipe:
    """Validate plain values as a recipe.

    Args:
        raw: what YAML or JSON gave.
        where: named at the head of the error ("my.yaml").

    Raises:
        UserError: naming every field that is wrong.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        # A sequence whose items were refused is also called too short; once is enough.
        items = [e for e in error.errors() if e["type"] != "too_short" or not e["input"]]
        problems = "; ".join(_problem(raw, item) for item in items)
        raise UserError(f"{where}: {problems}.") from error


def read_yaml(path: Path) -> Any:  # noqa: ANN401 (plain YAML values)
    """What a YAML file of the user's holds: mappings, lists and plain values.

    Raises:
        UserError: it cannot be read, is not YAML, or gives a field twice.
    """
    return parse_yaml(_text_of(path), str(path))


def parse_yaml(text: str, where: str) -> Any:  # noqa: ANN401 (plain YAML values)
    """What a YAML text of the user's holds.

    Args:
        text: the text.
        where: named at the head of the error.

    Raises:
        UserError: it is not YAML, gives a field twice, or holds what no recipe does: objects,
            halves of characters, more values than anybody writes.
    """
    if len(text) > _MOST_CHARACTERS:
        raise UserError(f"{where} is longer than {_MOST_CHARACTERS:,} characters, so no recipe.")
    try:
        return _unshared(yaml.load(text, Loader=_OnceOnly), itertools.count(1))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise UserError(f"{where}{line} is not YAML: {problem}.") from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply for a recipe.") from error
    # PyYAML lets these through where a value does not fit its tag, as in 2020-13-45 or !!bool x.
    except ValueError as error:
        raise UserError(f"{where} cannot be read: {error}.") from error
    except (LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{where} has a value that does not fit its '!!' tag.") from error


def _text_of(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_MOST_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def differing_fields(a: Recipe, b: Recipe) -> list[str]:
    """Dotted names of the fields in which two recipes differ, with both values."""

    def flatten(value: Any, name: str) -> dict[str, Any]:  # noqa: ANN401 (plain YAML values)
        if isinstance(value, dict):
            items: Iterable[tuple[Any, Any]] = value.items()
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            items = enumerate(value)
        else:
            return {name: value}
        flat: dict[str, Any] = {}
        for key, item in items:
            flat |= flatten(item, f"{name}.{key}" if name else str(key))
        return flat

    flat_a, flat_b = (flatten(r.model_dump(mode="json"), "") for r in (a, b))
    return [
        f"{name} ({flat_a.get(name)} there, {flat_b.get(name)} here)"
        for name in {**flat_a, **flat_b}
        if flat_a.get(name) != flat_b.get(name)
    ]


def _recipe_text(name: str | Path) -> tuple[str, str]:
    folder = resources.files("stackbert") / "recipes"
    known = sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )
    if name in known:
        return (folder / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe '{name}'"
    path = Path(name)
    try:
        if path.is_file():
            return _text_of(path), str(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    raise UserError(
        f"There is no recipe '{name}': neither a file nor one of {', '.join(known)}"
        f"{_did_you_mean(str(name), known)}."
    )


class _OnceOnly(yaml.SafeLoader):
    """Refuses a field that is given twice; YAML forbids it, PyYAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, which reports keys that cannot be one."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the field '{key.value}' is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """As PyYAML's, but not without end: a merge of merges of merges multiplies its fields."""
        super().flatten_mapping(node)
        if len(node.value) > _MOST_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"a merge makes more than {_MOST_VALUES:,} fields", node.start_mark
            )


def _unshared(value: Any, count: Iterator[int]) -> Any:  # noqa: ANN401 (plain YAML values)
    """A copy without aliases: no part is in two places, and none contains itself."""
    if next(count) > _MOST_VALUES:
        raise ValueError(f"its aliases make more than {_MOST_VALUES:,} values of it")
    if isinstance(value, dict):
        return {_unshared(key, count): _unshared(item, count) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unshared(item, count) for item in value]
    if isinstance(value, int) and value.bit_length() > 64:
        raise ValueError("it holds an integer of more than 64 bits")
    if isinstance(value, str) and _SURROGATE.search(value):
        raise ValueError("it holds half a character (a surrogate)")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"it holds a {type(value).__name__}, put it in quotation marks")
    return value


def _apply_override(raw: dict[Any, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: write it as field=value, for example seed=1.")
    value = parse_yaml(text, f"The value of --set {path}")
    *parents, last = path.split(".")
    node: Any = raw
    for key in parents:
        node = _child(node, key, override)
    if isinstance(node, list):
        _child(node, last, override)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"--set {override}: {'.'.join(parents)} has no fields.")


def _child(node: Any, key: str, override: str) -> Any:  # noqa: ANN401 (plain YAML values)
    if isinstance(node, dict):
        if node.get(key) is None:
            node[key] = {}
        return node[key]
    if isinstance(node, list) and key.isdecimal() and len(key) < 9 and int(key) < len(node):
        return node[int(key)]
    if isinstance(node, list):
        raise UserError(f"--set {override}: '{key}' is not a place from 0 to {len(node) - 1}.")
    raise UserError(f"--set {override}: nothing can be set below a plain value.")


def _problem(raw: Any, item: Any) -> str:  # noqa: ANN401 (plain YAML values, pydantic's details)
    place = [str(part) for part in item["loc"]]
    # Where several types are allowed, pydantic appends their names to the place.
    if item["type"] != "extra_forbidden":  # whose last part is the user's own word
        while place and ("[" in place[-1] or place[-1] in ("constrained-int", "literal", "bool")):
            place.pop()
    field = ".".join(place)
    if item["type"] == "extra_forbidden":
        known = _known_fields(place[:-1])
        return f"there is no field '{field}'{_did_you_mean(place[-1], known)}".rstrip(".")
    message = item["msg"].removeprefix("Value error, ").rstrip(".")
    message = message[0].lower() + message[1:]
    if item["type"] == "missing":
        return f"the field '{field}' is missing"
    if item["type"] == "value_error":
        return f"{field}: {message}" if field else message
    shown = repr(item["input"])
    return f"{field}: {message}, got {shown if len(shown) <= 80 else shown[:79] + '…'}"


def _known_fields(parents: list[str]) -> list[str]:
    part: Any = Recipe
    for name in parents:
        if name.isdigit():
            continue
        annotation = part.model_fields[name].annotation
        inner = getattr(annotation, "__args__", None)
        part = inner[0] if inner else annotation
    return list(part.model_fields)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
