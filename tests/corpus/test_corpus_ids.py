"""From text to ids: sentences lose no character, and the fast encoder gives the tokenizer's ids."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from stackbert.corpus import encoder
from stackbert.corpus.encoder import encode_pieces, encoder_for, plain_tokenizer
from stackbert.corpus.sentences import LONGEST, split_sentences
from stackbert.corpus.tokenizer import load_tokenizer

TEXTS = st.text(alphabet=st.sampled_from(list("abC J.!?…。」)\"'\n\r\t  é字")), max_size=200)


@given(TEXTS | st.text(max_size=100))
def test_the_sentences_joined_are_the_document_and_none_is_blank(text):
    pieces = list(split_sentences(text))
    assert all(piece.strip() for piece in pieces)
    assert "".join(pieces) == (text if text.strip() else "")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One. Two! Three? Four", ["One.", " Two!", " Three?", " Four"]),
        ("A line\nanother\n\n third", ["A line", "\nanother", "\n\n third"]),
        ('He said "No." Then left.', ['He said "No."', " Then left."]),
        ("Mr. Smith met J. R. Tolkien.", ["Mr. Smith met J. R. Tolkien."]),
        ("It cost 3.5 million, i.e. more.", ["It cost 3.5 million, i.e. more."]),
        ("Wait... What?! Yes.", ["Wait...", " What?!", " Yes."]),
        ("今日は。明日は「雨。」終わり", ["今日は。", "明日は「雨。」", "終わり"]),
        ("In 1990. 12 people came.", ["In 1990.", " 12 people came."]),
    ],
)
def test_a_sentence_ends_where_a_reader_would_end_it(text, pieces):
    assert list(split_sentences(text)) == pieces


@pytest.mark.parametrize("text", ["a" * 300_000, "ab " * 100_000 + "c", "x" + " " * 200_000 + "y"])
def test_an_endless_sentence_is_cut_at_a_space_without_losing_a_character(text):
    pieces = list(split_sentences(text))
    assert "".join(pieces) == text
    if "  " not in text:
        assert max(map(len, pieces)) <= LONGEST
    if "ab" in text:
        assert {word for piece in pieces for word in piece.split()} == {"ab", "c"}


@pytest.mark.parametrize("text", [". " * 300_000, "." * 600_000, '."' * 300_000, "a\n" * 300_000])
def test_time_grows_with_the_length_alone(text):
    started = time.process_time()
    list(split_sentences(text))
    assert time.process_time() - started < 10  # a quadratic pattern would take hours


NASTY = list("abkoe .,;:()-'\"\n\t\r\0\x0b\x1c\x85\xa0\u2003\u3000\u0301\u0338\u200d字éßİ[]_#")
WORDS = ["kalo", "[MASK]", "[SEP]", "u.s.", "it's", "3,5", "ok.", "(no)", " \0 ", "\0", ", ", "##a"]
PIECE = st.lists(st.sampled_from(NASTY + WORDS), max_size=30).map("".join) | st.text(max_size=30)


@pytest.fixture
def tokenizer(corpus) -> Any:
    return Tokenizer.from_file(str(corpus.tokenizer_folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def table(corpus) -> encoder.Encode:
    """One for all examples, so that most words are known."""
    return encoder_for(plain_tokenizer(load_tokenizer(corpus.tokenizer_folder).tokenizer, range(5)))


def expected(tokenizer: Any, pieces: list[str]) -> list[list[int]]:
    tokenizer.encode_special_tokens = True
    return [one.ids for one in tokenizer.encode_batch(pieces, add_special_tokens=False)]


def split(found: tuple[Any, Any]) -> list[list[int]]:
    ids, lengths = found
    assert len(ids) == lengths.sum()
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


@given(pieces=st.lists(PIECE, min_size=1, max_size=8))
def test_the_table_of_words_gives_the_tokenizer_s_own_ids(corpus, table, pieces):
    own: Any = Tokenizer.from_file(str(corpus.tokenizer_folder / "tokenizer.json"))
    assert table.__qualname__.startswith("encode_words")
    assert split(table(pieces)) == expected(own, pieces)


def test_other_tokenizers_encode_whole_pieces_and_neither_cut_nor_pad(tokenizer):
    pieces = ["kalo mi ter", "mi"]
    plain = expected(tokenizer, pieces)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(pad_id=1, length=8)
    tokenizer.add_tokens([AddedToken("new york")])  # an added token may hold a space
    encode = encoder_for(plain_tokenizer(tokenizer, range(5)))
    assert encode.__qualname__ == encode_pieces(tokenizer).__qualname__
    assert split(encode(pieces)) == plain
    assert len(encode(["new york"])[0]) == 1
    spaces = Tokenizer(models.WordPiece({"▁a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    spaces.pre_tokenizer = pre_tokenizers.Metaspace()
    assert split(encoder_for(plain_tokenizer(spaces, []))(["a a", "", "b"])) == [[0, 0], [], [1]]
