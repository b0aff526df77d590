"""Likeness: laws of the divergence, matching, and what the contrasts say of made-up models."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stackbert.attention.likeness import (
    ROWS,
    RowSample,
    divergences,
    likeness,
    match,
    shallow_and_deep,
    top_and_bottom,
)
from stackbert.attention.result import SentenceMaps


def sample(maps_of_sentences, name="model", **options):
    rows = RowSample(name, seed=0, **options)
    for index, maps in enumerate(maps_of_sentences):
        maps = np.asarray(maps, dtype=np.float32)
        rows.add(SentenceMaps(index, ("t",) * maps.shape[-1], (), maps))
    return rows


def random_maps(layers, heads, lengths=(9, 14), seed=0, sharpness=0.3):
    random = np.random.default_rng(seed)
    return [random.dirichlet(np.full(n, sharpness), size=(layers, heads, n)) for n in lengths]


def plain_divergence(p, q):
    """Of two rows, in units of ln 2."""
    mean = (p + q) / 2
    entropy = [-(row[row > 0] * np.log(row[row > 0])).sum() for row in (mean, p, q)]
    return (entropy[0] - (entropy[1] + entropy[2]) / 2) / math.log(2)


def test_divergences_equal_plain_loops():
    one, other = random_maps(2, 3, seed=1), random_maps(3, 2, seed=2)
    found, queries = divergences(sample(one), sample(other))
    assert found.shape == (2, 3, 3, 2)
    assert queries == 9 + 14
    for a, b in [((0, 0), (0, 0)), ((1, 2), (2, 1)), ((0, 1), (1, 0))]:
        rows = [
            plain_divergence(p[a][query], q[b][query])
            for p, q in zip(one, other, strict=True)
            for query in range(p.shape[-1])
        ]
        assert found[a + b] == pytest.approx(np.mean(rows), abs=1e-5)


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
    within, _ = divergences(rows := sample([maps]), rows)
    between, _ = divergences(sample([maps]), sample([maps]))
    assert within == pytest.approx(between, abs=1e-6)
    square = between.reshape(3, 3)
    assert np.diag(square) == pytest.approx(0, abs=1e-6)
    assert square == pytest.approx(square.T, abs=1e-6)
    assert square.min() >= 0
    assert square.max() <= 1
    for layer in (1, 2):
        rows = zip(maps[0, 0], maps[layer, 0], strict=True)
        expected = np.mean([plain_divergence(p, q) for p, q in rows])
        assert square[0, layer] == pytest.approx(expected, abs=1e-5)


def test_rows_without_a_common_token_differ_by_one():
    maps = np.stack([np.eye(6), np.roll(np.eye(6), 1, axis=1)])[:, None]
    found, _ = divergences(rows := sample([maps]), rows)
    assert found.reshape(2, 2) == pytest.approx(np.array([[0, 1], [1, 0]]), abs=1e-6)


def test_matching_finds_a_permuted_copy_of_the_heads():
    maps = random_maps(1, 6)
    order = np.array([3, 0, 5, 1, 4, 2])
    copied = [each[:, order] for each in maps]
    found = likeness(sample(maps, "a"), sample(copied, "b"))
    assert (found.first, found.second, found.sentences) == ("a", "b", 2)
    assert found.divergence[0, 0] == pytest.approx(0, abs=1e-6)
    assert found.random_pairs[0, 0] > 0.1
    assert found.matching[0, 0].tolist() == np.argsort(order).tolist()


def test_matching_is_one_to_one_and_best():
    heads = np.array([[0.1, 0.2], [0.15, 0.9]]).reshape(1, 2, 1, 2)
    divergence, random_pairs, matching = match(heads)
    # Head 0 alone would take head 0; together they do better the other way round.
    assert matching[0, 0].tolist() == [1, 0]
    assert divergence[0, 0] == pytest.approx(0.175)
    assert random_pairs[0, 0] == pytest.approx(heads.mean())


def test_of_fewer_heads_each_is_matched_and_the_rest_left_over():
    heads = np.array([0.5, 0.1, 0.3]).reshape(1, 3, 1, 1)
    divergence, _, matching = match(heads)
    assert divergence[0, 0] == 0.1
    assert matching[0, 0].tolist() == [-1, 0, -1]


def test_at_most_so_many_rows_and_sentences_are_kept_and_the_same_of_every_model():
    maps = random_maps(1, 2, lengths=(40, 5, 30))
    one, other = sample(maps, sentences=2), sample(maps, "other", sentences=2)
    assert {index: rows.shape for index, rows in one.rows.items()} == {
        0: (1, 2, ROWS, 40),
        1: (1, 2, 5, 5),
    }
    assert all(np.array_equal(one.rows[at], other.rows[at]) for at in one.rows)
    # Not the first ones, where [CLS] and its neighbours are.
    assert not np.allclose(one.rows[0], maps[0][:, :, :ROWS], atol=1e-3)


def test_maps_of_different_tokens_are_not_compared():
    with pytest.raises(ValueError, match="sentence 0"):
        divergences(sample(random_maps(1, 1, (8,))), sample(random_maps(1, 1, (9,))))
    with pytest.raises(ValueError, match="no sentence"):
        divergences(sample([]), sample(random_maps(1, 1)))


def contrast_of(maps, fresh):
    own, to_fresh = likeness(rows := sample(maps), rows), likeness(sample(maps), sample(fresh))
    return top_and_bottom(own, to_fresh, likeness(blank := sample(fresh), blank))


def uniform_maps(layers, heads, lengths=(9, 14)):
    return [np.full((layers, heads, n, n), 1 / n) for n in lengths]


def test_a_top_half_that_repeats_the_bottom_half_differs_by_nothing():
    half = random_maps(2, 4)
    order = np.array([2, 0, 3, 1])
    found = contrast_of([np.concatenate([m, m[:, order]]) for m in half], uniform_maps(4, 4))
    assert found.matched == pytest.approx(0, abs=1e-6)
    # Each of two top layers is one of the two bottom layers, and as far from the other as that.
    between = likeness(rows := sample(half), rows)
    assert found.all_pairs == pytest.approx(between.divergence[0, 1] / 2, abs=1e-6)
    assert found.random_pairs == pytest.approx(np.diag(between.random_pairs).mean(), abs=1e-6)
    assert found.dealt > 0.05
    assert found.untrained > 0.1
    assert found.untrained_alike == pytest.approx(0, abs=1e-6)


def test_an_untrained_bottom_half_stands_in_for_the_bottom_half():
    maps, fresh = random_maps(5, 3), random_maps(5, 3, seed=9)
    found = contrast_of(maps, fresh)
    # Of five layers the middle one is in neither half.
    to_fresh = likeness(sample(maps), sample(fresh)).divergence[3:, :2]
    assert found.untrained == pytest.approx(to_fresh.min(axis=1).mean())
    alike = likeness(rows := sample(fresh), rows).divergence[3:, :2]
    assert found.untrained_alike == pytest.approx(alike.min(axis=1).mean())


def test_layers_of_one_kind_differ_as_if_dealt_and_layers_of_two_kinds_by_more():
    alike = contrast_of(random_maps(4, 4), uniform_maps(4, 4))
    assert alike.matched == pytest.approx(alike.dealt, abs=0.02)
    assert alike.matched <= alike.all_pairs
    sharp, flat = random_maps(2, 4, sharpness=0.05), random_maps(2, 4, sharpness=5.0)
    maps = [np.concatenate(pair) for pair in zip(sharp, flat, strict=True)]
    unlike = contrast_of(maps, uniform_maps(4, 4))
    assert unlike.matched > unlike.dealt + 0.1


def test_a_single_layer_has_no_halves():
    assert contrast_of(random_maps(1, 2), uniform_maps(1, 2)) is None


@pytest.mark.parametrize("swapped", [False, True])
def test_each_layer_of_the_deeper_model_is_held_against_the_most_similar(swapped):
    shallow, others = random_maps(2, 3), random_maps(1, 3, seed=5)
    # Its last layer is none of the shallow model's.
    deep = [np.concatenate([m, m[::-1], o]) for m, o in zip(shallow, others, strict=True)]
    one, other = (sample(deep), sample(shallow)) if swapped else (sample(shallow), sample(deep))
    found = shallow_and_deep(
        likeness(one, other), likeness(sample(deep), sample(uniform_maps(5, 3)))
    )
    alone = likeness(sample(others), sample(shallow)).divergence.min()
    assert alone > 0.1
    assert found.matched == pytest.approx(alone / 5, abs=1e-6)
    assert found.random_pairs > found.matched + 0.1
    assert found.dealt > found.matched + 0.05
    assert found.untrained > found.matched + 0.1
