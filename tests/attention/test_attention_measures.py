"""Measures equal plain loops; heads of a planted pattern are called what they are."""

import math

import numpy as np
import pytest

from stackbert.attention.maps import SentenceMaps
from stackbert.attention.measures import CLASSES, MEASURES, WINDOWS, head_table, sentence_sums

LENGTH = 40


def measured(*maps, separators=()):
    """The table of heads of (L, H, S, S) maps, a sentence each; and what a uniform head has."""
    sums = [
        sentence_sums(SentenceMaps(0, ("t",) * each.shape[-1], separators, np.float32(each)))
        for each in maps
    ]
    tokens = sum(each.shape[-1] for each in maps)
    uniform = dict(zip(MEASURES, sum(alike for _, alike in sums) / tokens, strict=True))
    return head_table(sum(heads for heads, _ in sums) / tokens, uniform), uniform


def planted(*heads, separators=()):
    return measured(np.asarray(heads)[None], separators=separators)


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


def uniform_rows(length=LENGTH):
    return np.full((length, length), 1 / length)


def loops(sentences, separators):
    """Every measure by the plainest loops there are: name → (L, H)."""
    total = {name: np.zeros(sentences[0].shape[:2]) for name in MEASURES}
    for maps in sentences:
        for (layer, head, query, key), weight in np.ndenumerate(maps):
            offset = key - query
            tells = {
                "distance": abs(offset),
                "first": key == 0,
                "sep": key in separators,
                "itself": offset == 0,
                "previous": offset == -1,
                "following": offset == 1,
                "entropy": -math.log(weight) if weight > 0 else 0,
                f"at_{offset:+d}": 1,
            }
            for window in WINDOWS:
                tells[f"within_{window}"] = abs(offset) <= window
                tells[f"near_{window}"] = abs(offset) <= window and key > 0
            for name in tells.keys() & total.keys():
                total[name][layer, head] += weight * tells[name]
    tokens = sum(maps.shape[-1] for maps in sentences)
    return {name: value / tokens for name, value in total.items()}


def test_measures_equal_plain_loops():
    random = np.random.default_rng(0)
    sentences = [random.dirichlet(np.full(n, 0.2), size=(2, 3, n)) for n in (5, 19, 8)]
    found, _ = measured(*sentences, separators=(4, 2))
    for name, expected in loops(sentences, (4, 2)).items():
        assert found[name].to_numpy() == pytest.approx(expected.ravel(), abs=1e-5), name
    assert found["layer"].tolist() == [1, 1, 1, 2, 2, 2]
    assert found["head"].tolist() == [1, 2, 3, 1, 2, 3]


def test_a_uniform_head_measures_what_uniform_says():
    lengths = (12, 30, 8)
    found, uniform = measured(*(uniform_rows(n)[None, None] for n in lengths), separators=(7,))
    for name in MEASURES:
        assert found[name].item() == pytest.approx(uniform[name], abs=1e-5), name
    assert uniform["entropy"] == pytest.approx(sum(n * math.log(n) for n in lengths) / 50)
    assert uniform["first"] == pytest.approx(3 / 50)
    assert found["class"].item() == "broad"  # however much of its mass is near


def test_heads_are_called_what_they_are():
    pointed = np.roll(np.eye(LENGTH), LENGTH // 2, axis=1)
    kinds = {
        "local": shifted(-1),
        "[CLS]": column(0),
        "mixed": (shifted(1) + column(0)) / 2,
        "[SEP]": column(LENGTH - 1),
        "broad": uniform_rows(),
        "other": pointed,
    }
    assert tuple(kinds) == CLASSES
    found, _ = planted(*kinds.values(), separators=(LENGTH - 1,))
    assert found["class"].tolist() == list(CLASSES)


@pytest.mark.parametrize(
    ("share", "pattern", "name"),
    [
        (0.49, np.eye(400), "other"),
        (0.51, np.eye(400), "local"),
        (0.48, (shifted(1, 12) + column(0, 12)) / 2, "broad"),  # 0.66 of the mass is there
        (0.52, (shifted(1, 12) + column(0, 12)) / 2, "mixed"),
    ],
)
def test_half_of_what_a_uniform_head_spreads_elsewhere_makes_a_pattern(share, pattern, name):
    length = len(pattern)
    rows = share * pattern + (1 - share) * uniform_rows(length)
    found, _ = planted(rows, separators=(length - 1,))
    assert found["class"].item() == name
