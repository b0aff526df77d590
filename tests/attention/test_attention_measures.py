"""Maps are those of transformers, measures equal plain loops; laws of likeness."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stackbert.attention.likeness import contrast, divergences, keep_rows, match
from stackbert.attention.maps import SentenceMaps, attention_maps
from stackbert.attention.measures import CLASSES, MEASURES, WINDOWS, head_table, sentence_sums
from stackbert.errors import UserError
from tiny_encoders import KINDS

LENGTH = 40


def sentence_of(maps, index=0, separators=()):
    return SentenceMaps(index, ("t",) * maps.shape[-1], separators, np.float32(maps))


def measured(*maps, separators=()):
    """The table of heads of (L, H, S, S) maps, a sentence each; and what a uniform head has."""
    sums = [sentence_sums(sentence_of(each, separators=separators)) for each in maps]
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


def sample(maps_of_sentences):
    sentences = [sentence_of(maps, index) for index, maps in enumerate(maps_of_sentences)]
    return {each.index: keep_rows(each, seed=0) for each in sentences}


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


def maps_of(model, tokenizer, sentences):
    return sorted(attention_maps(model, tokenizer, sentences), key=lambda each: each.index)


@pytest.mark.parametrize("kind", list(KINDS))
def test_maps_are_those_of_transformers_without_padding(kind, make_model, tokenizer, sentences):
    model = make_model(kind, depth=3)
    together = maps_of(model, tokenizer, sentences)
    model.set_attn_implementation("eager")
    model.eval()
    for text, found in zip(sentences, together, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            theirs = torch.cat(model(**inputs, output_attentions=True).attentions).numpy()
        assert found.tokens == ("[CLS]", *text.split(), "[SEP]")
        assert found.separators == (len(found.tokens) - 1,)
        assert found.maps_LHSS.dtype == np.float32
        assert np.allclose(found.maps_LHSS, theirs, atol=2e-6)
        assert np.allclose(found.maps_LHSS.sum(-1), 1, atol=1e-5)


def test_the_model_is_left_as_it_was(make_model, tokenizer, sentences, monkeypatch):
    model, shapes = make_model(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5), []
    model.base_model.register_forward_pre_hook(
        lambda _, inputs: shapes.append(tuple(inputs[0].shape))
    )
    model.train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr("stackbert.attention.maps.BATCH_TOKENS", 50)
    first = next(attention_maps(model, tokenizer, sentences))  # nobody asks for the rest
    assert model.config._attn_implementation == "sdpa"
    assert all(module.training for module in model.modules())
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    again = next(attention_maps(model, tokenizer, sentences))
    assert np.array_equal(first.maps_LHSS, again.maps_LHSS)  # no dropout
    assert shapes == [(1, 13)] * 2  # those of one length together


def damaged(model):
    model.bert.encoder.layer[0].attention.self.query.weight.data[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda make: make("squeezebert", embedding_size=32), "not probabilities"),
        (lambda make: damaged(make()), "not probabilities: .*nan"),
        (lambda make: make(vocab_size=30), "out of range.* with its own tokenizer"),
    ],
    ids=["raw scores", "NaN", "another tokenizer"],
)
def test_what_gives_no_probabilities_is_refused(build, says, make_model, tokenizer, sentences):
    with pytest.raises(UserError, match=says):
        list(attention_maps(build(make_model).eval(), tokenizer, sentences))
