"""Where each head looks, in numbers, and what a head is called for them.

Measures are means over the queries of all sentences. All but the entropy are linear in the map, so
those of a sentence are one matrix product. A "uniform" head looks at all tokens alike.
Shape letters: L layers, H heads, S tokens, M measures.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from stackbert.attention.maps import F32, SentenceMaps

F64 = npt.NDArray[np.float64]

WINDOWS = (1, 2, 4, 8)
"""Positions on either side of the query that count as near it."""
RADIUS = 16
"""The profile by relative position (key minus query) goes from -RADIUS to RADIUS."""
PROFILE = tuple(f"at_{offset:+d}" for offset in range(-RADIUS, RADIUS + 1))
MEASURES = (
    *(f"within_{window}" for window in WINDOWS),  # the query itself included
    *(f"near_{window}" for window in WINDOWS),  # without the first column, so apart from `first`
    "first",
    "itself",
    "previous",
    "following",
    "distance",
    *PROFILE,
    "sep",
    "entropy",
)
"""Shares of a query's attention, but for the mean distance in positions and the entropy in nats."""
_LINEAR = len(MEASURES) - 2

CLASSES = ("local", "[CLS]", "mixed", "[SEP]", "broad", "other")
"""What a head is called; `classify` has the rules."""
PAPER_CLASSES = CLASSES[:3]
"""Those that the paper (Gong et al. 2019, section 3) speaks of."""
LOCAL_WINDOW = 4
"""The window that makes a head "local": about a phrase."""
SHARE = 0.5
"""Share of what a uniform head spreads elsewhere that must lie on a pattern."""
BROAD = 0.25
"""A head without a pattern is "broad" if it looks at this share of a sentence's tokens at least.
Their number is e to the power of its entropy; for a uniform head it is all of them."""


def sentence_sums(sentence: SentenceMaps) -> tuple[F64, F64]:
    """Measures of a sentence, summed over its queries.

    Returns:
        ((L, H, M) of the heads, (M,) of a uniform head).
    """
    maps_LHSS = sentence.maps_LHSS
    layers, heads, length, _ = maps_LHSS.shape
    columns = list(sentence.separators)
    weights = _weights(length)
    sums_LHM = np.zeros((layers, heads, len(MEASURES)))
    sums_LHM[..., :_LINEAR] = (maps_LHSS.reshape(-1, length * length) @ weights).reshape(
        layers, heads, _LINEAR
    )
    sums_LHM[..., _LINEAR] = maps_LHSS[..., columns].sum(axis=(2, 3), dtype=np.float64)
    for layer, maps_HSS in enumerate(maps_LHSS):  # one at a time bounds the logarithms' memory
        logs = np.log(maps_HSS + np.float32(1e-30))  # so that none is of 0
        logs *= maps_HSS
        sums_LHM[layer, :, -1] = -logs.sum(axis=(1, 2), dtype=np.float64)
    linear = weights.sum(axis=0, dtype=np.float64) / length
    return sums_LHM, np.array([*linear, len(columns), length * np.log(length)])


@functools.lru_cache(maxsize=2)  # sentences come sorted by length
def _weights(length: int) -> F32:
    """(S·S, M): what a weight of 1 at (query, key) adds to each linear measure."""
    position = np.arange(length)
    offset = position[None, :] - position[:, None]
    distance = np.abs(offset)
    not_first = np.broadcast_to(position > 0, offset.shape)
    planes = [
        *(distance <= window for window in WINDOWS),
        *((distance <= window) & not_first for window in WINDOWS),
        ~not_first,
        offset == 0,
        offset == -1,
        offset == 1,
        distance,
        *(offset == place for place in range(-RADIUS, RADIUS + 1)),
    ]
    return np.stack([plane.astype(np.float32).ravel() for plane in planes], axis=1)


def head_table(means_LHM: F64, uniform: Mapping[str, float]) -> pd.DataFrame:
    """A row a head: `layer` and `head` from 1 (layer 1 at the bottom), `class`, `MEASURES`."""
    layers, heads = np.indices(means_LHM.shape[:2]).reshape(2, -1) + 1
    table = pd.DataFrame(means_LHM.reshape(-1, len(MEASURES)), columns=list(MEASURES))
    table.insert(0, "layer", layers)
    table.insert(1, "head", heads)
    table.insert(2, "class", classify(table, uniform))
    return table


def classify(heads: pd.DataFrame, uniform: Mapping[str, Any], window: int = LOCAL_WINDOW) -> Any:  # noqa: ANN401 (an array of strings)
    """Name each head by the first rule that fits.

    local: at least `SHARE` near the query, first column apart. [CLS]: at least `SHARE` on the first
    token. mixed: at least `SHARE` on both together. [SEP]: at least `SHARE` on separators. broad:
    none of these, over `BROAD` of the tokens. other: none of these, over fewer tokens.

    A mass counts only beyond `uniform`, the measures of a uniform head: (mass - uniform) /
    (1 - uniform). On a short sentence a uniform head, too, has much of its mass near the query.
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
