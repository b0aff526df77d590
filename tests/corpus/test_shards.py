import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackbert.corpus import shards
from stackbert.corpus.shards import SplitWriter
from stackbert.corpus.store import TokenStream, unigram_entropy
from stackbert.files import sha256_of

SEPARATOR = 9
DOCUMENT = st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=6), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(DOCUMENT, max_size=4), min_size=1), size=st.integers(3, 30))
def test_shards_joined_are_the_documents_each_with_one_separator(
    batches: list[list[list[list[int]]]], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("split") / "train"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_TOKENS", size)
        writer = SplitWriter(folder, "uint16", 16)
    for batch in batches:
        sentences = [sentence for document in batch for sentence in document]
        lengths = [len(sentence) for sentence in sentences]
        document_lengths = [sum(map(len, document)) for document in batch]
        writer.add(
            np.array(list(itertools.chain(*sentences)), np.uint32),
            np.cumsum(document_lengths, dtype=np.int64),
            np.cumsum([0, *lengths[:-1]], dtype=np.int64)[: len(lengths)],
            SEPARATOR,
            words=1,
        )
    split = writer.finish()

    stream: list[int] = []
    documents, starts = [], []
    for document in itertools.chain(*batches):
        documents.append(len(stream))
        for sentence in document:
            starts.append(len(stream))
            stream += sentence
        stream.append(SEPARATOR)
    tokens = TokenStream(folder, split)
    assert tokens.read(0, len(tokens)).tolist() == stream if stream else len(tokens) == 0
    assert tokens.document_starts.tolist() == documents
    assert tokens.sentence_starts(0, len(tokens)).tolist() == starts
    assert (split.tokens, split.documents, split.sentences) == (
        len(stream),
        len(documents),
        len(starts),
    )
    assert all(shard.tokens == size for shard in split.shards[:-1])
    counts = np.bincount([token for token in stream if token != SEPARATOR], minlength=16)
    assert split.unigram_entropy == pytest.approx(unigram_entropy(counts))
    for shard in split.shards:
        for name, digest in shard.sha256.items():
            assert sha256_of(folder / name) == digest
            assert np.load(folder / name).flags.c_contiguous


def test_a_full_shard_is_on_the_disk_before_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 10)
    writer = SplitWriter(tmp_path / "train", "uint32", 16)
    writer.add(np.zeros(25, np.uint32), np.array([25]), np.array([0]), SEPARATOR, 25)
    assert [len(np.load(path)) for path in sorted(writer.folder.glob("tokens-*"))] == [10, 10]
    assert np.load(writer.folder / "tokens-00000.npy").dtype == np.uint32
