"""What a result depends on, as hashes: of content, whatever path it was read from."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple
from typing import Any


def content_of(examples: Iterable[Any]) -> str:
    """SHA-256 of examples: keys, texts and labels, in order; not of the file they came from.

    Args:
        examples: dataclasses of plain values.
    """
    whole = hashlib.sha256()
    for example in examples:
        whole.update(json.dumps(astuple(example), ensure_ascii=True).encode())
        whole.update(b"\n")
    return whole.hexdigest()


def key_of(*parts: Any) -> str:  # noqa: ANN401 (plain values)
    """A short hash of plain values, the same for equal ones."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
