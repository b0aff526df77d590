"""A batch is a pure function of its step; no token is lost, repeated or touched by accident."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stackbert.batches import Batch, BatchPlan, StageShape
from stackbert.corpus.manifest import Shard, Split, shard_files
from stackbert.corpus.store import TokenStream
from stackbert.errors import UserError
from stackbert.randomness import I64
from stackbert.vocabulary import Vocabulary

CLS, SEP, MASK = 2, 3, 4
SPECIAL = (0, 1, CLS, SEP, MASK)
FIRST = len(SPECIAL)
"""Token number n of a numbered corpus has the id FIRST + n, so a batch shows where it is from."""


def numbered(
    tokens: int,
    *,
    shard: int | None = None,
    sentences: Sequence[int] = (),
    separators: Sequence[int] = (),
) -> TokenStream:
    """A corpus on disk of running numbers, with separators at some places."""
    ids = np.arange(FIRST, FIRST + tokens, dtype=np.uint32)
    ids[list(separators)] = SEP
    documents = np.array([0, *(place + 1 for place in separators)])
    starts = {
        "documents": documents[documents < tokens],
        "sentences": np.unique([*documents[documents < tokens], *sentences]),
    }
    shards = []
    with tempfile.TemporaryDirectory() as folder:
        for number, low in enumerate(range(0, tokens, shard or max(1, tokens))):
            high = min(tokens, low + (shard or tokens))
            parts = {"tokens": ids[low:high]} | {
                part: found[(low <= found) & (found < high)] - low for part, found in starts.items()
            }
            for part, array in parts.items():
                np.save(Path(folder) / shard_files(number)[part], array)
            lengths = {part: len(array) for part, array in parts.items()}
            shards.append(Shard(number=number, sha256={}, **lengths))
        split = Split(tokens, 0, 0, 0, 0.0, tuple(shards))
        stream = TokenStream(Path(folder), split)
        stream.sentence_starts(0, tokens)  # open every file while it is there
    return stream


def vocabulary(tokens: int) -> Vocabulary:
    return Vocabulary(FIRST + tokens, FIRST + tokens, 0, CLS, SEP, MASK, SPECIAL)


def plan(stream: TokenStream, *stages: StageShape, seed: int = 0, **options: bool) -> BatchPlan:
    return BatchPlan(stream, vocabulary(len(stream)), stages, seed=seed, **options)


def unmasked(batch: Batch) -> I64:
    """The rows as they were before the masks."""
    ids = batch.input_ids.copy()
    counts = batch.labels != -100
    rows = np.nonzero(counts)[0]
    ids[rows, batch.columns[counts]] = batch.labels[counts]
    return ids


def places(batch: Batch) -> I64:
    """Which token of a numbered corpus stands where in the rows; special tokens left out."""
    return unmasked(batch)[:, 1:-1] - FIRST


def same(a: Batch, b: Batch) -> bool:
    names = [field.name for field in fields(Batch)]
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def joined(parts: Sequence[Batch]) -> Batch:
    def join(field: str) -> I64 | None:
        arrays = [getattr(part, field) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Batch(*(join(field.name) for field in fields(Batch)))


shapes = st.builds(
    StageShape,
    steps=st.integers(1, 5),
    rows=st.integers(1, 6),
    sequence_length=st.integers(6, 40),
    mask_rate=st.floats(0.05, 0.6),
)
seeds = st.integers(0, 2**63 - 1)


# --- The order of the data ------------------------------------------------------------------------


@given(
    tokens=st.integers(1, 300),
    stages=st.lists(shapes, min_size=1, max_size=3),
    seed=seeds,
    shuffle=st.booleans(),
)
@example(tokens=1, stages=[StageShape(1, 1, 40, 0.15)], seed=0, shuffle=True)
@example(
    tokens=300,
    stages=[StageShape(2, 3, 10, 0.15), StageShape(2, 3, 40, 0.15)],
    seed=0,
    shuffle=True,
)
def test_each_token_of_an_epoch_is_seen_once_whatever_the_stages(tokens, stages, seed, shuffle):
    batches = plan(numbered(tokens), *stages, seed=seed, shuffle=shuffle)
    seen: list[int] = []
    step = 0
    while len(seen) < 3 * tokens or step <= sum(stage.steps for stage in stages):
        seen += places(batches.batch(step)).reshape(-1).tolist()
        step += 1
    for start in range(0, len(seen) - tokens + 1, tokens):
        assert sorted(seen[start : start + tokens]) == list(range(tokens))
    rest = seen[len(seen) - len(seen) % tokens :]
    assert len(set(rest)) == len(rest)


def test_no_token_is_lost_or_repeated_where_a_stage_ends():
    # 2 steps of 4 × 8 tokens and 3 of 2 × 30 are 244; the first epoch of 200 ends in the second.
    stages = StageShape(2, 4, 10, 0.15), StageShape(3, 2, 32, 0.15)
    batches = plan(numbered(200), *stages)
    shapes_seen = [batches.batch(step).input_ids.shape for step in range(7)]
    assert shapes_seen == [(4, 10)] * 2 + [(2, 32)] * 5
    assert [batches.locate(step) for step in (0, 1, 2, 4, 5)] == [
        (0, 0),
        (0, 32),
        (1, 64),
        (1, 184),
        (1, 244),  # past the end the last stage goes on
    ]
    seen = np.concatenate([places(batches.batch(step)).reshape(-1) for step in range(7)])
    assert sorted(seen[:200]) == list(range(200))
    assert len(set(seen[200:].tolist())) == 64 + 5 * 60 - 200


@given(tokens=st.integers(1, 300), shape=shapes, seed=seeds)
def test_with_one_sequence_length_a_row_is_one_piece_of_the_text(tokens, shape, seed):
    batches = plan(numbered(tokens), shape, seed=seed)
    for step in range(8):
        assert (np.diff(places(batches.batch(step))) % tokens == 1 % tokens).all()


def test_epochs_differ_in_their_order():
    batches = plan(numbered(1000), StageShape(1, 100, 12, 0.15))
    orders = [places(batches.batch(epoch)).reshape(-1).tolist() for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(1000)) for order in orders)


def test_the_order_differs_by_seed():
    stream, shape = numbered(1000), StageShape(1, 100, 12, 0.15)
    orders = {places(plan(stream, shape, seed=s).batch(0)).tobytes() for s in range(5)}
    assert len(orders) == 5


def test_an_evaluation_reads_the_corpus_in_its_own_order():
    batches = plan(numbered(1000), StageShape(1, 100, 12, 0.15), shuffle=False)
    assert places(batches.batch(0)).reshape(-1).tolist() == list(range(1000))


@given(
    tokens=st.integers(2, 150),
    shard=st.integers(1, 40),
    pairs=st.booleans(),
    stages=st.lists(
        shapes.map(lambda s: replace(s, rows=s.rows + 1, sequence_length=s.sequence_length + 1)),
        min_size=1,
        max_size=2,
    ),
    data=st.data(),
)
@settings(max_examples=30)
def test_rows_are_the_same_wherever_the_shards_are_cut(tokens, shard, pairs, stages, data):
    marks = st.lists(st.integers(0, tokens - 1), max_size=20)
    sentences, separators = data.draw(marks), data.draw(marks)
    whole, cut = (
        plan(
            numbered(tokens, shard=size, sentences=sentences, separators=separators),
            *stages,
            next_sentence=pairs,
        )
        for size in (None, shard)
    )
    assert all(same(whole.batch(step), cut.batch(step)) for step in range(6))


# --- The same in every version --------------------------------------------------------------------

GOLDEN = {
    "rows": (False, [StageShape(9, 48, 12, 0.15)], "c3280db0ddba8c06"),
    "stages": (
        False,
        [StageShape(9, 48, 12, 0.15), StageShape(9, 6, 100, 0.3)],
        "9717a91717c0ff85",
    ),
    "pairs": (True, [StageShape(9, 40, 20, 0.15), StageShape(9, 8, 90, 0.3)], "6072fdd903a72d90"),
}


def digest(batches: Sequence[Batch]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for field in fields(batch):
            array = getattr(batch, field.name)
            if array is not None:
                assert array.dtype == np.int64
                found.update(array.tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_batches_are_the_same_in_every_version(name):
    # A run started with one version must be resumed by the next on the same batches. Over 1,024
    # rows an epoch and more than one epoch, in one shard and in several, read on and at random.
    pairs, stages, expected = GOLDEN[name]
    tokens, steps = 15_000, 40
    for shard in (None, 4_000):
        stream = numbered(
            tokens,
            shard=shard,
            sentences=sorted({(11 * n + n * n % 7) % tokens for n in range(tokens // 11)}),
            separators=range(80, tokens, 81),
        )
        batches = plan(stream, *stages, seed=6, next_sentence=pairs)
        assert digest([batches.batch(step) for step in range(steps)]) == expected
        backwards = [batches.batch(step) for step in reversed(range(steps))]
        assert digest(backwards[::-1]) == expected
        shared = [[batches.batch(step, rank, 2) for rank in (0, 1)] for step in range(steps)]
        assert digest([joined(ranks) for ranks in shared]) == expected


@given(
    tokens=st.integers(1, 60),
    shard=st.integers(1, 40),
    data=st.data(),
)
def test_ranges_read_together_are_the_ranges_read_alone(tokens, shard, data):
    marks = data.draw(st.lists(st.integers(0, tokens - 1)))
    stream = numbered(tokens, shard=shard, sentences=marks)
    starts = np.array(data.draw(st.lists(st.integers(0, tokens), max_size=8)), dtype=np.int64)
    lengths = np.array(
        [data.draw(st.integers(0, tokens - start)) for start in starts], dtype=np.int64
    )
    alone = [stream.read(int(a), int(n)) for a, n in zip(starts, lengths, strict=True)]
    assert stream.read_many(starts, lengths).tolist() == [i for part in alone for i in part]
    found, owners = stream.sentence_starts_within(starts, lengths)
    every = sorted({0, *marks})
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        inside = [place for place in every if start <= place < start + length]
        assert found[owners == number].tolist() == inside


@pytest.mark.parametrize(("start", "length"), [(-1, 3), (-9, 2), (18, 3), (25, 1)])
def test_a_range_outside_the_corpus_is_an_error(start, length):
    stream = numbered(20, shard=7)
    for read in (stream.read_many, stream.sentence_starts_within):
        with pytest.raises(IndexError, match="split of 20 tokens"):
            read(np.array([3, start]), np.array([2, length]))


# --- Ranks and repetition -------------------------------------------------------------------------


@given(
    tokens=st.integers(8, 400),
    ranks=st.integers(1, 6),
    share=st.integers(1, 4),
    length=st.integers(7, 40),
    pairs=st.booleans(),
    step=st.integers(0, 50),
    seed=seeds,
)
def test_the_ranks_together_see_the_batch_of_one(tokens, ranks, share, length, pairs, step, seed):
    pairs = pairs and ranks * share > 1
    stream = numbered(tokens, sentences=range(0, tokens, 5), separators=range(30, tokens, 31))
    shape = StageShape(10, ranks * share, length, 0.2)
    batches = plan(stream, shape, seed=seed, next_sentence=pairs)
    parts = [batches.batch(step, rank, ranks) for rank in range(ranks)]
    assert all(len(part.input_ids) == share for part in parts)
    assert same(joined(parts), batches.batch(step))


@pytest.mark.parametrize("pairs", [False, True])
def test_a_batch_depends_on_its_step_alone(factbook_corpus, factbook_vocabulary, pairs):
    def make() -> BatchPlan:
        stages = [StageShape(5, 8, 32, 0.15), StageShape(5, 4, 64, 0.3)]
        return BatchPlan(
            factbook_corpus.train, factbook_vocabulary, stages, seed=3, next_sentence=pairs
        )

    forwards = make()
    state = np.random.get_state()[1].copy()
    first = {step: forwards.batch(step) for step in range(12)}
    assert np.array_equal(state, np.random.get_state()[1])
    np.random.seed(12345)
    fresh = make()
    assert all(same(fresh.batch(step), first[step]) for step in reversed(range(12)))


def test_changing_a_batch_changes_neither_the_corpus_nor_the_next():
    batches = plan(numbered(500), StageShape(5, 4, 34, 0.15))
    batch = batches.batch(1)
    before = unmasked(batch)
    batch.input_ids[:], batch.labels[:], batch.columns[:] = 0, 0, 0
    assert np.array_equal(unmasked(batches.batch(1)), before)


def test_micro_batches_are_the_rows_of_the_batch():
    stream = numbered(500, sentences=range(0, 500, 7))
    batch = plan(stream, StageShape(5, 5, 34, 0.15), next_sentence=True).batch(2)
    assert same(joined([batch.rows(start, start + 2) for start in (0, 2, 4)]), batch)
    rows, columns = np.divmod(batch.flat_positions, 34)
    assert np.array_equal(rows, np.repeat(np.arange(5), batch.columns.shape[1]))
    assert np.array_equal(columns, batch.columns.reshape(-1))


# --- Masks ----------------------------------------------------------------------------------------


@given(shape=shapes, tokens=st.integers(1, 300), pairs=st.booleans(), seed=seeds)
def test_the_masked_count_is_exact_in_every_row_and_batch(shape, tokens, pairs, seed):
    shape = replace(shape, rows=shape.rows + 1, sequence_length=shape.sequence_length + 1)
    batches = plan(numbered(tokens), shape, seed=seed, next_sentence=pairs)
    expected = max(1, round(shape.mask_rate * (shape.sequence_length - (3 if pairs else 2))))
    for step in range(3):
        batch = batches.batch(step)
        assert batch.columns.shape == batch.labels.shape == (shape.rows, expected)
        assert (batch.labels != -100).all()
        assert (np.diff(batch.columns, axis=1) > 0).all()  # so no position twice
        assert batches.masked_rows(step) == (shape.rows, shape.rows * expected)


def test_each_stage_masks_at_its_own_rate():
    stages = StageShape(2, 3, 42, 0.1), StageShape(2, 3, 42, 0.5)
    batches = plan(numbered(500), *stages)
    assert [batches.batch(step).columns.shape[1] for step in range(5)] == [4, 4, 20, 20, 20]


def factbook_batches(corpus, words, *, pairs=False, steps=60) -> list[Batch]:
    shape = StageShape(steps, 32, 128, 0.3)
    batches = BatchPlan(corpus.train, words, [shape], seed=1, next_sentence=pairs)
    return [batches.batch(step) for step in range(steps)]


@pytest.mark.parametrize("pairs", [False, True])
def test_special_tokens_are_never_masked(factbook_corpus, factbook_vocabulary, pairs):
    in_rows = 0
    for batch in factbook_batches(factbook_corpus, factbook_vocabulary, pairs=pairs, steps=20):
        assert (batch.labels >= 0).all()
        assert not np.isin(batch.labels, factbook_vocabulary.special).any()
        original = unmasked(batch)
        special = np.isin(original, factbook_vocabulary.special)
        assert np.array_equal(batch.input_ids[special], original[special])
        in_rows += special.sum() - (3 if pairs else 2) * len(original)
    assert in_rows > 10  # documents that end inside a row


def test_special_tokens_are_never_put_in(factbook_corpus, factbook_vocabulary):
    words = factbook_vocabulary
    for batch in factbook_batches(factbook_corpus, words, steps=20):
        put = np.take_along_axis(batch.input_ids, batch.columns, axis=1)
        assert not np.isin(put, [i for i in words.special if i != words.mask]).any()
        assert put.max() < words.tokenizer_size


def test_replacements_stay_below_the_tokenizers_size():
    # The embedding is rounded up to a multiple of 64; ids beyond the tokenizer's do not exist.
    small = Vocabulary(640, FIRST + 100, 0, CLS, SEP, MASK, SPECIAL)
    batches = BatchPlan(numbered(100), small, [StageShape(9, 50, 100, 0.6)], seed=0)
    ids = np.concatenate([batches.batch(step).input_ids for step in range(9)])
    assert ids.max() < FIRST + 100


def test_a_row_of_few_ordinary_tokens_masks_those_and_counts_no_others():
    stream = numbered(100, separators=[place for place in range(100) if place % 10])
    batch = plan(stream, StageShape(1, 5, 22, 0.5)).batch(0)
    assert batch.labels.shape == (5, 10)
    assert ((batch.labels != -100).sum(axis=1) == 2).all()  # every tenth of a row of 20
    ignored = np.take_along_axis(batch.input_ids, batch.columns, axis=1)[batch.labels == -100]
    assert np.isin(ignored, (CLS, SEP)).all()


def test_masks_are_80_10_10(factbook_corpus, factbook_vocabulary):
    words = factbook_vocabulary
    batches = factbook_batches(factbook_corpus, words)
    labels = np.concatenate([batch.labels.reshape(-1) for batch in batches])
    put = np.concatenate([b.input_ids.reshape(-1)[b.flat_positions] for b in batches])
    ordinary = words.tokenizer_size - len(words.special)
    masked, kept = put == words.mask, put == labels
    n = len(labels)
    assert n > 70_000
    for found, share in (
        (masked, 0.8),
        (kept, 0.1 + 0.1 / ordinary),  # a drawn token may be the one that was there
        (~masked & ~kept, 0.1 - 0.1 / ordinary),
    ):
        assert abs(found.sum() - n * share) < 5 * np.sqrt(n * share * (1 - share))
    drawn = Counter(put[~masked & ~kept].tolist())
    mean = (~masked & ~kept).sum() / ordinary
    squares = sum(
        (drawn[i] - mean) ** 2 / mean for i in range(words.tokenizer_size) if i not in words.special
    )
    assert abs(squares - ordinary) < 5 * np.sqrt(2 * ordinary)


def test_every_position_of_a_row_is_masked_equally_often():
    batches = plan(numbered(5000), StageShape(40, 100, 52, 0.2))
    counts = sum(
        np.bincount(batches.batch(step).columns.reshape(-1), minlength=52) for step in range(40)
    )
    assert counts[0] == counts[-1] == 0
    expected = 40 * 100 * 10 / 50
    assert np.abs(counts[1:-1] - expected).max() < 5 * np.sqrt(expected)


@given(shape=shapes, seed=seeds)
def test_labels_are_the_tokens_that_stood_there_and_the_others_stay(shape, seed):
    tokens = shape.rows * (shape.sequence_length - 2)
    batch = plan(numbered(tokens), shape, seed=seed, shuffle=False).batch(0)
    truth = np.full(batch.input_ids.shape, SEP)
    truth[:, 0] = CLS
    truth[:, 1:-1] = np.arange(FIRST, FIRST + tokens).reshape(shape.rows, -1)
    assert np.array_equal(np.take_along_axis(truth, batch.columns, axis=1), batch.labels)
    untouched = np.ones(truth.shape, dtype=bool)
    np.put_along_axis(untouched, batch.columns, False, axis=1)
    assert np.array_equal(batch.input_ids[untouched], truth[untouched])


def test_masks_are_drawn_anew_in_every_epoch():
    # One row is the corpus, so the same text comes back at every step.
    batches = plan(numbered(100), StageShape(1, 1, 102, 0.15))
    columns = {batches.batch(epoch).columns.tobytes() for epoch in range(20)}
    assert len(columns) == 20
    assert all(np.array_equal(places(batches.batch(e))[0], np.arange(100)) for e in range(20))


def test_masks_differ_by_seed_and_are_the_same_for_the_same():
    stream, shape = numbered(100), StageShape(1, 1, 102, 0.15)
    one, again, other = (plan(stream, shape, seed=seed).batch(0) for seed in (1, 1, 2))
    assert same(one, again)
    assert not np.array_equal(one.columns, other.columns)


# --- Sentence pairs -------------------------------------------------------------------------------

LONG = 6000
SENTENCES = sorted({(7 * n + n * n % 5) for n in range(LONG // 7)})
SEPARATORS = list(range(90, LONG, 97))


@pytest.fixture(scope="module")
def marked() -> TokenStream:
    """Sentences of 3 to 11 tokens, documents of 97."""
    return numbered(LONG, shard=700, sentences=SENTENCES, separators=SEPARATORS)


def parts_of(stream: TokenStream, batch: Batch, row: int) -> tuple[list[int], list[int]]:
    """The places in the corpus of a row's two parts, which must each be one piece of it."""
    ids = unmasked(batch)[row]
    types = batch.token_types[row]
    length = len(ids)
    border = int(np.flatnonzero(types)[0])  # the first position of the second part
    assert types.tolist() == [0] * border + [1] * (length - border)
    assert (ids[0], ids[border - 1], ids[-1]) == (CLS, SEP, SEP)
    found = []
    for part in (ids[1 : border - 1], ids[border:-1]):
        assert len(part)
        known = int(np.flatnonzero(part != SEP)[0])
        start = (int(part[known]) - FIRST - known) % len(stream)
        where = [(start + n) % len(stream) for n in range(len(part))]
        assert part.tolist() == [int(stream.read(place, 1)[0]) for place in where]
        found.append(where)
    return found[0], found[1]


