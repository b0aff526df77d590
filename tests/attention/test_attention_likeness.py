"""Likeness: laws of the divergence, matching, and what contrasts say of made-up models."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stackbert.attention.likeness import contrast, divergences, keep_rows, match
from stackbert.attention.maps import SentenceMaps


def sample(maps_of_sentences):
    return {
        index: keep_rows(
            SentenceMaps(index, ("t",) * maps.shape[-1], (), maps.astype(np.float32)), seed=0
        )
        for index, maps in enumerate(maps_of_sentences)
    }


def between(one, other):
    return divergences(sample(one), sample(other))


def random_maps(layers, heads, lengths=(9, 14), seed=0, sharpness=0.3):
    random = np.random.default_rng(seed)
    return [random.dirichlet(np.full(n, sharpness), size=(layers, heads, n)) for n in lengths]


def uniform_maps(layers, heads, lengths=(9, 14)):
    return [np.full((layers, heads, n, n), 1 / n) for n in lengths]


def plain_divergence(p, q):
    """Of two rows, in units of ln 2."""
    entropy = [-(row[row > 0] * np.log(row[row > 0])).sum() for row in ((p + q) / 2, p, q)]
    return (entropy[0] - (entropy[1] + entropy[2]) / 2) / math.log(2)


@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.just(3), st.just(1), *([st.shared(st.integers(2, 12), key="n")] * 2)),
        elements=st.sampled_from([0.0, 0.0, 0.01, 0.5, 1.0]),
    )
)
def test_the_divergence_is_zero_for_equal_symmetric_and_at_most_one(raw):
    raw[..., 0] += 1e-3
    maps = raw / raw.sum(-1, keepdims=True)
    rows = sample([maps])
    within = divergences(rows, rows)
    square = divergences(rows, sample([maps])).reshape(3, 3)
    assert within.reshape(3, 3) == pytest.approx(square, abs=1e-6)
    assert np.diag(square) == pytest.approx(0, abs=1e-6)
    assert square == pytest.approx(square.T, abs=1e-6)
    assert square.min() >= 0
    assert square.max() <= 1
    expected = [plain_divergence(p, q) for p, q in zip(maps[0, 0], maps[1, 0], strict=True)]
    assert square[0, 1] == pytest.approx(np.mean(expected), abs=1e-5)


def test_matching_is_one_to_one_and_best():
    # Head 0 alone would take head 0; together they do better the other way round.
    assert match(np.array([[0.1, 0.2], [0.15, 0.9]]).reshape(1, 2, 1, 2)).item() == 0.175
    # Of fewer heads each is matched, and the rest are left over.
    assert match(np.array([0.5, 0.1, 0.3]).reshape(1, 3, 1, 1)).item() == 0.1


def contrast_of(maps, fresh):
    return contrast(between(maps, maps), between(maps, fresh), seed=0, halves=True)


def test_a_top_half_that_repeats_the_bottom_half_differs_by_nothing():
    half = random_maps(2, 4)
    repeated = [np.concatenate([m, m[:, [2, 0, 3, 1]]]) for m in half]
    found = contrast_of(repeated, uniform_maps(4, 4))
    assert found.matched == pytest.approx(0, abs=1e-6)
    assert found.dealt > 0.05
    assert found.untrained > 0.1


def test_layers_of_one_kind_differ_as_if_dealt_and_layers_of_two_kinds_by_more():
    alike = contrast_of(random_maps(4, 4), uniform_maps(4, 4))
    assert alike.matched == pytest.approx(alike.dealt, abs=0.02)
    sharp, flat = random_maps(2, 4, sharpness=0.05), random_maps(2, 4, sharpness=5.0)
    maps = [np.concatenate(pair) for pair in zip(sharp, flat, strict=True)]
    unlike = contrast_of(maps, uniform_maps(4, 4))
    assert unlike.matched > unlike.dealt + 0.1


def test_each_layer_of_a_model_is_compared_with_the_most_similar_of_another():
    shallow, others = random_maps(2, 3), random_maps(1, 3, seed=5)
    # Its last layer is none of the shallow model's.
    deep = [np.concatenate([m, m[::-1], o]) for m, o in zip(shallow, others, strict=True)]
    fresh = between(deep, uniform_maps(5, 3))
    found = contrast(between(deep, shallow), fresh, seed=0, halves=False)
    alone = match(between(others, shallow)).min()
    assert alone > 0.1
    assert found.matched == pytest.approx(alone / 5, abs=1e-6)
    assert found.dealt > found.matched + 0.05
    assert found.untrained > found.matched + 0.1
