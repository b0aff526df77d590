"""Sums over attention maps, sentence by sentence, and the measures that they come to.

All measures but the entropy are linear in the map: a weight for every (query, key) and a sum. So
those of a sentence are one matrix product, (heads, S·S) by (S·S, measures), and what a uniform
head would have is the same product with 1 / S everywhere.
"""

import functools

import numpy as np

from stackbert.attention.classes import classify
from stackbert.attention.result import F32, F64, RADIUS, WINDOWS, Measures, SentenceMaps

_TINY = np.float32(1e-30)
_WITHIN = slice(0, len(WINDOWS))
_NEAR = slice(_WITHIN.stop, _WITHIN.stop + len(WINDOWS))
_FIRST, _ITSELF, _PREVIOUS, _FOLLOWING, _DISTANCE = range(_NEAR.stop, _NEAR.stop + 5)
_PROFILE = slice(_DISTANCE + 1, _DISTANCE + 2 + 2 * RADIUS)
_SEP, _ENTROPY = _PROFILE.stop, _PROFILE.stop + 1
_COUNT = _ENTROPY + 1


@functools.lru_cache(maxsize=2)  # sentences come sorted by length
def _weights(length: int) -> F32:
    """(S·S, measures): what a weight of 1 at (query, key) adds to each linear measure."""
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
    stacked = np.stack([plane.astype(np.float32).ravel() for plane in planes], axis=1)
    return np.ascontiguousarray(stacked)


class MeasureSums:
    """Takes in maps one sentence at a time; holds nothing but sums."""

    def __init__(self) -> None:
        self._heads: F64 | None = None
        """(L, H, measures), summed over queries."""
        self._uniform = np.zeros(_COUNT)
        self._sentences = 0
        self._tokens = 0

    def add(self, sentence: SentenceMaps) -> None:
        """Take in a sentence.

        Raises:
            ValueError: its rows do not sum to 1, or it is of another model than those before.
        """
        maps = sentence.maps
        layers, heads, length, _ = maps.shape
        if not np.allclose(maps.sum(axis=-1), 1.0, atol=1e-3):
            raise ValueError("rows of an attention map must sum to 1")
        if self._heads is None:
            self._heads = np.zeros((layers, heads, _COUNT))
        if self._heads.shape[:2] != (layers, heads):
            raise ValueError(
                f"maps of {layers} x {heads} heads after those of "
                f"{self._heads.shape[0]} x {self._heads.shape[1]}"
            )
        weights = _weights(length)
        linear = maps.reshape(layers * heads, length * length) @ weights
        self._heads[..., :_SEP] += linear.reshape(layers, heads, _SEP)
        self._uniform[:_SEP] += weights.sum(axis=0, dtype=np.float64) / length
        columns = list(sentence.separators)
        self._heads[..., _SEP] += maps[..., columns].sum(axis=(2, 3), dtype=np.float64)
        self._uniform[_SEP] += len(columns)
        for layer in range(layers):  # one at a time bounds the memory of the logarithms
            self._heads[layer, :, _ENTROPY] += _entropies(maps[layer])
        self._uniform[_ENTROPY] += length * np.log(length)
        self._sentences += 1
        self._tokens += length

    def measures(self) -> Measures:
        """Means over the queries so far.

        Raises:
            ValueError: there were none.
        """
        if self._heads is None:
            raise ValueError("no sentence was measured")
        heads = np.moveaxis(self._heads, -1, 0) / self._tokens
        uniform = self._uniform / self._tokens
        classes = classify(
            near=heads[_NEAR],
            near_uniform=uniform[_NEAR],
            first=heads[_FIRST],
            first_uniform=float(uniform[_FIRST]),
            sep=heads[_SEP],
            sep_uniform=float(uniform[_SEP]),
            entropy=heads[_ENTROPY],
            entropy_uniform=float(uniform[_ENTROPY]),
        )
        return Measures(
            sentences=self._sentences,
            tokens=self._tokens,
            within=heads[_WITHIN],
            within_uniform=uniform[_WITHIN],
            near=heads[_NEAR],
            near_uniform=uniform[_NEAR],
            first=heads[_FIRST],
            first_uniform=float(uniform[_FIRST]),
            sep=heads[_SEP],
            sep_uniform=float(uniform[_SEP]),
            itself=heads[_ITSELF],
            itself_uniform=float(uniform[_ITSELF]),
            previous=heads[_PREVIOUS],
            previous_uniform=float(uniform[_PREVIOUS]),
            following=heads[_FOLLOWING],
            following_uniform=float(uniform[_FOLLOWING]),
            entropy=heads[_ENTROPY],
            entropy_uniform=float(uniform[_ENTROPY]),
            distance=heads[_DISTANCE],
            distance_uniform=float(uniform[_DISTANCE]),
            profile=np.moveaxis(heads[_PROFILE], 0, -1),
            profile_uniform=uniform[_PROFILE],
            classes=classes,
        )


def _entropies(maps: F32) -> F64:
    """(H, S, S) to (H,): entropy of each row in nats, summed over the rows."""
    logs = np.log(maps + _TINY)
    logs *= maps
    negative: F64 = logs.sum(axis=(1, 2), dtype=np.float64)
    return -negative
