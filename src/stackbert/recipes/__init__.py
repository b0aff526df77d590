"""Recipes as files: shipped or the user's own, overridden field by field."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from stackbert.errors import UserError
from stackbert.files import explain, reading
from stackbert.recipe import Recipe
from stackbert.units import did_you_mean

Fields = dict[str, Any]
_FOLDER = Path(__file__).parent
_SHIPPED = sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def shipped_recipes() -> dict[str, Recipe]:
    """The recipes that come with StackBERT, by name."""
    return {name: load_recipe(name) for name in _SHIPPED}


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load a shipped recipe by its name or any recipe by its path.

    Args:
        name: "small-cpu", or the path of a YAML file.
        overrides: "field.subfield=value" items; the value is read as YAML, a stage is addressed
            by its place (`stages.0.steps=100`).

    Raises:
        UserError: there is no such recipe, it is not YAML, or a field is unknown or impossible.
    """
    path = _FOLDER / f"{name}.yaml" if name in _SHIPPED else Path(name)
    if not path.is_file():
        raise UserError(
            f"There is no recipe '{name}': it is neither a file nor one of {', '.join(_SHIPPED)}"
            f"{did_you_mean(str(name), _SHIPPED)}."
        )
    raw = read_yaml(path)
    for override in overrides:
        _override(raw, override)
    return parse_recipe(raw, str(name))


def parse_recipe(raw: Any, where: str) -> Recipe:  # noqa: ANN401 (plain YAML values)
    """Validate plain values as a recipe; `where` heads the error ("my.yaml").

    Raises:
        UserError: naming every field that is wrong.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{where} is not a recipe: it must be a mapping of fields to values.")
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, Recipe)}.") from error


def read_yaml(path: Path) -> Any:  # noqa: ANN401 (plain YAML values)
    """What a YAML file holds, or a UserError; a field that is given twice is one."""
    with reading(path):
        return _parse(path.read_text(encoding="utf-8"))


def differing_fields(a: BaseModel | Fields, b: BaseModel | Fields) -> list[str]:
    """Dotted names of the fields in which two recipes or requests differ, with both values."""
    flat_a, flat_b = flat_fields(a), flat_fields(b)
    return [
        f"{name} ({flat_a.get(name)} there, {flat_b.get(name)} here)"
        for name in {**flat_a, **flat_b}
        if flat_a.get(name) != flat_b.get(name)
    ]


def flat_fields(value: Any, name: str = "") -> dict[str, Any]:  # noqa: ANN401 (or plain values)
    """A recipe's fields by their dotted names, as `--set` takes them."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {str(place): item for place, item in enumerate(value)}
    if not isinstance(value, dict):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flat_fields(item, f"{name}.{key}" if name else key)
    return flat


class _Loader(yaml.SafeLoader):
    """Refuses a field that is given twice (PyYAML takes the last one); reads 1e-12 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"it gives the field '{name}' a second time")
        return super().construct_mapping(node, deep=deep)


# YAML 1.2 has 1e-12 for a number; PyYAML follows 1.1, which wants 1.0e-12.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse(text: str) -> Any:  # noqa: ANN401 (plain YAML values)
    return yaml.load(text, Loader=_Loader)


def _override(raw: Any, override: str) -> None:  # noqa: ANN401 (plain YAML values)
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: write it as field=value, for example seed=1.")
    with reading(f"The value of --set {path}"):
        value = _parse(text)
    *parents, last = path.split(".")
    node = raw
    try:
        for key in parents:
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[int(key) if isinstance(node, list) else key]
        node[int(last) if isinstance(node, list) else last] = value
    except (IndexError, TypeError, ValueError) as error:
        raise UserError(f"--set {override}: the recipe has no such place.") from error
