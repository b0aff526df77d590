"""Measures: hand-made maps with known answers, a plain double loop, and the names of heads."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stackbert.attention.classes import paper_share
from stackbert.attention.measures import MeasureSums
from stackbert.attention.result import CLASSES, RADIUS, WINDOWS, SentenceMaps

LENGTH = 40


def sentence(maps, separators=(), index=0):
    """Of (L, H, S, S) maps."""
    maps = np.asarray(maps, dtype=np.float32)
    tokens = tuple(f"t{at}" for at in range(maps.shape[-1]))
    return SentenceMaps(index, tokens, tuple(separators), maps)


def measured(*sentences):
    sums = MeasureSums()
    for each in sentences:
        sums.add(each)
    return sums.measures()


def one_head(rows, separators=()):
    return measured(sentence(np.asarray(rows)[None, None], separators))


def column(at, length=LENGTH):
    rows = np.zeros((length, length))
    rows[:, at] = 1
    return rows


def shifted(by, length=LENGTH):
    """Each token looks `by` to the right; where there is none, at itself."""
    rows = np.eye(length)
    for query in range(length):
        if 0 <= query + by < length:
            rows[query] = np.roll(np.eye(length)[query], by)
    return rows


def uniform(length=LENGTH):
    return np.full((length, length), 1 / length)


def test_a_head_that_looks_at_itself():
    found = one_head(np.eye(LENGTH))
    assert found.within.ravel().tolist() == [1, 1, 1, 1]
    assert (found.itself, found.previous, found.following) == (1, 0, 0)
    assert found.first == pytest.approx(1 / LENGTH)
    assert found.near[0] == pytest.approx(1 - 1 / LENGTH)
    assert found.entropy == pytest.approx(0, abs=1e-6)
    assert found.distance == 0
    assert found.profile[0, 0].argmax() == RADIUS
    assert found.profile.sum() == pytest.approx(1)


def test_a_head_that_looks_at_the_token_before():
    found = one_head(shifted(-1))
    assert found.previous == pytest.approx((LENGTH - 1) / LENGTH)
    assert found.itself == pytest.approx(1 / LENGTH)
    assert found.following == 0
    assert found.profile[0, 0, RADIUS - 1] == pytest.approx((LENGTH - 1) / LENGTH)


def test_a_head_three_to_the_right_is_outside_the_small_windows():
    found = one_head(shifted(3))
    stay = 3 / LENGTH
    assert found.within.ravel() == pytest.approx([stay, stay, 1, 1])
    assert found.distance == pytest.approx(3 * (1 - stay))


def test_a_head_on_the_first_token():
    found = one_head(column(0))
    assert found.first == 1
    assert found.near.max() == 0
    assert found.distance == pytest.approx((LENGTH - 1) / 2)


def test_a_head_on_two_separators():
    half = (column(10) + column(LENGTH - 1)) / 2
    found = one_head(half, separators=(10, LENGTH - 1))
    assert found.sep == pytest.approx(1)
    assert found.entropy == pytest.approx(math.log(2))
    assert found.sep_uniform == pytest.approx(2 / LENGTH)


def test_a_uniform_head_measures_what_uniform_says():
    lengths = (12, 30, 7)
    found = measured(*(sentence(uniform(n)[None, None], separators=(n - 1,)) for n in lengths))
    assert (found.sentences, found.tokens) == (3, 49)
    for name in ("within", "near"):
        ours, expected = getattr(found, name)[:, 0, 0], getattr(found, f"{name}_uniform")
        assert ours == pytest.approx(expected, abs=1e-6)
    assert found.profile[0, 0] == pytest.approx(found.profile_uniform, abs=1e-6)
    names = ("first", "sep", "itself", "previous", "following", "entropy", "distance")
    for name in names:
        assert getattr(found, name) == pytest.approx(getattr(found, f"{name}_uniform"), abs=1e-5)
    assert found.entropy_uniform == pytest.approx(sum(n * math.log(n) for n in lengths) / 49)
    assert found.first_uniform == pytest.approx(3 / 49)


def loops(sentences):
    """Every measure by the plainest loops there are."""
    layers, heads = sentences[0].maps.shape[:2]
    total = {}

    def note(name, layer, head, value):
        total.setdefault(name, np.zeros((layers, heads)))[layer, head] += value

    for each in sentences:
        for layer in range(layers):
            for head in range(heads):
                for query, row in enumerate(each.maps[layer, head].astype(np.float64)):
                    for key, weight in enumerate(row):
                        distance = abs(key - query)
                        note("distance", layer, head, weight * distance)
                        note("first", layer, head, weight * (key == 0))
                        note("sep", layer, head, weight * (key in each.separators))
                        note("itself", layer, head, weight * (key == query))
                        note("previous", layer, head, weight * (key == query - 1))
                        note("following", layer, head, weight * (key == query + 1))
                        if weight > 0:
                            note("entropy", layer, head, -weight * math.log(weight))
                        for window in WINDOWS:
                            near = distance <= window
                            note(f"within {window}", layer, head, weight * near)
                            note(f"near {window}", layer, head, weight * (near and key > 0))
                        if distance <= RADIUS:
                            note(f"profile {key - query}", layer, head, weight)
    tokens = sum(len(each.tokens) for each in sentences)
    return {name: value / tokens for name, value in total.items()}


def test_measures_equal_plain_loops():
    random = np.random.default_rng(0)
    sentences = []
    for index, length in enumerate((5, 19, 8)):
        maps = random.dirichlet(np.full(length, 0.2), size=(2, 3, length))
        sentences.append(sentence(maps, separators=(length - 1, 2), index=index))
    found, expected = measured(*sentences), loops(sentences)
    for name in ("first", "sep", "itself", "previous", "following", "distance", "entropy"):
        assert getattr(found, name) == pytest.approx(expected[name], abs=1e-5), name
    for place, window in enumerate(WINDOWS):
        assert found.within[place] == pytest.approx(expected[f"within {window}"], abs=1e-5)
        assert found.near[place] == pytest.approx(expected[f"near {window}"], abs=1e-5)
    for offset in range(-RADIUS, RADIUS + 1):
        ours = found.profile[..., offset + RADIUS]
        assert ours == pytest.approx(expected.get(f"profile {offset}", 0), abs=1e-5), offset


@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.just(2), st.just(2), *([st.shared(st.integers(2, 20), key="n")] * 2)),
        elements=st.floats(0.001, 1),
    )
)
def test_masses_are_shares_and_windows_nest(raw):
    found = measured(sentence(raw / raw.sum(-1, keepdims=True), separators=(0,)))
    slack = 1e-5
    assert (found.within >= -slack).all()
    assert (found.within <= 1 + slack).all()
    assert (np.diff(found.within, axis=0) >= -slack).all()
    assert (found.near <= found.within + slack).all()
    assert (found.near + found.first <= 1 + slack).all()
    assert found.entropy.max() <= found.entropy_uniform + 1e-4
    assert found.sep == pytest.approx(found.first)


def test_maps_whose_rows_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        one_head(np.eye(5) * 0.9)


def test_maps_of_another_model_are_refused():
    with pytest.raises(ValueError, match="after those"):
        measured(sentence(np.eye(5)[None, None]), sentence(np.eye(5)[None, None].repeat(2, 1)))


def test_heads_are_called_what_they_are():
    pointed = np.zeros((LENGTH, LENGTH))
    for query in range(LENGTH):
        pointed[query, (query + LENGTH // 2) % LENGTH] = 1
    kinds = {
        "local": shifted(-1),
        "[CLS]": column(0),
        "mixed": (shifted(1) + column(0)) / 2,
        "[SEP]": column(LENGTH - 1),
        "broad": uniform(),
        "other": pointed,
    }
    assert tuple(kinds) == CLASSES
    maps = np.stack(list(kinds.values()))[None]
    found = measured(sentence(maps, separators=(LENGTH - 1,)))
    assert found.classes[0].tolist() == list(CLASSES)
    assert found.shares == dict.fromkeys(CLASSES, 1 / 6)


def test_the_share_of_the_papers_kinds_depends_on_what_is_close():
    heads = np.stack([shifted(-1), shifted(3), shifted(7), column(0)])
    found = measured(sentence(heads[None], separators=(LENGTH - 1,)))
    shares = [paper_share(found, window) for window in (2, 4, 8)]
    assert shares == [0.5, 0.75, 1.0]
    assert paper_share(found) == 0.75


@pytest.mark.parametrize("length", [8, 12, 200])
def test_a_uniform_head_is_broad_on_short_sentences_too(length):
    assert one_head(uniform(length), separators=(length - 1,)).classes.item() == "broad"


@pytest.mark.parametrize(("share", "name"), [(0.49, "other"), (0.51, "local")])
def test_a_head_is_local_from_half_of_its_free_mass_on(share, name):
    rows = share * np.eye(400) + (1 - share) * uniform(400)
    assert one_head(rows, separators=(399,)).classes.item() == name


@pytest.mark.parametrize(("share", "name"), [(0.48, "broad"), (0.52, "mixed")])
def test_a_short_sentence_does_not_make_a_head_mixed(share, name):
    pattern = (shifted(1, 12) + column(0, 12)) / 2
    rows = share * pattern + (1 - share) * uniform(12)
    found = one_head(rows, separators=(11,))
    assert found.near[2] + found.first > 0.6  # of a uniform head 0.55
    assert found.classes.item() == name
