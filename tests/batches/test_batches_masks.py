"""What is masked, how often and with what."""

import numpy as np
import pytest
import torch
from batches_helpers import CLS, FIRST, MASK, SEP, numbered, plan, seeds, shape, shapes, unmasked
from hypothesis import given
from hypothesis import strategies as st

from stackbert.batches.batches import IGNORED, BatchPlan
from stackbert.corpus.tokenizer import Vocabulary


@given(stage=shapes, tokens=st.integers(1, 300), pairs=st.booleans(), seed=seeds)
def test_the_masked_count_is_exact_in_every_row_and_batch(stage, tokens, pairs, seed):
    batches = plan(numbered(tokens), stage, seed=seed, next_sentence=pairs)
    expected = max(1, round(stage.mask_rate * (stage.sequence_length - (3 if pairs else 2))))
    for step in range(3):
        batch = batches.batch(step)
        assert batch.columns_BK.shape == batch.labels_BK.shape == (stage.sequences, expected)
        assert (batch.labels_BK != IGNORED).all()
        assert (torch.diff(batch.columns_BK) > 0).all()  # so no position twice
        assert batches.masked_rows(step) == (stage.sequences, stage.sequences * expected)


@pytest.mark.parametrize("pairs", [False, True])
def test_special_tokens_are_never_masked_nor_put_in(factbook_corpus, pairs):
    words, stage = factbook_corpus.vocabulary, shape(20, 32, 128, 0.3)
    made = BatchPlan(factbook_corpus.train, words, [stage], seed=1, next_sentence=pairs)
    in_rows = 0
    for batch in map(made.batch, range(20)):
        assert (batch.labels_BK >= 0).all()
        assert not np.isin(batch.labels_BK, words.special).any()
        original = unmasked(batch)
        special = torch.from_numpy(np.isin(original, words.special))
        assert torch.equal(batch.input_ids_BS[special], original[special])
        in_rows += int(special.sum()) - (3 if pairs else 2) * len(original)
        put = batch.input_ids_BS.gather(1, batch.columns_BK)
        assert not np.isin(put, [i for i in words.special if i != words.mask]).any()
    assert in_rows > 10  # documents that end inside a row


def test_replacements_stay_below_the_tokenizers_size():
    # The embedding is rounded up to a multiple of 64; ids beyond the tokenizer's do not exist.
    small = Vocabulary(640, FIRST + 100, 0, CLS, SEP, MASK, tuple(range(FIRST)))
    batches = BatchPlan(numbered(100), small, [shape(9, 50, 100, 0.6)], seed=0)
    assert max(int(batches.batch(step).input_ids_BS.max()) for step in range(9)) == FIRST + 99


def test_a_row_of_few_ordinary_tokens_masks_those_and_counts_no_others():
    stream = numbered(100, separators=[place for place in range(100) if place % 10])
    batch = plan(stream, shape(1, 5, 22, 0.5)).batch(0)
    assert batch.labels_BK.shape == (5, 10)
    assert ((batch.labels_BK != IGNORED).sum(1) == 2).all()  # every tenth of a row of 20
    ignored = batch.input_ids_BS.gather(1, batch.columns_BK)[batch.labels_BK == IGNORED]
    assert np.isin(ignored, (CLS, SEP)).all()


@pytest.mark.parametrize(
    ("shares", "kept", "replaced"),
    [
        ({}, 0.1, 0.1),
        ({"kept_rate": 0.0, "random_rate": 0.0}, 0.0, 0.0),
        ({"kept_rate": 0.5, "random_rate": 0.25}, 0.5, 0.25),
    ],
)
def test_masks_are_80_10_10_or_as_asked_and_any_token_may_be_put_in(shares, kept, replaced):
    tokens = 300
    batch = plan(numbered(tokens), shape(1, 5000, 66), **shares).batch(0)
    put, labels = batch.input_ids_BS.gather(1, batch.columns_BK), batch.labels_BK
    chance = replaced / tokens  # that a drawn token is the one that was there
    for found, share in ((put == MASK, 1 - kept - replaced), (put == labels, kept + chance)):
        noise = 5 * np.sqrt(share * (1 - share) / labels.numel())
        assert abs(found.double().mean() - share) <= noise
    drawn = put[(put != MASK) & (put != labels)] - FIRST
    counts = torch.bincount(drawn, minlength=tokens).double()
    squares = ((counts - counts.mean()) ** 2).sum() / max(1, counts.mean())
    assert abs(squares - tokens * bool(replaced)) <= 5 * np.sqrt(2 * tokens)


@given(stage=shapes, seed=seeds)
def test_labels_are_the_tokens_that_stood_there_and_the_others_stay(stage, seed):
    tokens = stage.sequences * (stage.sequence_length - 2)
    batch = plan(numbered(tokens), stage, seed=seed, evenly=True).batch(0)
    truth = torch.full(batch.input_ids_BS.shape, SEP)
    truth[:, 0] = CLS
    truth[:, 1:-1] = torch.arange(FIRST, FIRST + tokens).view(stage.sequences, -1)
    assert torch.equal(truth.gather(1, batch.columns_BK), batch.labels_BK)
    untouched = torch.ones(truth.shape, dtype=torch.bool).scatter(1, batch.columns_BK, False)
    assert torch.equal(batch.input_ids_BS[untouched], truth[untouched])
