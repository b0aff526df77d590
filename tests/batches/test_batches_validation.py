"""What a run is judged on: rows from everywhere, and a word where there are too few."""

import dataclasses

import numpy as np
import pytest
from batches_helpers import FIRST, numbered, unmasked
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import stackbert as sb
from stackbert.batches.batches import data_sentences, validation_batch, validation_entropy
from stackbert.batches.order import EvenOrder
from stackbert.model import build_config


@given(tokens=st.integers(1, 500), chunk=st.integers(1, 40), rows=st.integers(1, 9))
def test_rows_are_spread_evenly_and_share_no_token_where_there_are_enough(tokens, chunk, rows):
    starts, lengths = EvenOrder(tokens, chunk, rows).segments(0, rows * chunk)
    read = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
    assert (len(read), read.max() < tokens) == (rows * chunk, True)
    first = read.reshape(rows, chunk)[:, 0]
    assert (np.abs(first - np.arange(rows) * tokens / rows) < 1).all()
    if rows * chunk <= tokens:
        assert len(set(read.tolist())) == len(read)


def test_the_last_source_is_judged_too_and_the_entropy_is_of_the_same_rows(factbook_corpus):
    stream = numbered(10_000)
    corpus = dataclasses.replace(factbook_corpus, validation=stream)
    vocabulary = dataclasses.replace(corpus.vocabulary, size=FIRST + 10_000)
    corpus = dataclasses.replace(corpus, vocabulary=vocabulary)
    recipe = sb.load_recipe("demo", ["evaluation.sequences=5"])
    rows = unmasked(validation_batch(recipe, corpus))[:, 1:-1] - FIRST
    assert rows[:, 0].tolist() == [0, 2000, 4000, 6000, 8000]
    assert validation_entropy(recipe, corpus) == pytest.approx(np.log(rows.numel()))
    whole = factbook_corpus.validation.read(0, len(factbook_corpus.validation))
    counts = np.bincount(whole[whole != factbook_corpus.vocabulary.sep])
    assert validation_entropy(recipe, factbook_corpus) == pytest.approx(
        stats.entropy(counts), rel=0.2
    )


def test_passes_and_a_small_held_out_side_are_said(factbook_corpus):
    shape = ["batch.sequences=10", "batch.sequence_length=102"]
    tokens = len(factbook_corpus.train)
    few = sb.load_recipe("demo", shape).scaled(tokens // 1000)
    said, *warnings = data_sentences(few, factbook_corpus)
    assert f"pass {few.total_steps * 1000 / tokens:,.3g} times over {tokens:,} tokens" in said
    assert [line.startswith("Warning: only") for line in warnings] == [True]
    many = data_sentences(few.scaled(30 * tokens // 1000), factbook_corpus)
    assert "Warning: 30 passes" in many[1]


def test_a_padding_token_at_the_vocabulary_s_end_is_refused_for_roberta(factbook_vocabulary):
    late = dataclasses.replace(factbook_vocabulary, pad=1000)
    for kind, refused in (("roberta", True), ("roberta-prelayernorm", True), ("bert", False)):
        spec = sb.load_recipe("bert-base", [f"model.type={kind}"]).model
        if refused:
            with pytest.raises(sb.UserError, match=r"model\.type: .* id 1000"):
                build_config(spec, depth=2, vocabulary=late, sequence_length=64)
        else:
            assert build_config(spec, depth=2, vocabulary=late, sequence_length=64)
