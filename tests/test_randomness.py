"""Draws depend on a key and a place alone, and permutations lose nothing."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stackbert.randomness import Permutation, derive_key, mix, random_bits

keys = st.integers(0, 2**64 - 1)


def everything(size: int, key: int) -> list[int]:
    return Permutation(size, key)(np.arange(size)).tolist()


@given(size=st.integers(1, 3000), key=keys)
@example(size=1, key=0)
@example(size=2, key=0)
@example(size=3, key=0)
@example(size=4, key=2**64 - 1)
@example(size=2500, key=1)  # a square, and next to one
@example(size=2501, key=1)
def test_a_permutation_hits_every_place_once(size, key):
    assert sorted(everything(size, key)) == list(range(size))


@given(size=st.integers(10**9, 10**12), key=keys, seed=st.integers(0, 2**32 - 1))
def test_a_huge_permutation_sends_no_two_places_to_one(size, key, seed):
    spread = np.random.default_rng(seed).integers(0, size, 2000)
    places = np.unique(np.concatenate([spread, np.arange(2000), np.arange(size - 2000, size)]))
    found = Permutation(size, key)(places)
    assert len(np.unique(found)) == len(places)
    assert found.min() >= 0
    assert found.max() < size


def test_a_huge_permutation_spreads_neighbours_over_the_whole_range():
    found = Permutation(10**12, 5)(np.arange(20_000))
    counts = np.bincount(found // 10**11, minlength=10)
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_every_permutation_of_a_few_places_is_about_equally_likely(size):
    possible = math.factorial(size)
    orders = 30 * possible
    seen = Counter(tuple(everything(size, derive_key(7, key))) for key in range(orders))
    assert len(seen) == possible
    expected = orders / possible
    excess = sum((n - expected) ** 2 / expected for n in seen.values()) - (possible - 1)
    assert excess < 5 * np.sqrt(2 * (possible - 1))


@pytest.mark.parametrize("size", [10, 1000])
def test_permutations_differ_by_key(size):
    orders = {tuple(everything(size, key)) for key in range(20)}
    assert len(orders) == 20


@given(size=st.integers(2, 500), key=keys, data=st.data())
def test_where_a_place_goes_does_not_depend_on_the_others_asked(size, key, data):
    asked = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    found = Permutation(size, key)(np.array(asked, dtype=np.int64)).tolist()
    whole = everything(size, key)
    assert found == [whole[place] for place in asked]


def test_a_permutation_takes_any_shape():
    permutation = Permutation(12, 3)
    flat = permutation(np.arange(12))
    assert np.array_equal(permutation(np.arange(12).reshape(3, 4)), flat.reshape(3, 4))
    assert permutation(np.array(5)) == flat[5]
    assert permutation(np.empty(0, dtype=np.int64)).shape == (0,)
    assert Permutation(0, 3)(np.empty(0, dtype=np.int64)).shape == (0,)


@pytest.mark.parametrize("index", [-1, 7])
def test_an_index_outside_a_permutation_is_an_error(index):
    with pytest.raises(IndexError, match="permutation of 7"):
        Permutation(7, 0)(np.array([0, index]))


@given(
    key=keys,
    rows=st.lists(st.integers(0, 2**62), min_size=1, max_size=20),
    columns=st.integers(1, 30),
    data=st.data(),
)
def test_random_bits_do_not_depend_on_what_else_is_asked(key, rows, columns, data):
    whole = random_bits(key, np.array(rows), columns)
    some = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1))
    fewer = data.draw(st.integers(1, columns))
    asked = random_bits(key, np.array(rows)[some], fewer)
    assert np.array_equal(asked, whole[some, :fewer])


def test_random_bits_are_even_and_never_repeat():
    bits = random_bits(derive_key(0, "mask"), np.arange(0, 62 * 2000, 62), 100)
    assert len(np.unique(bits)) == bits.size
    each = (bits.reshape(-1)[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(each.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(bits.size)
    share = bits / 2.0**64
    assert abs(np.corrcoef(share[:, 0], share[:, 1])[0, 1]) < 5 / np.sqrt(len(share))
    assert abs(np.corrcoef(share[:-1, 0], share[1:, 0])[0, 1]) < 5 / np.sqrt(len(share))


def test_random_bits_differ_by_key():
    rows = np.arange(50)
    masks, cuts = (random_bits(derive_key(0, purpose), rows, 50) for purpose in ("mask", "cut"))
    assert not np.intersect1d(masks, cuts).size


def test_keys_differ_by_seed_and_purpose():
    keys = [derive_key(s, *t) for s in (0, 1) for t in [(), ("mask",), ("order", 0), ("order", 1)]]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


def test_mix_is_splitmix64():
    # The first outputs of the authors' generator for the seeds 0 and 1234567.
    expected = [0xE220A8397B1DCDAF, 6457827717110365317]
    assert mix(np.array([0, 1234567], dtype=np.uint64)).tolist() == expected


def test_the_order_of_the_data_is_the_same_in_every_version():
    # A run started with one version must be resumed by the next on the same batches.
    assert derive_key(0, "order", 0) == 6942163024847554866
    assert everything(10, derive_key(0, "order", 0)) == [5, 7, 2, 9, 1, 3, 4, 6, 8, 0]
    assert random_bits(1, np.array([2]), 2)[0].tolist() == [
        13604808898340030615,
        11640928595472802650,
    ]
