"""Draws depend on a key and a place alone, and permutations lose nothing."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stackbert.batches.randomness import Permutation, derive_key, mix, random_bits

keys = st.integers(0, 2**64 - 1)


def everything(size: int, key: int) -> list[int]:
    return Permutation(size, key)(np.arange(size)).tolist()


@given(size=st.integers(1, 3000), key=keys, data=st.data())
@example(size=4, key=2**64 - 1, data=None)
@example(size=2500, key=1, data=None)  # a square, and next to one
@example(size=2501, key=1, data=None)
def test_a_permutation_hits_every_place_once_whatever_else_is_asked(size, key, data):
    whole = everything(size, key)
    assert sorted(whole) == list(range(size))
    if data:
        asked = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
        found = Permutation(size, key)(np.array(asked, dtype=np.int64)).tolist()
        assert found == [whole[place] for place in asked]


@pytest.mark.parametrize("size", [3, 4])
def test_every_permutation_of_a_few_places_is_about_equally_likely(size):
    possible = math.factorial(size)
    orders = 30 * possible
    seen = Counter(tuple(everything(size, derive_key(7, key))) for key in range(orders))
    assert len(seen) == possible
    expected = orders / possible
    excess = sum((n - expected) ** 2 / expected for n in seen.values()) - (possible - 1)
    assert excess < 5 * np.sqrt(2 * (possible - 1))


def test_the_draws_are_splitmix64_and_the_same_in_every_version():
    # The first outputs of the authors' generator for the seeds 0 and 1234567.
    expected = [0xE220A8397B1DCDAF, 6457827717110365317]
    assert mix(np.array([0, 1234567], dtype=np.uint64)).tolist() == expected
    assert derive_key(0, "order", 0) == 6942163024847554866
    assert everything(10, derive_key(0, "order", 0)) == [5, 7, 2, 9, 1, 3, 4, 6, 8, 0]
    assert random_bits(1, np.array([2]), 2)[0].tolist() == [
        13604808898340030615,
        11640928595472802650,
    ]
