from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from stackbert.corpus import Corpus, encoder
from stackbert.corpus.encoder import PieceEncoder, WordEncoder, encoder_for

NASTY = list("abkoe .,;:()-'\"\n\t\r\0\x0b\x1c\x85\xa0\u2003\u3000\u0301\u0338\u200d字éßİ[]_#")
WORDS = ["kalo", "[MASK]", "[SEP]", "u.s.", "it's", "3,5", "ok.", "(no)", " \0 ", "\0", ", ", "##a"]
PIECE = st.lists(st.sampled_from(NASTY + WORDS), max_size=30).map("".join) | st.text(max_size=30)


@pytest.fixture(scope="module")
def tokenizer(corpus: Corpus) -> Any:
    return Tokenizer.from_file(str(corpus.tokenizer_folder / "tokenizer.json"))


def expected(tokenizer: Any, pieces: list[str]) -> list[list[int]]:
    return [one.ids for one in tokenizer.encode_batch(pieces, add_special_tokens=False)]


def split(found: tuple[Any, Any]) -> list[list[int]]:
    ids, lengths = found
    assert len(ids) == lengths.sum()
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(PIECE, min_size=1, max_size=8))
def test_the_table_of_words_gives_the_tokenizer_s_own_ids(
    tokenizer: Any, pieces: list[str]
) -> None:
    words = encoder_for(tokenizer)
    assert isinstance(words, WordEncoder)
    for _ in range(2):  # the second time every word is known
        assert split(words.encode(pieces)) == expected(tokenizer, pieces)


def test_a_full_table_forgets_and_still_gives_the_same_ids(
    tokenizer: Any, documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_BATCH_CHARACTERS", 500)
    monkeypatch.setattr(encoder, "_CACHE_WORDS", 100)
    words = WordEncoder(tokenizer)
    assert split(words.encode(documents)) == expected(tokenizer, documents)
    assert len(words._table) <= 100
    assert len(words._bounds) == len(words._table) + 1
    monkeypatch.setattr(encoder, "_CACHE_CHARACTERS", 50)
    words = WordEncoder(tokenizer)
    long = ["x" * 40 + " " + str(n) for n in range(50)]
    assert split(words.encode(long)) == expected(tokenizer, long)
    assert words._characters <= 50


def test_memory_is_bounded_by_encoding_a_batch_at_a_time(
    tokenizer: Any, documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_BATCH_CHARACTERS", 1000)
    sizes = []
    one = PieceEncoder._one
    monkeypatch.setattr(
        PieceEncoder, "_one", lambda self, pieces: sizes.append(len(pieces)) or one(self, pieces)
    )
    assert split(PieceEncoder(tokenizer).encode(documents)) == expected(tokenizer, documents)
    assert sum(sizes) == len(documents)
    assert max(sizes) < 50


def test_special_tokens_written_in_the_text_are_text(tokenizer: Any) -> None:
    ids, _ = encoder_for(tokenizer).encode(["a [MASK] and [SEP] and [CLS]", "[PAD]"])
    assert not set(ids.tolist()) & {0, 2, 3, 4}


def byte_level() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["a text to learn from. " * 20], trainer)
    return tokenizer


def test_other_tokenizers_are_asked_for_whole_pieces(tokenizer: Any, tmp_path: Path) -> None:
    assert isinstance(encoder_for(byte_level()), PieceEncoder)
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.add_tokens([AddedToken("new york")])  # an added token may hold a space
    assert isinstance(encoder_for(changed), PieceEncoder)
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.pre_tokenizer = pre_tokenizers.Metaspace()
    assert isinstance(encoder_for(changed), PieceEncoder)


def test_a_tokenizer_that_truncates_or_pads_loses_and_adds_nothing() -> None:
    pieces = ["a text to learn from", "a"]
    tokenizer = byte_level()
    plain = expected(tokenizer, pieces)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>", length=8)
    assert split(encoder_for(tokenizer).encode(pieces)) == plain
