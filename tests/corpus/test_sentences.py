import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackbert.corpus.sentences import LONGEST, split_sentences

TEXTS = st.text(alphabet=st.sampled_from(list("abC J.!?…。」)\"'\n\r\t  é字")), max_size=200)


@settings(deadline=None)
@given(TEXTS | st.text(max_size=100))
def test_the_sentences_joined_are_the_document_and_none_is_blank(text: str) -> None:
    pieces = split_sentences(text)
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
        ("A\nB", ["A", "\nB"]),
        ("", []),
        ("x", ["x"]),
    ],
)
def test_a_sentence_ends_where_a_reader_would_end_it(text: str, pieces: list[str]) -> None:
    assert split_sentences(text) == pieces


@pytest.mark.parametrize("text", ["a" * 300_000, "ab " * 100_000 + "c", "x" + " " * 200_000 + "y"])
def test_an_endless_sentence_is_cut_without_losing_a_character(text: str) -> None:
    pieces = split_sentences(text)
    assert "".join(pieces) == text
    assert all(piece.strip() for piece in pieces)
    if "  " not in text:
        assert max(map(len, pieces)) <= LONGEST


def test_words_stay_whole_when_an_endless_sentence_is_cut() -> None:
    pieces = split_sentences("word " * 50_000 + "word")
    assert {word for piece in pieces for word in piece.split()} == {"word"}


@pytest.mark.parametrize("text", [". " * 300_000, "." * 600_000, '."' * 300_000, "a\n" * 300_000])
def test_time_grows_with_the_length_alone(text: str) -> None:
    started = time.process_time()
    split_sentences(text)
    assert time.process_time() - started < 10  # a quadratic pattern would take hours
