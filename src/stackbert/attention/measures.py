"""Where each head of a model that reads a sample looks, in numbers, and what it is called for them.

Letters: L layers, H heads, S tokens, M measures. A "uniform" head looks at all tokens alike.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stackbert.attention.likeness import SENTENCES, Rows, keep_rows
from stackbert.attention.maps import F32, SentenceMaps, attention_maps
from stackbert.intervals import F64

WINDOWS = (1, 2, 4, 8)  # positions on either side of the query that count as near it
RADIUS = 16  # of the profile by relative position, key minus query
PROFILE = tuple(f"at_{offset:+d}" for offset in range(-RADIUS, RADIUS + 1))

CLASSES = ("local", "[CLS]", "mixed", "[SEP]", "broad", "other")
PAPER_CLASSES = CLASSES[:3]  # that Gong et al. (2019, section 3) speak of
LOCAL_WINDOW = 4  # makes a head "local": about a phrase
SHARE = 0.5  # of what a uniform head spreads elsewhere makes a pattern
BROAD = 0.25  # share of a sentence's tokens, e to the power of the entropy
EXAMPLES = 4  # sentences whose maps are kept, the first ones
EXAMPLE_TOKENS = 32  # at which they are cut: the labels of more could not be read


def _planes(length: int) -> dict[str, npt.NDArray[Any]]:
    """What a weight of 1 at (query, key) adds to each measure that is linear in the map."""
    position = np.arange(length)
    offset = position[None, :] - position[:, None]
    distance = np.abs(offset)
    not_first = np.broadcast_to(position > 0, offset.shape)
    return {
        **{f"within_{window}": distance <= window for window in WINDOWS},
        # Apart from `first`.
        **{f"near_{window}": (distance <= window) & not_first for window in WINDOWS},
        "first": ~not_first,
        "itself": offset == 0,
        "previous": offset == -1,
        "following": offset == 1,
        "distance": distance,
        **{name: offset == place - RADIUS for place, name in enumerate(PROFILE)},
    }


MEASURES = (*_planes(1), "sep", "entropy")
"""Means over queries: shares of the attention, but for distance (positions) and entropy (nats)."""


@functools.lru_cache(maxsize=2)  # sentences come sorted by length
def _weights(length: int) -> F32:
    planes = _planes(length).values()
    return np.stack([plane.astype(np.float32).ravel() for plane in planes], axis=1)


def sentence_sums(sentence: SentenceMaps) -> tuple[F64, F64]:
    """Measures summed over a sentence's queries: (L, H, M) of the heads, (M,) of a uniform head."""
    maps_LHSS = sentence.maps_LHSS
    layers, heads, length, _ = maps_LHSS.shape
    columns, weights = list(sentence.separators), _weights(length)
    linear = (maps_LHSS.reshape(-1, length * length) @ weights).reshape(layers, heads, -1)
    sep = maps_LHSS[..., columns].sum(axis=(2, 3), dtype=np.float64)
    entropy = np.zeros((layers, heads))
    for layer, maps_HSS in enumerate(maps_LHSS):  # one at a time bounds the logarithms' memory
        logs = np.log(maps_HSS + np.float32(1e-30))  # so that none is of 0
        logs *= maps_HSS
        entropy[layer] = -logs.sum(axis=(1, 2), dtype=np.float64)
    uniform = weights.sum(axis=0, dtype=np.float64) / length
    return (
        np.concatenate([linear, sep[..., None], entropy[..., None]], axis=-1),
        np.array([*uniform, len(columns), length * np.log(length)]),
    )


def head_table(means_LHM: F64, uniform: Mapping[str, float]) -> pd.DataFrame:
    """A row a head: `layer` and `head` from 1 (layer 1 at the bottom), `MEASURES`, `class`."""
    layers, heads = np.indices(means_LHM.shape[:2]).reshape(2, -1) + 1
    table = pd.DataFrame(means_LHM.reshape(-1, len(MEASURES)), columns=list(MEASURES))
    table.insert(0, "layer", layers)
    table.insert(1, "head", heads)
    return table.assign(**{"class": classify(table, uniform)})


def classify(heads: pd.DataFrame, uniform: Mapping[str, Any], window: int = LOCAL_WINDOW) -> Any:  # noqa: ANN401 (an array of strings)
    """Name each head, one of `CLASSES`, by the first rule that fits.

    A mass counts beyond `uniform`, the measures of a uniform head: on a short sentence it, too, has
    much of its mass near the query.
    """

    def covers(*names: str) -> Any:  # noqa: ANN401 (an array of bools)
        mass = sum(heads[name].to_numpy() for name in names)
        chance = sum(uniform[name] for name in names)
        return (mass - chance) / max(1.0 - chance, 1e-9) >= SHARE

    near = f"near_{window}"
    spread = np.exp(heads["entropy"].to_numpy() - uniform["entropy"])
    rules = [covers(near), covers("first"), covers(near, "first"), covers("sep"), spread >= BROAD]
    return np.select(rules, list(CLASSES[:-1]), default=CLASSES[-1])


def paper_share(
    heads: pd.DataFrame, uniform: Mapping[str, Any], window: int = LOCAL_WINDOW
) -> float:
    """Share of the heads that have one of the paper's patterns, "local" being within `window`."""
    return float(np.isin(classify(heads, uniform, window), PAPER_CLASSES).mean())


@dataclass(frozen=True)
class Observed:
    """What is kept of a model that read a sample."""

    about: dict[str, Any]
    heads: pd.DataFrame
    rows: Rows
    examples: list[SentenceMaps]  # shortest first


def observe(
    model: PreTrainedModel,
    name: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    max_length: int,
    seed: int,
) -> Observed:
    """Make a model read sentences."""
    sums_LHM: F64 = np.zeros(())
    uniform_M: F64 = np.zeros(())
    tokens, rows = 0, {}
    for sentence in attention_maps(model, tokenizer, sentences, max_length=max_length):
        heads_LHM, alike_M = sentence_sums(sentence)
        sums_LHM, uniform_M = sums_LHM + heads_LHM, uniform_M + alike_M
        tokens += len(sentence.tokens)
        if sentence.index < SENTENCES:
            rows[sentence.index] = keep_rows(sentence, seed)
    uniform = dict(zip(MEASURES, (uniform_M / tokens).tolist(), strict=True))
    heads = head_table(sums_LHM / tokens, uniform)
    about = {
        "name": name,
        "type": model.config.model_type,
        "depth": int(heads["layer"].max()),
        "heads_per_layer": int(heads["head"].max()),
        "sentences": len(sentences),
        "tokens": tokens,
    }
    cut = min(max_length, EXAMPLE_TOKENS)
    drawn = attention_maps(model, tokenizer, sentences[:EXAMPLES], max_length=cut)
    return Observed(about | uniform, heads, rows, list(drawn))
