"""Randomness without state: every draw is a pure function of a key and a place.

So a batch can be made for any step, on any rank, in any order, and is always the same.
"""

import hashlib
import math

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_ROUNDS = 12
_GOLDEN, _FIRST, _SECOND = (
    np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_ROW = np.uint64(0xD1B54A32D192ED03)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


def derive_key(seed: int, *tags: int | str) -> int:
    """A 64-bit key for one purpose, independent of the keys for other purposes."""
    text = "/".join(str(part) for part in (seed, *tags))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(x: U64) -> U64:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014): equidistributed 64-bit hashes."""
    x = x + _GOLDEN  # a new array; from here on in place
    x ^= x >> _30
    x *= _FIRST
    x ^= x >> _27
    x *= _SECOND
    x ^= x >> _31
    return x


def random_bits(key: int, rows: I64, columns: int) -> U64:
    """Uniform 64-bit integers, shape (len(rows), columns).

    The entry for (key, row, column) does not depend on which other rows are asked for.
    """
    row_keys = mix(rows.astype(np.uint64) ^ np.uint64(key))
    return mix(row_keys[:, None] + np.arange(columns, dtype=np.uint64) * _ROW)


class Permutation:
    """A random permutation of 0 … size - 1 that needs no memory.

    A Feistel network over a grid of two nearly equal sides that just holds `size` places; the few
    values that fall outside are walked on until they are inside (Black and Rogaway, "Ciphers with
    arbitrary finite domains", CT-RSA 2002).
    """

    def __init__(self, size: int, key: int) -> None:
        self.size = size
        height = math.isqrt(max(size, 1) - 1) + 1
        self._height = np.uint64(height)
        self._width = np.uint64(max(1, -(-size // height)))
        self._keys = mix(np.arange(_ROUNDS, dtype=np.uint64) + np.uint64(key))

    def _once(self, x: U64) -> U64:
        high, low = np.divmod(x, self._width)
        for first, second in self._keys.reshape(-1, 2):
            high = (high + mix(low ^ first) % self._height) % self._height
            low = (low + mix(high ^ second) % self._width) % self._width
        return high * self._width + low

    def __call__(self, indices: I64) -> I64:
        """Where each index goes; indices (N,) from 0 to size - 1."""
        values = self._once(indices.astype(np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = self._once(values[outside])
        return values.astype(np.int64)