@given(rows=st.integers(2, 40), length=st.integers(30, 80), step=st.integers(0, 30), seed=seeds)
@settings(max_examples=50)
def test_exactly_half_of_the_pairs_are_random(marked, rows, length, step, seed):
    batch = plan(marked, StageShape(1, rows, length, 0.15), seed=seed, next_sentence=True).batch(
        step
    )
    assert set(batch.is_random.tolist()) <= {0, 1}
    assert batch.is_random.sum() == rows // 2


@pytest.mark.parametrize("rows", [2, 3, 16])
def test_true_pairs_go_on_and_random_pairs_come_from_elsewhere(marked, rows):
    # 12 × 16 rows of 40 are more than an epoch.
    batches = plan(marked, StageShape(1, rows, 43, 0.15), next_sentence=True)
    starts = set(SENTENCES) | {place + 1 for place in SEPARATORS}
    documents = {place + 1 for place in SEPARATORS} | {0}
    kinds = Counter()
    for step in range(12):
        batch = batches.batch(step)
        assert (unmasked(batch) != 0).all()  # no row is padded, whatever its label
        rows_of = [parts_of(marked, batch, row) for row in range(rows)]
        for row, (a, b) in enumerate(rows_of):
            assert len(a) + len(b) == 40
            assert b[0] in starts
            assert b[0] not in documents  # what follows a document's end is no continuation
            random = bool(batch.is_random[row])
            kinds[random] += 1
            continues = b[0] == (a[-1] + 1) % LONG
            assert continues != random
            if random:  # from where another row of this batch is cut
                cuts = {(other[-1] + 1) % LONG for n, (other, _) in enumerate(rows_of) if n != row}
                assert b[0] in cuts
    assert kinds[True] == 12 * (rows // 2)


def test_every_true_pair_and_first_part_is_new_text(marked):
    batches = plan(marked, StageShape(1, 10, 43, 0.15), next_sentence=True)
    seen = []
    for step in range(LONG // 400):
        batch = batches.batch(step)
        for row in range(10):
            a, b = parts_of(marked, batch, row)
            # A random pair's own second part is what it gives away; another row shows it.
            seen += a if batch.is_random[row] else a + b
    assert len(seen) == len(set(seen))


def test_a_pair_is_cut_at_any_of_its_sentences():
    # One row of 50 with sentences at four places, seen again and again.
    stream = numbered(100, sentences=[10, 20, 30, 40, 60, 70, 80, 90], separators=[49, 99])
    batches = plan(stream, StageShape(1, 2, 53, 0.15), next_sentence=True, shuffle=False)
    cuts = Counter(
        int(np.flatnonzero(types)[0]) - 2
        for step in range(300)
        for types in batches.batch(step).token_types
    )
    assert set(cuts) == {10, 20, 30, 40}
    assert min(cuts.values()) > 150 - 5 * np.sqrt(600 * 0.25 * 0.75)


def test_a_row_within_one_sentence_is_cut_in_its_middle_half():
    batches = plan(numbered(4000), StageShape(1, 10, 43, 0.15), next_sentence=True)
    cuts = [
        int(np.flatnonzero(types)[0]) - 2
        for step in range(20)
        for types in batches.batch(step).token_types
    ]
    assert set(cuts) == set(range(10, 30))


def test_the_label_cannot_be_told_from_the_lengths(marked):
    batches = plan(marked, StageShape(1, 40, 43, 0.15), next_sentence=True)
    lengths = {0: [], 1: []}
    for step in range(60):
        batch = batches.batch(step)
        for label, types in zip(batch.is_random.tolist(), batch.token_types, strict=True):
            lengths[label].append(int(types.sum()))
    true, random = np.array(lengths[0]), np.array(lengths[1])
    spread = np.sqrt(true.var() / len(true) + random.var() / len(random))
    assert abs(true.mean() - random.mean()) < 5 * spread


def test_pairs_of_a_stage_with_shorter_rows_are_whole_too(marked):
    # Rows of 40 are cut from chunks of 97, so some run over from one chunk into another.
    stages = StageShape(20, 10, 43, 0.15), StageShape(5, 10, 100, 0.15)
    batches = plan(marked, *stages, next_sentence=True)
    starts = set(SENTENCES)
    for step in range(22):
        batch = batches.batch(step)
        ids = unmasked(batch)
        for row in np.flatnonzero(batch.is_random == 0):
            border = int(np.flatnonzero(batch.token_types[row])[0])
            assert int(ids[row, border]) - FIRST in starts
            if ids[row, border - 2] != SEP:
                assert ids[row, border] == ids[row, border - 2] + 1
        assert batch.is_random.sum() == 5


def test_real_pairs_follow_each_other_in_the_text(factbook_corpus, factbook_vocabulary):
    stream = factbook_corpus.train
    text = stream.read(0, len(stream)).astype(np.int64)
    sentences = np.setdiff1d(stream.sentence_starts(0, len(stream)), stream.document_starts)
    windows = np.lib.stride_tricks.sliding_window_view(text, 125)
    shape = StageShape(1, 16, 128, 0.15)
    batches = BatchPlan(stream, factbook_vocabulary, [shape], seed=0, next_sentence=True)
    true = 0
    for step in range(5):
        batch = batches.batch(step)
        ids = unmasked(batch)
        for row in np.flatnonzero(batch.is_random == 0):
            border = int(np.flatnonzero(batch.token_types[row])[0])
            whole = np.concatenate([ids[row, 1 : border - 1], ids[row, border:-1]])
            (start,) = np.flatnonzero((windows == whole).all(axis=1))
            inside = sentences[(sentences > start) & (sentences < start + 125)]
            assert start + border - 2 in inside or not len(inside)
            true += len(inside) > 0
    assert true > 20


# --- What cannot be ------------------------------------------------------------------------------


def test_rows_that_cannot_be_shared_equally_are_refused():
    batches = plan(numbered(100), StageShape(1, 10, 12, 0.15))
    with pytest.raises(UserError, match=r"batch\.sequences: 10 rows .* 4 processes"):
        batches.batch(0, 0, 4)


@pytest.mark.parametrize(("length", "pairs"), [(5, False), (6, True)])
def test_rows_too_short_for_text_are_refused(length, pairs):
    stages = StageShape(1, 2, length + 1, 0.15), StageShape(1, 2, length, 0.15)
    with pytest.raises(UserError, match=r"batch\.sequence_length"):
        plan(numbered(100), *stages, next_sentence=pairs)
    plan(numbered(100), stages[0], next_sentence=pairs)


def test_one_row_cannot_be_paired():
    stages = StageShape(1, 2, 20, 0.15), StageShape(1, 1, 20, 0.15)
    with pytest.raises(UserError, match=r"batch\.sequences: next-sentence prediction needs"):
        plan(numbered(100), *stages, next_sentence=True)
    plan(numbered(100), *stages)


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="no tokens in this split"):
        plan(numbered(0), StageShape(1, 2, 20, 0.15))


def test_a_vocabulary_of_special_tokens_only_is_refused():
    nothing = Vocabulary(64, len(SPECIAL), 0, CLS, SEP, MASK, SPECIAL)
    with pytest.raises(UserError, match="special tokens only"):
        BatchPlan(numbered(10), nothing, [StageShape(1, 2, 20, 0.15)], seed=0)
