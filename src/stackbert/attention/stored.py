"""The folder that `stackbert attention` writes: numbers, and the maps that its page draws.

`attention.json` is the result. `examples.json` holds the maps of the sentences that are drawn, as
whole thousandths, and names the `attention.json` it belongs to by its SHA-256: so neither can be
drawn with another one's, and a damaged one is found.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from stackbert.attention.examples import Examples
from stackbert.attention.heatmaps import packed
from stackbert.attention.moments import MOMENTS, GrowthMaps
from stackbert.attention.plain import read_json
from stackbert.attention.result import AttentionResult, SentenceMaps, read_result
from stackbert.errors import UserError
from stackbert.files import explaining_os_errors, sha256_of, write_text_atomically

ATTENTION = "attention.json"
EXAMPLES = "examples.json"
FORMAT = 1


def is_attention(folder: Path) -> bool:
    """Whether a measurement of attention was written into this folder."""
    return (folder / ATTENTION).is_file()


def write_examples(examples: Examples, folder: Path) -> Path:
    """Write `examples.json` beside the `attention.json` that the maps belong to.

    Returns:
        The file.

    Raises:
        UserError: there is no `attention.json`, or the folder cannot be written.
    """
    path = folder / EXAMPLES
    with explaining_os_errors(f"writing {path}"):
        plain = {
            "format": FORMAT,
            "of": sha256_of(folder / ATTENTION),
            "sentences": [_plain(each) for each in examples.sentences],
            "growths": [
                {
                    "name": growth.name,
                    "origins": growth.origins.tolist(),
                    "weights": growth.weights,
                    "moments": {name: _plain(growth.moments[name]) for name in MOMENTS},
                }
                for growth in examples.growths
            ],
        }
        # Without spaces: these are up to some million numbers.
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
        write_text_atomically(path, text + "\n")
    return path


def read_attention(folder: str | Path) -> tuple[AttentionResult, Examples]:
    """Read what `stackbert attention` wrote into a folder.

    Raises:
        UserError: a file is missing, damaged, of another version or of another measurement.
    """
    folder = Path(folder)
    result = read_result(folder / ATTENTION)
    path = folder / EXAMPLES
    if not path.is_file():
        raise UserError(
            f"{folder} has no {EXAMPLES}, the maps to draw. Run stackbert attention again."
        )
    value = read_json(path)
    try:
        if value["format"] != FORMAT:
            raise UserError(f"{path} is of another version of StackBERT; measure again.")
        if value["of"] != sha256_of(folder / ATTENTION):
            raise UserError(
                f"{path} does not belong to the {ATTENTION} beside it, or that was changed. Run "
                "stackbert attention again."
            )
        examples = Examples(
            tuple(_maps(each) for each in value["sentences"]),
            tuple(_growth_maps(each) for each in value["growths"]),
        )
        _check(result, examples)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Run stackbert attention again.") from error
    return result, examples


def _plain(sentence: SentenceMaps) -> dict[str, Any]:
    return {
        "index": sentence.index,
        "tokens": list(sentence.tokens),
        "separators": list(sentence.separators),
        "shape": list(sentence.maps.shape[:2]),
        "weights": packed(sentence.maps),
    }


def _maps(value: dict[str, Any]) -> SentenceMaps:
    tokens = tuple(map(str, value["tokens"]))
    layers, heads = value["shape"]
    weights = np.asarray(value["weights"], dtype=np.int64)
    if weights.min(initial=0) < 0 or weights.max(initial=0) > 1000:
        raise ValueError("a weight is not between 0 and 1")
    maps = (weights / 1000).astype(np.float32)
    return SentenceMaps(
        index=int(value["index"]),
        tokens=tokens,
        separators=tuple(map(int, value["separators"])),
        maps=maps.reshape(layers, heads, len(tokens), len(tokens)),
    )


def _growth_maps(value: dict[str, Any]) -> GrowthMaps:
    return GrowthMaps(
        name=str(value["name"]),
        moments={name: _maps(value["moments"][name]) for name in MOMENTS},
        origins=np.asarray(value["origins"], dtype=np.int64),
        weights=str(value["weights"]),
    )


def _check(result: AttentionResult, examples: Examples) -> None:
    """That there is a map for everything that a page draws.

    Raises:
        ValueError: there is not.
    """
    shape = result.measures.first.shape
    found = {sentence.maps.shape[:2] for sentence in examples.sentences}
    if found != {shape}:
        raise ValueError(f"maps of {found or 'no'} layers and heads in place of {shape}")
    if examples.growths:
        for growth, maps in zip(result.growths, examples.growths, strict=True):
            if growth.weights != maps.weights:
                raise ValueError(f"maps of another growth than that of {growth.run}")
            for name in MOMENTS:
                wanted, drawn = growth.moment(name).measures, maps.moments[name].maps
                if drawn.shape[:2] != wanted.first.shape:
                    raise ValueError(f"maps of another model than '{name}' of {growth.run}")
